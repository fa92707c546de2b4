"""Builds the application and opens what it needs; router, handlers and the guard of the docs are arguments."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from typing import Any

import fastapi
from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from app.core import cache, queue
from app.core.cache_checker import find_cache_faults
from app.core.config import (
    ClientSideCacheSettings,
    EnvironmentOption,
    RedisCacheSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    Settings,
    WebSecuritySettings,
)
from app.core.database import close_engines
from app.core.exceptions import DatabaseUnavailableError
from app.core.logger import setup_logging
from app.core.middleware import ClientCacheMiddleware, LoadShedding, RequestMiddleware
from app.core.models import ErrorMessage
from app.core.rate_limit import limiter
from app.core.routing import APIRouter, add_routes, pydantic_v1_left_out

logger = logging.getLogger(__name__)

ExceptionHandler = Callable[[Request, Any], Awaitable[Response]]
DOCS_ASSETS = "/docs/assets"
# What a page of another origin may read of an answer, besides its body.
EXPOSED_HEADERS = ["X-Request-ID", "ETag", "Retry-After", "RateLimit", "RateLimit-Policy"]


@pydantic_v1_left_out()
def create_application(
    router: fastapi.APIRouter,
    settings: Settings,
    *,
    exception_handlers: Mapping[Any, ExceptionHandler],
    docs_guard: Callable[..., Any],
) -> FastAPI:
    """Build the application for `settings`; raises InvalidRequestError where `@cache` is used wrongly.

    The docs are open in the local environment, behind `docs_guard` in staging and absent in production.
    """
    middleware = [Middleware(RequestMiddleware, settings=settings)]
    if isinstance(settings, ClientSideCacheSettings):
        # Inside, where the answer to HEAD has its body still.
        middleware.append(Middleware(ClientCacheMiddleware, max_age=settings.CLIENT_CACHE_MAX_AGE))
    if isinstance(settings, WebSecuritySettings) and (origins := settings.cors_origins):
        # Around all, so that a page of another origin can read every error, too.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_credentials="*" not in origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
        middleware.insert(0, cors)
    contact = {"name": settings.CONTACT_NAME, "email": settings.CONTACT_EMAIL}
    if "@" not in (settings.CONTACT_EMAIL or ""):
        contact.pop("email")
    app = Application(
        settings,
        title=settings.APP_NAME,
        description=settings.APP_DESCRIPTION or "",
        version=settings.APP_VERSION,
        contact={name: value for name, value in contact.items() if value} or None,
        license_info={"name": settings.LICENSE_NAME} if settings.LICENSE_NAME else None,
        lifespan=lifespan(settings),
        middleware=middleware,
        exception_handlers=dict(exception_handlers),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    add_routes(app, router)
    if settings.ENVIRONMENT is not EnvironmentOption.PRODUCTION:
        guarded = settings.ENVIRONMENT is EnvironmentOption.STAGING
        add_docs(app, [Depends(docs_guard)] if guarded else [])
    for route in app.routes:
        if isinstance(route, APIRoute):
            cache.prepare_cached_route(route)
    return app


class Application(FastAPI):
    """FastAPI behind `LoadShedding`."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self._with_shedding = LoadShedding(super().__call__, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._with_shedding(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The document, with the schema to which the errors of routes refer."""
        document = super().openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas[ErrorMessage.__name__] = ErrorMessage.model_json_schema()
        return document


def lifespan(settings: Settings) -> Callable[[FastAPI], Any]:
    """Open the settings' servers and close them in reverse order, also when a later one cannot be opened."""

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        setup_logging()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(close_engines)
            if isinstance(settings, RedisCacheSettings):
                cache.store.open(settings)
                stack.push_async_callback(cache.store.close)
            if isinstance(settings, RedisQueueSettings):
                queue.open_pool(settings)
                stack.push_async_callback(queue.close_pool)
            if isinstance(settings, RedisRateLimiterSettings):
                limiter.open(settings)
                stack.push_async_callback(limiter.server.close)
            if settings.ENVIRONMENT is EnvironmentOption.LOCAL:
                with pydantic_v1_left_out():
                    for fault in find_cache_faults(app.routes):
                        logger.warning("cache used wrongly", extra={"fault": fault})
                await stack.enter_async_context(migrations())
            yield

    return run


@asynccontextmanager
async def migrations() -> AsyncIterator[None]:
    """Migrate before the first request, or, when the database is not there yet, as soon as it is."""
    # Alembic is not loaded where it does not run.
    from app.core.migrations import migrate, migrate_when_reachable  # noqa: PLC0415

    waiting: asyncio.Task[None] | None = None
    try:
        await migrate()
    except DatabaseUnavailableError:
        waiting = asyncio.create_task(migrate_when_reachable())
    yield
    if waiting is not None:
        waiting.cancel()


def add_docs(app: FastAPI, dependencies: list[Any]) -> None:
    """Serve the OpenAPI document, Swagger UI and ReDoc, with scripts and styles of our own rather than a CDN's."""
    docs = APIRouter(dependencies=dependencies)

    @docs.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @docs.get("/docs", include_in_schema=False)
    async def swagger_ui() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @docs.get("/redoc", include_in_schema=False)
    async def redoc() -> Response:
        return get_redoc_html(
            openapi_url="/openapi.json",
            title=app.title,
            redoc_js_url=f"{DOCS_ASSETS}/redoc.standalone.js",
            redoc_favicon_url="data:,",
            with_google_fonts=False,
        )

    add_routes(app, docs)
    app.mount(DOCS_ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")), name="docs_assets")

"""Builds the application and opens what it needs; router, handlers and the guard of the docs are arguments."""

import asyncio
import functools
import gc
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from operator import attrgetter
from typing import Any, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Match
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.core import cache, queue
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
from app.core.middleware import ClientCacheMiddleware, LoadSheddingMiddleware, RequestMiddleware
from app.core.rate_limit import limiter

logger = logging.getLogger(__name__)

ExceptionHandler = Callable[[Request, Any], Awaitable[Response]]
DOCS_ASSETS = "/docs/assets"
GARBAGE_THRESHOLD = 20_000
"""New objects that may be there before the collector looks for garbage among them."""
# What a page of another origin may read of an answer, besides its body.
EXPOSED_HEADERS = ["X-Request-ID", "ETag", "Retry-After", "RateLimit", "RateLimit-Policy"]


def create_application(
    router: APIRouter,
    settings: Settings,
    *,
    exception_handlers: Mapping[Any, ExceptionHandler],
    docs_guard: Callable[..., Any],
) -> FastAPI:
    """Build the application for `settings`; raises InvalidRequestError where `@cache` is used wrongly.

    The docs are open in the local environment, behind `docs_guard` in staging and absent in production.
    """
    middleware = [
        Middleware(LoadSheddingMiddleware, settings=settings),
        Middleware(RequestMiddleware, settings=settings),
    ]
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
    app = FastAPI(
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
    add_routes(app, router.routes)
    if settings.ENVIRONMENT is not EnvironmentOption.PRODUCTION:
        guarded = settings.ENVIRONMENT is EnvironmentOption.STAGING
        add_docs(app, [Depends(docs_guard)] if guarded else [])
    for route in app.routes:
        if isinstance(route, APIRoute):
            cache.check_cached_route(route)
    return app


class FlatRoute(APIRoute):
    """Looks at the outline of the path before it tries its pattern: most of the routes that are tried are not meant."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope["path"]
        # Below a root path the path begins with that.
        if not scope.get("root_path") and not (path.startswith(self._start) and path.count("/") in self._slashes):
            return Match.NONE, {}
        return super().matches(scope)

    @functools.cached_property
    def _start(self) -> str:
        return self.path.partition("{")[0]

    @functools.cached_property
    def _slashes(self) -> Container[int]:
        """How many there may be: only a parameter of the type `path` holds some."""
        number = self.path.count("/")
        return range(number, sys.maxsize) if ":path}" in self.path else (number,)


def add_routes(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Put routes, with all that they inherit from the routers that they are in, directly into the application.

    FastAPI looks for the route anew in each router that it enters: three routers deep, that is half of a small request.
    """
    options = inspect.signature(APIRoute).parameters.keys() - {"path", "endpoint", "form_limits", "max_body_size"}
    for context in iter_route_contexts(routes):
        original = context.original_route
        if isinstance(original, APIRoute):
            inherited: dict[str, Any] = {name: getattr(context, name) for name in options}
            inherited |= {"form_limits": original.form_limits, "max_body_size": original.max_body_size}
            inherited |= {"dependency_overrides_provider": app, "generate_unique_id_function": attrgetter("name")}
            app.router.routes.append(FlatRoute(cast(str, context.path), original.endpoint, **inherited))
        else:
            app.router.routes.append(getattr(context, "starlette_route", None) or original)


def lifespan(settings: Settings) -> Callable[[FastAPI], Any]:
    """Open the settings' servers and close them in reverse order, also when a later one cannot be opened."""

    @asynccontextmanager
    async def run(_: FastAPI) -> AsyncIterator[None]:
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
                await stack.enter_async_context(migrations())
            # What is there by now stays: looking through it again and again would hold requests up for 80 ms each time.
            gc.collect()
            gc.freeze()
            # What a few requests under way hold is more than the default, and would be looked through over and over.
            gc.set_threshold(GARBAGE_THRESHOLD)
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
    docs = APIRouter(dependencies=dependencies, include_in_schema=False)

    @docs.get("/openapi.json")
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @docs.get("/docs")
    async def swagger_ui() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url=f"{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @docs.get("/redoc")
    async def redoc() -> Response:
        return get_redoc_html(
            openapi_url="/openapi.json",
            title=app.title,
            redoc_js_url=f"{DOCS_ASSETS}/redoc.standalone.js",
            redoc_favicon_url="data:,",
            with_google_fonts=False,
        )

    add_routes(app, docs.routes)
    app.mount(DOCS_ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")), name="docs_assets")

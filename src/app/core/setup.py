"""Build the application and open its resources; the routers and the guard of the docs are arguments.

The application is made from its settings alone. Global in the process are the default `settings` (`core.config`), the
`default_engines` of scripts and jobs (`core.database`), `queue.pool` (`core.queue`), logging and caches of statements.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app.core import config
from app.core.cache import CacheStore, StoredAnswers, prepare_cached_routes
from app.core.config import EnvironmentOption, Settings
from app.core.database import Engines, default_engines
from app.core.docs import add_docs, document_errors
from app.core.exceptions import DatabaseUnavailableError
from app.core.http.audit import AuditLog
from app.core.http.client_cache import ClientCache
from app.core.http.context import RequestContext
from app.core.http.errors import UnexpectedErrors
from app.core.http.head import HeadRequests
from app.core.http.hosts import TrustedHosts
from app.core.http.limits import BodyLimit, RequestTimeout
from app.core.http.load_shedding import LoadShedding
from app.core.http.websocket_origins import WebSocketOrigins
from app.core.logger import setup_logging
from app.core.queue import QueueClient
from app.core.rate_limit import RateLimiter
from app.core.security import PasswordHasher, TokenSigner

ExceptionHandler = Callable[[Request, Any], Awaitable[Response]]
default_exception_handlers: dict[int | type[Exception], ExceptionHandler] = {}
"""`app.api.exceptions` adds its handlers here."""
# The headers that a page of another origin may read, besides those that browsers always allow.
EXPOSED_HEADERS = ["X-Request-ID", "ETag", "Retry-After", "RateLimit", "RateLimit-Policy"]


class Resources:
    """The objects of one application: made here, opened and closed by its lifespan, found by its requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engines = default_engines if settings is config.settings else Engines(settings)
        self.cache = CacheStore()
        self.queue = QueueClient()
        self.limiter = RateLimiter()
        self.passwords = PasswordHasher(settings)
        self.tokens = TokenSigner(settings)

    @property
    def by_class(self) -> dict[type, Any]:
        """The objects as the accessors of `core.resources.getter` look them up."""
        objects = (self.engines, self.cache, self.queue, self.limiter, self.passwords, self.tokens)
        return {Settings: self.settings, **{type(each): each for each in objects}}

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Open the servers of the settings and close them in reverse order, also when a later one cannot be opened."""
        setup_logging()
        settings = self.settings
        if not settings.SECRET_KEY:
            logging.getLogger(__name__).warning("SECRET_KEY is not set: tokens are valid in this process only")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.engines.close)
            if isinstance(settings, config.RedisCacheSettings):
                self.cache.open(settings, settings.secret_key)
                stack.push_async_callback(self.cache.close)
            if isinstance(settings, config.RedisQueueSettings):
                self.queue.open(settings)
                stack.push_async_callback(self.queue.close)
            if isinstance(settings, config.RedisRateLimiterSettings):
                self.limiter.open(settings)
                stack.push_async_callback(self.limiter.server.close)
            if settings.ENVIRONMENT is EnvironmentOption.LOCAL:
                await _migrate(self.engines)
            yield


def create_application(
    settings: Settings,
    router: APIRouter | Callable[[FastAPI, Settings], None],
    *,
    exception_handlers: Mapping[Any, ExceptionHandler] = default_exception_handlers,
    docs_guard: Callable[..., Any] | None = None,
) -> FastAPI:
    """Build the application for `settings`; `router` is one, or a function that adds those that these settings need.

    Raises InvalidRequestError where `@cache` is used wrongly. The docs are open in the local environment, behind
    `docs_guard`, if there is one, in staging, and absent in production.
    """
    resources = Resources(settings)
    contact = {"name": settings.CONTACT_NAME, "email": settings.CONTACT_EMAIL}
    app = FastAPI(
        title=settings.APP_NAME,
        description=settings.APP_DESCRIPTION or "",
        version=settings.APP_VERSION,
        contact={name: value for name, value in contact.items() if value} or None,
        license_info={"name": settings.LICENSE_NAME} if settings.LICENSE_NAME else None,
        lifespan=resources.lifespan,
        middleware=_middleware(resources),
        exception_handlers=dict(exception_handlers),
        generate_unique_id_function=_operation_ids(),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.resources = resources
    document_errors(app)
    if isinstance(router, APIRouter):
        app.include_router(router)
    else:
        router(app, settings)
    if settings.ENVIRONMENT is EnvironmentOption.LOCAL:
        add_docs(app, [])
    elif settings.ENVIRONMENT is EnvironmentOption.STAGING and docs_guard is not None:
        add_docs(app, [Depends(docs_guard)])
    prepare_cached_routes(app)
    return app


def _operation_ids() -> Callable[[APIRoute], str]:
    """Name each operation after its function; the second one of a name gets its path and method, too."""
    first: dict[str, str] = {}

    def operation_id(route: APIRoute) -> str:
        unique = re.sub(r"\W", "_", f"{route.name}{route.path}_{min(route.methods or ())}").lower()
        is_first = not route.include_in_schema or first.setdefault(route.name, unique) == unique
        return route.name if is_first else unique

    return operation_id


def _middleware(resources: Resources) -> list[Middleware]:
    """The middleware from the outside in. Everything inside RequestContext has its id, headers and resources."""
    settings = resources.settings
    is_secured = isinstance(settings, config.WebSecuritySettings)
    origins = settings.cors_origins if is_secured else []
    hosts = settings.allowed_hosts if is_secured else []
    cors: dict[str, Any] = {
        "allow_origins": origins,
        "allow_credentials": "*" not in origins,
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        "expose_headers": EXPOSED_HEADERS,
    }
    # CORS is outside all others, so that a page of another origin can read every error, too.
    middleware = [Middleware(CORSMiddleware, **cors)] if origins else []
    middleware += [
        Middleware(RequestContext, settings=settings, resources=resources.by_class),
        Middleware(AuditLog, settings=settings),
        Middleware(HeadRequests),
        Middleware(LoadShedding, limit=settings.MAX_CONCURRENT_REQUESTS),
    ]
    middleware += [Middleware(TrustedHosts, allowed_hosts=hosts)] if hosts else []
    middleware += [Middleware(WebSocketOrigins, allowed_origins=origins)] if is_secured else []
    middleware += [
        Middleware(BodyLimit, max_bytes=settings.MAX_BODY_BYTES),
        Middleware(UnexpectedErrors),
        Middleware(RequestTimeout, seconds=settings.REQUEST_TIMEOUT),
    ]
    if isinstance(settings, config.ClientSideCacheSettings):
        middleware.append(Middleware(ClientCache, max_age=settings.CLIENT_CACHE_MAX_AGE))
    if isinstance(settings, config.RedisCacheSettings):
        middleware.append(Middleware(StoredAnswers, store=resources.cache))
    return middleware


async def _migrate(engines: Engines) -> None:
    """Migrate before the first request, or, when the database is not there yet, as soon as it is."""
    # Alembic is imported only where it runs: it takes a tenth of the start.
    from app.core.database.migrations import migrate, migrate_when_reachable  # noqa: PLC0415

    try:
        await migrate(engines)
    except DatabaseUnavailableError:
        engines.background.add(asyncio.create_task(migrate_when_reachable(engines)))

"""Build the application and open its resources; the routers and the guard of the docs are arguments.

Two applications with different settings can run in one process: each has its own `Resources`. They share logging, and
what is used without an application: `settings` (`core.config`), `default_engines` (`core.database`), `queue.pool`.
"""

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
from app.core.docs import add_docs
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

logger = logging.getLogger(__name__)

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
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Open the servers of the settings and close them in reverse order, also when a later one cannot be opened."""
        prepare_cached_routes(app)  # again: routes may have been added since the application was built
        setup_logging()
        settings = self.settings
        if not settings.SECRET_KEY:
            logger.warning("SECRET_KEY is not set: tokens are valid in this process only")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.engines.close)
            if isinstance(settings, config.RedisCacheSettings):
                self.cache.open(settings, settings.secret_key, settings.POSTGRES_STATEMENT_TIMEOUT)
                stack.push_async_callback(self.cache.close)
            if isinstance(settings, config.RedisQueueSettings):
                self.queue.open(settings)
                stack.push_async_callback(self.queue.close)
            if isinstance(settings, config.RedisRateLimiterSettings):
                self.limiter.open(settings)
                stack.push_async_callback(self.limiter.server.close)
            elif isinstance(settings, config.AbuseLimitSettings):
                logger.warning("AbuseLimitSettings without RedisRateLimiterSettings: guesses are not limited")
            if settings.ENVIRONMENT is EnvironmentOption.LOCAL:
                # Alembic is imported only where it runs: it takes a tenth of the start.
                from app.core.database.migrations import migrate_at_start  # noqa: PLC0415

                await migrate_at_start(self.engines)
            yield


def create_application(
    settings: Settings,
    router: APIRouter | Callable[[FastAPI, Settings], None],
    *,
    exception_handlers: Mapping[Any, ExceptionHandler] = default_exception_handlers,
    docs_guard: Callable[..., Any] | None = None,
) -> FastAPI:
    """Build the application for `settings`; `router` is one, or a function that adds those that these settings need.

    The docs are open in `local`. In `staging` they need `docs_guard`, a dependency, and are absent without one; in
    `production` they are absent. Raises InvalidRequestError if an endpoint uses `@cache` in a way that cannot work.
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
    has_client_cache = isinstance(settings, config.ClientSideCacheSettings)
    options: dict[str, Any] = {"allow_methods": ["*"], "allow_headers": ["*"], "allow_credentials": "*" not in origins}
    cors = Middleware(CORSMiddleware, allow_origins=origins, expose_headers=EXPOSED_HEADERS, **options)
    return [
        # Outside all others, so that a page of another origin can read every error, too.
        *([cors] if origins else []),
        Middleware(RequestContext, settings=settings, resources=resources.by_class),
        Middleware(AuditLog, settings=settings),
        Middleware(HeadRequests),
        Middleware(LoadShedding, limit=settings.MAX_CONCURRENT_REQUESTS),
        *([Middleware(TrustedHosts, allowed_hosts=hosts)] if hosts else []),
        *([Middleware(WebSocketOrigins, allowed_origins=origins)] if is_secured else []),
        Middleware(BodyLimit, max_bytes=settings.MAX_BODY_BYTES),
        Middleware(UnexpectedErrors),
        Middleware(RequestTimeout, seconds=settings.REQUEST_TIMEOUT),
        *([Middleware(ClientCache, max_age=settings.CLIENT_CACHE_MAX_AGE)] if has_client_cache else []),
        Middleware(StoredAnswers, store=resources.cache),
    ]

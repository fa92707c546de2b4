"""Dependencies of endpoints: `SessionDep` to write in the request's transaction, `ReaderDep` to read without one, the
calling user, and the guards of routes.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection
from fastapi.security import HTTPBasic, HTTPBasicCredentials, OAuth2PasswordBearer
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.exceptions import ensure_found
from app.api.password_checks import check_password
from app.core.config import DefaultRateLimitSettings, SessionSettings
from app.core.database import Reader, async_get_db, engines_of, get_reader
from app.core.exceptions import ForbiddenError, RateLimitExceededError, UnauthorizedError
from app.core.http import add_response_headers, audit, client_address, route_template, settings_of, tokens_of
from app.core.models import sanitize_path
from app.core.rate_limit import limiter_of
from app.crud.crud_users import crud_users
from app.crud.statements import Lookup
from app.schemas.user import Caller, Username

logger = logging.getLogger(__name__)

SessionDep = Annotated[AsyncSession, Depends(async_get_db)]
ReaderDep = Annotated[Reader, Depends(get_reader)]


class BearerScheme(OAuth2PasswordBearer):
    """FastAPI's scheme, which takes only requests, for WebSockets, too: clients send the same header."""

    async def __call__(self, connection: HTTPConnection) -> str | None:
        return await super().__call__(cast(Request, connection))


_bearer = BearerScheme(tokenUrl="/api/v1/login", scheme_name=OAuth2PasswordBearer.__name__, auto_error=False)
BearerToken = Annotated[str | None, Depends(_bearer)]


async def get_optional_user(connection: HTTPConnection, token: BearerToken) -> Caller | None:
    """The user of the request's token, or None without a token; raises UnauthorizedError for an invalid one.

    One query also finds whether the session is active, and the limit of the user's tier, should `rate_limiter` want it.
    """
    if token is None:
        return None
    named = tokens_of(connection).read(token)
    path = sanitize_path(route_template(connection))
    user = await crud_users.get_caller(engines_of(connection).reader, named.user, named.session, path=path)
    if user is None or (isinstance(settings_of(connection), SessionSettings) and user["session_id"] is None):
        raise UnauthorizedError("The session of this token has ended", challenge='Bearer error="invalid_token"')
    audit.note(connection.scope, who=user["id"])
    return user


# OpenAPI for routes that take a token but need none: `openapi_extra=TOKEN_OPTIONAL`.
TOKEN_OPTIONAL: dict[str, Any] = {"security": [{}]}

OptionalUser = Annotated[Caller | None, Depends(get_optional_user)]


async def get_current_user(user: OptionalUser) -> Caller:
    if user is None:
        raise UnauthorizedError
    return user


CurrentUser = Annotated[Caller, Depends(get_current_user)]


async def get_current_superuser(connection: HTTPConnection, user: CurrentUser) -> Caller:
    if not user["is_superuser"]:
        raise ForbiddenError("Only superusers are allowed to do this")
    audit.note(connection.scope, superuser=True)
    return user


CurrentSuperuser = Annotated[Caller, Depends(get_current_superuser)]


async def get_editable_user_id(username: Username, current_user: CurrentUser, reader: ReaderDep) -> int:
    """The id of the user named in the path, for that user and for superusers. Write by id: a name may change."""
    if username == current_user["username"]:
        return current_user["id"]
    user = ensure_found(await crud_users.get(reader, ["id"], username=username, is_deleted=False), "User")
    # The caller may have taken this name since the token was checked.
    if user["id"] != current_user["id"] and not current_user["is_superuser"]:
        raise ForbiddenError
    return int(user["id"])


EditableUserId = Annotated[int, Depends(get_editable_user_id)]


async def get_own_lookup(username: Username, user_id: EditableUserId, current_user: CurrentUser) -> Lookup:
    """For the user named in the path only: their id as a `Lookup`, for `create` and for filters of writes.

    A write with it locks the name until the commit, since it invalidates cache keys that carry the name.
    """
    if user_id != current_user["id"]:
        raise ForbiddenError
    return crud_users.id_of(username, id=user_id)


OwnLookup = Annotated[Lookup, Depends(get_own_lookup)]


async def guard_docs(
    request: Request,
    user: OptionalUser,
    credentials: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(realm="docs", auto_error=False))],
    reader: ReaderDep,
) -> None:
    """Admit superusers to the docs, by token or by HTTP Basic, for which a browser asks."""
    caller: Mapping[str, Any] | None = user
    if user is None and credentials is not None:
        found = await crud_users.get_credentials(reader, credentials.username)
        audit.note(request.scope, who=found and found["id"], superuser=True)
        if await check_password(request, found, credentials.username, credentials.password):
            caller = found
    if caller is None:
        raise UnauthorizedError("Only superusers may read the docs", challenge='Basic realm="docs", Bearer')
    if not caller["is_superuser"]:
        raise ForbiddenError("Only superusers may read the docs")


async def rate_limiter(connection: HTTPConnection, user: OptionalUser) -> None:
    """Refuse requests beyond the limit of the user's tier on this route, or beyond the default limit."""
    settings, limiter = settings_of(connection), limiter_of(connection)
    if not limiter.server.is_open:
        return
    path = sanitize_path(route_template(connection))
    if user is not None and user["rate_limit"] is not None and user["rate_period"] is not None:
        limit, period = user["rate_limit"], user["rate_period"]
    elif isinstance(settings, DefaultRateLimitSettings):
        limit, period = settings.DEFAULT_RATE_LIMIT_LIMIT, settings.DEFAULT_RATE_LIMIT_PERIOD
        if user is not None and limiter.reports(path):
            values = {"user_id": user["id"], "tier_id": user["tier_id"], "path": path, "limit": limit, "period": period}
            logger.warning("no rate limit for this tier and path, the default is used", extra=values)
    else:
        return
    await _count(connection, user, path, limit, period)


def rate_limit(limit: int, *, per: int) -> Callable[..., Awaitable[None]]:
    """Make a dependency: at most `limit` requests of one client to a route in `per` seconds, whatever its tier."""

    async def limit_route(connection: HTTPConnection, user: OptionalUser) -> None:
        if limiter_of(connection).server.is_open:
            await _count(connection, user, f"{route_template(connection)}:{limit}:{per}", limit, per)

    return limit_route


async def _count(connection: HTTPConnection, user: Caller | None, name: str, limit: int, period: int) -> None:
    """Count a request of the client under the name of a limit; raise RateLimitExceededError beyond it."""
    client = f"user:{user['id']}" if user else f"address:{client_address(connection, settings_of(connection))}"
    quota = await limiter_of(connection).hit(f"{name}:{client}", limit, period)
    if quota is None:
        return
    add_response_headers(connection.scope, quota.headers(name))
    if not quota.allowed:
        raise RateLimitExceededError

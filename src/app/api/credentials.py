"""Passwords and refresh tokens as requests bring them: wrong passwords are counted, refresh tokens live in cookies."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Cookie, Request, Response

from app.core.config import AbuseLimitSettings, EnvironmentOption, SessionSettings, WebSecuritySettings, settings
from app.core.database import Reader
from app.core.exceptions import ForbiddenError, RateLimitExceededError, ServiceUnavailableError
from app.core.models import now
from app.core.rate_limit import client_address, limiter
from app.core.security import RefreshToken, hash_of, verify_password
from app.crud.crud_users import crud_users
from app.schemas.session import Client, RefreshTokenBody
from app.schemas.user import Caller

_is_local = settings.ENVIRONMENT is EnvironmentOption.LOCAL
REFRESH_COOKIE = "refresh_token" if _is_local else "__Secure-refresh_token"
"""Browsers take a name that begins so from HTTPS only."""
# The names of the routes that read the cookie; no other gets it.
REFRESH_ROUTES = ("refresh_access_token", "logout")
# So long an address stays known as one that an account was used from.
KNOWN_SECONDS = 90 * 24 * 3600


def client_of(request: Request) -> Client:
    agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))
    return Client(agent[:255], client_address(request, settings))


def refuse_foreign_page(request: Request) -> None:
    """Refuse a form that a page of another site has sent: it would sign its reader in to an account of its own."""
    if request.headers.get("sec-fetch-site") != "cross-site":
        return
    named = settings.cors_origins if isinstance(settings, WebSecuritySettings) else []
    if not {request.headers.get("origin"), "*"} & {*named}:
        raise ForbiddenError("Pages of other sites cannot sign in here, unless CORS_ORIGINS names them")


# -------- passwords --------


async def check_password(request: Request, user: Mapping[str, Any] | None, name: str, password: str) -> bool:
    """Tell whether it is the password of `user` (None: there is nobody called `name`, which takes as long to find out).

    Wrong ones are counted for the account, for the address, and for both together; beyond a limit this raises
    RateLimitExceededError without a look at the password.
    """
    account = _account(user["id"]) if user else f"name:{hash_of(name.lower())}"
    address = client_address(request, settings)
    counted = await _count_guess(account, address)
    try:
        matches = await verify_password(password, user["hashed_password"] if user else None)
    except ServiceUnavailableError:  # it was not looked at
        await _uncount(counted)
        raise
    if matches and user and counted:
        await _uncount(counted)
        await remember_address(user["id"], address)
    return matches


async def remember_address(user_id: int, address: str) -> None:
    """From here the account was used by its owner: guesses made elsewhere cannot keep it shut here."""
    if limiter.is_open:
        await limiter.remember(f"{_account(user_id)}:{address}", KNOWN_SECONDS)


def _account(user_id: int) -> str:
    return f"user:{user_id}"


async def _count_guess(account: str, address: str) -> list[str]:
    """Count a guess before it is known to be wrong, so that many at once cannot be more than the limit."""
    if not limiter.is_open or not isinstance(settings, AbuseLimitSettings):
        return []
    limits = {f"login:{account}:{address}": (settings.LOGIN_LIMIT, settings.LOGIN_PERIOD)}
    if not await limiter.remembers(f"{account}:{address}"):
        limits[f"login:{account}"] = (settings.LOGIN_LIMIT_PER_ACCOUNT, settings.LOGIN_PERIOD_PER_ACCOUNT)
        limits[f"login:{address}"] = (settings.LOGIN_LIMIT_PER_ADDRESS, settings.LOGIN_PERIOD_PER_ADDRESS)
    counted: list[str] = []
    for key, (limit, period) in limits.items():
        quota = await limiter.hit(key, limit, period)
        if quota is not None and not quota.allowed:
            await _uncount(counted)
            raise RateLimitExceededError(
                "Too many wrong passwords: wait as long as the Retry-After header says", headers=quota.headers("login")
            )
        counted.append(key)
    return counted


async def _uncount(keys: list[str]) -> None:
    for key in keys:
        await limiter.uncount(key)


async def require_password(request: Request, caller: Caller, password: str, db: Reader) -> str:
    """Return the caller's hash if this is the caller's password; raises ForbiddenError."""
    user = await crud_users.get(db, ["id", "hashed_password"], id=caller["id"])
    if user is None or not await check_password(request, user, caller["username"], password):
        raise ForbiddenError("current_password is wrong")
    return str(user["hashed_password"])


async def confirm_caller(request: Request, caller: Caller, password: str | None, db: Reader) -> None:
    """Ask for the caller's password once the session is older than REAUTHENTICATION_MINUTES."""
    began = caller["session_created_at"]
    if not isinstance(settings, SessionSettings) or began is None:
        return
    if now() - began < timedelta(minutes=settings.REAUTHENTICATION_MINUTES):
        return
    if password is None:
        raise ForbiddenError(
            f"You signed in more than {settings.REAUTHENTICATION_MINUTES} minutes ago: send your current_password too"
        )
    await require_password(request, caller, password, db)


async def limit_by_address(request: Request, what: str, limit: int, period: int) -> None:
    """Let `limit` requests pass in `period` seconds from one address."""
    quota = await limiter.hit(f"{what}:{client_address(request, settings)}", limit, period)
    if quota is not None and not quota.allowed:
        raise RateLimitExceededError(headers=quota.headers(what))


# -------- refresh tokens --------


async def get_refresh_token(
    body: RefreshTokenBody | None = None, cookie: Annotated[str | None, Cookie(alias=REFRESH_COOKIE)] = None
) -> tuple[RefreshToken | None, bool]:
    """The refresh token of the request, None without one or for one that is none of ours; and whether it came in the
    body, where its successor then goes too.
    """
    text = body.refresh_token if body else cookie
    return RefreshToken.parse(text) if text else None, body is not None


def set_refresh_cookie(request: Request, response: Response, token: RefreshToken, lifetime: timedelta) -> None:
    for path in _cookie_paths(request):
        response.set_cookie(REFRESH_COOKIE, str(token), int(lifetime.total_seconds()), path=path, **_cookie_flags())


def delete_refresh_cookie(request: Request, response: Response) -> None:
    for path in _cookie_paths(request):
        response.delete_cookie(REFRESH_COOKIE, path=path, **_cookie_flags())


def _cookie_paths(request: Request) -> list[str]:
    return [request.url_for(name).path for name in REFRESH_ROUTES]


def _cookie_flags() -> Any:
    return {
        "secure": not _is_local,
        "httponly": True,
        "samesite": "strict",
    }

"""Checks of passwords: count wrong ones, refuse weak ones, ask callers for theirs again before some changes."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fastapi import Request

from app.api.exceptions import malformed
from app.core.config import AbuseLimitSettings, SessionSettings, Settings
from app.core.database import Reader
from app.core.exceptions import ForbiddenError, RateLimitExceededError, ServiceUnavailableError
from app.core.http import client_address, passwords_of, settings_of
from app.core.models import now
from app.core.rate_limit import Quota, RateLimiter, limiter_of
from app.core.security import hash_of, weakness
from app.crud.crud_users import crud_users
from app.schemas.user import Caller

KNOWN_SECONDS = 90 * 24 * 3600
"""How long an address with a correct password is remembered."""


async def check_password(request: Request, user: Mapping[str, Any] | None, name: str, password: str) -> bool:
    """Tell whether this is the password of `user`; None stands for an unknown `name`, and the check takes as long.

    Wrong ones are counted for the account, for the address, and for both together; beyond a limit this raises
    RateLimitExceededError without checking the password.
    """
    settings, limiter = settings_of(request), limiter_of(request)
    address = client_address(request, settings)
    # An account has two names, so guesses are counted for the typed name too. Only that count is reported: a refusal
    # under both names would reveal that the username and the e-mail address belong together.
    typed = hash_of(name.lower())
    account = f"user:{user['id']}" if user else f"nobody:{typed}"
    is_known = await limiter.remembers(f"{account}:{address}")
    guess = _Guess(settings, limiter, address, is_known)
    refusal = await guess.count(f"name:{typed}")
    if refusal is not None:
        await guess.uncount()
        raise RateLimitExceededError(
            "Too many wrong passwords: wait as long as the Retry-After header says", headers=refusal.headers("login")
        )
    is_used_up = await guess.count(account) is not None
    try:
        hashed = user["hashed_password"] if user and not is_used_up else None
        matches = await passwords_of(request).verify(password, hashed)
    except ServiceUnavailableError:  # the password was not checked
        await guess.uncount()
        raise
    if matches and user:
        await guess.uncount()
        await remember_address(request, user["id"])
    return matches


async def remember_address(request: Request, user_id: int) -> None:
    """Remember that the account's owner used this address: guesses from elsewhere cannot lock the account here."""
    address = client_address(request, settings_of(request))
    await limiter_of(request).remember(f"user:{user_id}:{address}", KNOWN_SECONDS)


@dataclass
class _Guess:
    """The counts of one password, made before it is checked, so that concurrent guesses cannot exceed the limit."""

    settings: Settings
    limiter: RateLimiter
    address: str
    is_known: bool
    counted: list[str] = field(default_factory=list)

    async def count(self, account: str) -> Quota | None:
        """Count a guess for an account; return the limit that is used up, if any."""
        settings, address = self.settings, self.address
        if not isinstance(settings, AbuseLimitSettings):
            return None
        limits = {f"login:{account}:{address}": (settings.LOGIN_LIMIT, settings.LOGIN_PERIOD)}
        if not self.is_known:
            limits[f"login:{account}"] = (settings.LOGIN_LIMIT_PER_ACCOUNT, settings.LOGIN_PERIOD_PER_ACCOUNT)
            if account.startswith("name:"):  # once for each guess
                limits[f"login:{address}"] = (settings.LOGIN_LIMIT_PER_ADDRESS, settings.LOGIN_PERIOD_PER_ADDRESS)
        for key, (limit, period) in limits.items():
            quota = await self.limiter.hit(key, limit, period)
            if quota is None:
                continue
            if not quota.allowed:
                return quota
            self.counted.append(key)
        return None

    async def uncount(self) -> None:
        for key in self.counted:
            await self.limiter.uncount(key)


def refuse_weak_password(password: str, *names: str) -> None:
    """Refuse a weak `new_password`."""
    if reason := weakness(password, *names):
        raise malformed("new_password", reason, "weak_password")


async def require_password(request: Request, caller: Caller, password: str, db: Reader) -> str:
    """Return the caller's hash if this is the caller's password; raises ForbiddenError."""
    user = await crud_users.get(db, ["id", "hashed_password"], id=caller["id"])
    if user is None or not await check_password(request, user, caller["username"], password):
        raise ForbiddenError("current_password is wrong")
    return str(user["hashed_password"])


async def confirm_caller(request: Request, caller: Caller, password: str | None, db: Reader) -> None:
    """Check the caller's password; it is required once the session is older than REAUTHENTICATION_MINUTES."""
    began, settings = caller["session_created_at"], settings_of(request)
    if password is not None:
        await require_password(request, caller, password, db)
    elif isinstance(settings, SessionSettings) and began is not None:
        minutes = settings.REAUTHENTICATION_MINUTES
        if now() - began >= timedelta(minutes=minutes):
            raise ForbiddenError(f"You signed in more than {minutes} minutes ago: send your current_password too")


def limit_by_address(what: str, limit: str, period: str) -> Callable[[Request], Awaitable[None]]:
    """Make a dependency that limits the requests from one address; `limit` and `period` are names of settings."""

    async def refuse_more(request: Request) -> None:
        settings = settings_of(request)
        if isinstance(settings, AbuseLimitSettings):
            key = f"{what}:{client_address(request, settings)}"
            quota = await limiter_of(request).hit(key, getattr(settings, limit), getattr(settings, period))
            if quota is not None and not quota.allowed:
                raise RateLimitExceededError(headers=quota.headers(what))

    return refuse_more

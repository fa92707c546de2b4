"""Passwords as requests bring them: wrong ones are counted, weak ones refused, some asked for once more."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError

from app.core.config import AbuseLimitSettings, SessionSettings, settings
from app.core.database import Reader
from app.core.exceptions import ForbiddenError, RateLimitExceededError, ServiceUnavailableError
from app.core.models import now
from app.core.passwords import weakness
from app.core.rate_limit import Quota, client_address, limiter
from app.core.security import hash_of, verify_password
from app.crud.crud_users import crud_users
from app.schemas.user import Caller

# So long an address stays known as one that an account was used from.
KNOWN_SECONDS = 90 * 24 * 3600


async def check_password(request: Request, user: Mapping[str, Any] | None, name: str, password: str) -> bool:
    """Tell whether it is the password of `user` (None: there is nobody called `name`, which takes as long to find out).

    Wrong ones are counted for the account, for the address, and for both together; beyond a limit this raises
    RateLimitExceededError without a look at the password.
    """
    address = client_address(request, settings)
    counted: list[str] = []
    # An account has two names. What was typed is counted too, and only that is told: if guesses for a username used up
    # those for an e-mail address, everybody could find out whose it is.
    typed = hash_of(name.lower())
    account = _account(user["id"]) if user else f"nobody:{typed}"
    is_known = await limiter.remembers(f"{account}:{address}") if limiter.is_open else False
    refusal = await _count_guess(counted, f"name:{typed}", address, is_known)
    if refusal is not None:
        await _uncount(counted)
        raise RateLimitExceededError(
            "Too many wrong passwords: wait as long as the Retry-After header says", headers=refusal.headers("login")
        )
    is_used_up = await _count_guess(counted, account, address, is_known) is not None
    try:
        matches = await verify_password(password, user["hashed_password"] if user and not is_used_up else None)
    except ServiceUnavailableError:  # it was not looked at
        await _uncount(counted)
        raise
    if matches and user:
        await _uncount(counted)
        await remember_address(user["id"], address)
    return matches


async def remember_address(user_id: int, address: str) -> None:
    """From here the account was used by its owner: guesses made elsewhere cannot keep it shut here."""
    if limiter.is_open:
        await limiter.remember(f"{_account(user_id)}:{address}", KNOWN_SECONDS)


def _account(user_id: int) -> str:
    return f"user:{user_id}"


async def _count_guess(counted: list[str], account: str, address: str, is_known: bool) -> Quota | None:
    """Count a guess before it is known to be wrong, so that many at once cannot be more than the limit.

    The keys are added to `counted`; what is returned has been used up.
    """
    if not isinstance(settings, AbuseLimitSettings):
        return None
    limits = {f"login:{account}:{address}": (settings.LOGIN_LIMIT, settings.LOGIN_PERIOD)}
    if not is_known:
        limits[f"login:{account}"] = (settings.LOGIN_LIMIT_PER_ACCOUNT, settings.LOGIN_PERIOD_PER_ACCOUNT)
        if account.startswith("name:"):  # once for each guess
            limits[f"login:{address}"] = (settings.LOGIN_LIMIT_PER_ADDRESS, settings.LOGIN_PERIOD_PER_ADDRESS)
    for key, (limit, period) in limits.items():
        quota = await limiter.hit(key, limit, period)
        if quota is None:
            continue
        if not quota.allowed:
            return quota
        counted.append(key)
    return None


async def _uncount(keys: list[str]) -> None:
    for key in keys:
        await limiter.uncount(key)


def refuse_weak_password(password: str, field: str, *names: str) -> None:
    """Refuse what a guesser would try early, in the form of any malformed field."""
    if reason := weakness(password, *names):
        raise RequestValidationError([{"type": "weak_password", "loc": ("body", field), "msg": reason}])


async def require_password(request: Request, caller: Caller, password: str, db: Reader) -> str:
    """Return the caller's hash if this is the caller's password; raises ForbiddenError."""
    user = await crud_users.get(db, ["id", "hashed_password"], id=caller["id"])
    if user is None or not await check_password(request, user, caller["username"], password):
        raise ForbiddenError("current_password is wrong")
    return str(user["hashed_password"])


async def confirm_caller(request: Request, caller: Caller, password: str | None, db: Reader) -> None:
    """Check the caller's password, which must be there once the session is older than REAUTHENTICATION_MINUTES."""
    began = caller["session_created_at"]
    if password is not None:
        await require_password(request, caller, password, db)
    elif isinstance(settings, SessionSettings) and began is not None:
        minutes = settings.REAUTHENTICATION_MINUTES
        if now() - began >= timedelta(minutes=minutes):
            detail = f"You signed in more than {minutes} minutes ago: send your current_password too"
            raise ForbiddenError(detail)


async def limit_by_address(request: Request, what: str, limit: int, period: int) -> None:
    """Let `limit` requests pass in `period` seconds from one address."""
    quota = await limiter.hit(f"{what}:{client_address(request, settings)}", limit, period)
    if quota is not None and not quota.allowed:
        raise RateLimitExceededError(headers=quota.headers(what))

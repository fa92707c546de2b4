"""Factories for rows: each function commits one row and returns it. Values that a test omits have defaults."""

from datetime import timedelta
from itertools import count
from typing import Any

from app.core.config import settings
from app.core.database import transaction
from app.core.models import now
from app.core.security import PasswordHasher, hash_of
from app.crud.crud_password_resets import crud_password_resets
from app.crud.crud_posts import crud_posts
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_tier import crud_tiers
from app.crud.crud_users import crud_users
from app.models.post import Post
from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from app.models.user import User
from app.schemas.post import PostCreate
from app.schemas.rate_limit import RateLimitCreate
from app.schemas.session import Client
from app.schemas.tier import TierCreate
from app.schemas.user import UserCreateInternal

PASSWORD = settings.TEST_PASSWORD.get_secret_value()
CLIENT = Client(user_agent="", address="")
ADMIN_PASSWORD = settings.ADMIN_PASSWORD.get_secret_value()

hasher = PasswordHasher(settings)
_numbers = count(1)
_hashes: dict[str, str] = {}
passwords: dict[str, str] = {}
"""Passwords by username."""


async def make_user(*, password: str = PASSWORD, **values: Any) -> User:
    """Make a user; the default password is TEST_PASSWORD."""
    if password not in _hashes:
        _hashes[password] = await hasher.hash(password)
    username = values.pop("username", f"user{next(_numbers)}")
    passwords[username] = password
    values = {"name": "Some User", "email": f"{username}@example.com", **values}
    internal = UserCreateInternal(username=username, hashed_password=_hashes[password], **values)
    async with transaction() as db:
        return await crud_users.create(db, internal)


async def make_test_user() -> User:
    """Make the user that TEST_NAME, TEST_EMAIL and TEST_USERNAME describe."""
    return await make_user(name=settings.TEST_NAME, email=settings.TEST_EMAIL, username=settings.TEST_USERNAME)


async def make_superuser(**values: Any) -> User:
    """Make a superuser; the default password is ADMIN_PASSWORD."""
    return await make_user(**{"password": ADMIN_PASSWORD, "is_superuser": True, **values})


async def make_admin() -> User:
    """Make the superuser that ADMIN_NAME, ADMIN_EMAIL and ADMIN_USERNAME describe."""
    return await make_superuser(name=settings.ADMIN_NAME, email=settings.ADMIN_EMAIL, username=settings.ADMIN_USERNAME)


async def make_post(user: User, **values: Any) -> Post:
    values = {"title": "A title", "text": "Some text.", **values}
    async with transaction() as db:
        return await crud_posts.create(db, PostCreate(**values), created_by_user_id=user.id)


async def make_password_reset(user: User, token: str, *, seconds: float = 60) -> None:
    """Store the token as a password reset that is valid for `seconds`, as if it had been mailed."""
    async with transaction() as db:
        expires_at = now() + timedelta(seconds=seconds)
        await crud_password_resets.issue(db, user.id, user.email, hash_of(token), expires_at)


async def make_tier(name: str | None = None) -> Tier:
    async with transaction() as db:
        return await crud_tiers.create(db, TierCreate(name=name or f"tier{next(_numbers)}"))


async def make_rate_limit(tier: Tier, **values: Any) -> RateLimit:
    """Make a rate limit for a tier. The default `path`, in its sanitized form, is the route that makes tasks."""
    values = {"path": "api_v1_tasks_task", "limit": 5, "period": 60, "name": f"limit{next(_numbers)}", **values}
    async with transaction() as db:
        return await crud_rate_limits.create(db, RateLimitCreate(**values), tier_id=tier.id)

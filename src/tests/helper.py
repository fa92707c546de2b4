"""Helpers that many tests share."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx

from app.models.user import User
from tests.factories import passwords

T = TypeVar("T")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def get_token(username: str, password: str, client: httpx.AsyncClient) -> str:
    """Sign in through the API and return the token."""
    response = await client.post("/api/v1/login", data={"username": username, "password": password})
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


_get_token = get_token  # the name that older tests import


async def sign_in(client: httpx.AsyncClient, user: User) -> dict[str, str]:
    """Sign in as a user that a factory made; return the headers to send."""
    return {"Authorization": f"Bearer {await get_token(user.username, passwords[user.username], client)}"}


def assert_unauthorized(response: httpx.Response) -> None:
    """Assert a 401 whose `WWW-Authenticate` header names the Bearer scheme."""
    assert response.status_code == 401, response.text
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert list(response.json()) == ["detail"]


def assert_error(response: httpx.Response, status_code: int, detail: str) -> None:
    assert (response.status_code, response.json()) == (status_code, {"detail": detail})


@asynccontextmanager
async def running(*work: Awaitable[T]) -> AsyncIterator["list[asyncio.Future[T]]"]:
    """Run tasks beside the block, and wait for their end after it. If the block fails, cancel them."""
    tasks: list[asyncio.Future[T]] = [asyncio.ensure_future(each) for each in work]
    try:
        yield tasks
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
    finally:
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks, return_exceptions=True)


async def wait_until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Poll until the condition holds; raise TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.002)


def public(user: User) -> dict[str, Any]:
    """Return the body that every client gets for a user."""
    return {
        "id": user.id,
        "name": user.name,
        "username": user.username,
        "profile_image_url": user.profile_image_url,
        "tier_id": user.tier_id,
    }


def own(user: User) -> dict[str, Any]:
    """Return the body that the user and superusers get for a user."""
    return {**public(user), "email": user.email, "is_superuser": user.is_superuser}


def is_recent(moment: datetime | str | None) -> bool:
    """Return whether a moment is aware, in UTC and within the last minute; arq rounds up to the next millisecond."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return (
        moment is not None
        and moment.utcoffset() == timedelta(0)
        and timedelta(milliseconds=-1) <= datetime.now(UTC) - moment < timedelta(minutes=1)
    )

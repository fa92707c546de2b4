"""Two applications with different settings in one process: each uses only its own settings and resources."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.core.config import EnvironmentOption, settings
from app.models.user import User
from tests.factories import PASSWORD
from tests.fixtures import RedisRoles, open_client
from tests.helper import sign_in
from tests.integration.own_app import build_specimen
from tests.specimen.factories import make_moth

SIGN_UP = {"name": "Other", "username": "other", "email": "other@example.com", "password": PASSWORD}
FRIEND = "https://app.example.com"


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


@dataclass
class Pair:
    first: httpx.AsyncClient
    second: httpx.AsyncClient


@pytest.fixture
async def pair(client: httpx.AsyncClient, specimen_database: str) -> AsyncIterator[Pair]:
    """The application of the specimen, and one with another environment, database, keys and limits."""
    other = build_specimen(
        APP_NAME="The other",
        ENVIRONMENT=EnvironmentOption.STAGING,
        SECRET_KEY=SecretStr("0123456789abcdef" * 4),
        ACCESS_TOKEN_EXPIRE_MINUTES=1,
        BCRYPT_COST=settings.BCRYPT_COST + 1,
        POSTGRES_DB=specimen_database,
        # The applications use different Redis databases: neither may find the other's keys.
        REDIS_CACHE_DB=settings.REDIS_QUEUE_DB,
        REDIS_QUEUE_DB=settings.REDIS_RATE_LIMIT_DB,
        REDIS_RATE_LIMIT_DB=settings.REDIS_CACHE_DB,
        DEFAULT_RATE_LIMIT_LIMIT=1,
        MAX_BODY_BYTES=500,
        CORS_ORIGINS=FRIEND,
        CLIENT_CACHE_MAX_AGE=7,
        LOGIN_LIMIT=2,
    )
    async with AsyncExitStack() as stack:
        yield Pair(client, await stack.enter_async_context(open_client(other)))


async def test_rows(pair: Pair, user: User) -> None:
    assert (await pair.second.post("/api/v1/user", json=SIGN_UP)).status_code == 201
    assert (await pair.first.get("/api/v1/user/other")).status_code == 404
    assert (await pair.second.get(f"/api/v1/user/{user.username}")).status_code == 404


async def test_tokens_cookies_and_hashes(pair: Pair, user: User) -> None:
    await pair.second.post("/api/v1/user", json=SIGN_UP)
    answer = await pair.second.post("/api/v1/login", data={"username": "other", "password": PASSWORD})
    assert "__Secure-refresh_token" in answer.headers["set-cookie"]
    second = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    first = await sign_in(pair.first, user)
    assert (await pair.first.get("/api/v1/user/me", headers=first)).json()["username"] == user.username
    assert (await pair.second.get("/api/v1/user/me", headers=second)).json()["username"] == "other"
    assert (await pair.first.get("/api/v1/user/me", headers=second)).status_code == 401
    assert (await pair.second.get("/api/v1/user/me", headers=first)).status_code == 401


async def test_cache_queue_and_limits(pair: Pair, user: User, redis: RedisRoles) -> None:
    moth = await make_moth(user)
    url = f"/api/v1/{user.username}/moth/{moth.id}"
    for _ in range(2):
        assert (await pair.first.get(url)).status_code == 200
    assert (await pair.second.get(url)).status_code == 404
    assert await redis.cache.exists(f"{user.username}_moth_cache:{moth.id}") == 1
    answers = [await pair.second.post("/api/v1/specimen/job?message=x") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 429]
    job = f"/api/v1/specimen/job/{answers[0].json()['id']}"
    assert (await pair.second.get(job)).json() == {"status": "queued"}
    assert (await pair.first.get(job)).json() == {"status": "not_found"}
    assert await redis.queue.exists("arq:queue") == 0
    assert await redis.rate_limit.zcard("arq:queue") == 1
    assert (await pair.first.post("/api/v1/specimen/job?message=x")).status_code == 201
    assert await redis.queue.zcard("arq:queue") == 1


async def test_middleware_uses_own_settings(pair: Pair) -> None:
    origin = {"Origin": FRIEND}
    answers = [await client.get("/api/v1/users", headers=origin) for client in (pair.first, pair.second)]
    assert [answer.headers.get("access-control-allow-origin") for answer in answers] == [None, FRIEND]
    assert [answer.headers["cache-control"] for answer in answers] == ["public, max-age=60", "public, max-age=7"]
    assert ["strict-transport-security" in answer.headers for answer in answers] == [False, True]
    big = b" " * 501
    assert [(await client.post("/api/v1/login", content=big)).status_code for client in (pair.first, pair.second)] == [
        422,
        413,
    ]
    docs = [(await client.get("/docs")).status_code for client in (pair.first, pair.second)]
    assert docs == [200, 401]


async def test_cursors_are_signed_for_one_of_them(pair: Pair, user: User, superuser: User) -> None:
    cursor = (await pair.first.get("/api/v1/users?items_per_page=1")).json()["next_cursor"]
    assert (await pair.first.get(f"/api/v1/users?cursor={cursor}")).status_code == 200
    assert (await pair.second.get(f"/api/v1/users?cursor={cursor}")).status_code == 422


async def test_guesses_are_counted_by_the_limits_of_each(pair: Pair, user: User) -> None:
    await pair.second.post("/api/v1/user", json=SIGN_UP)
    form = {"username": "other", "password": "wrong"}
    answers = [(await pair.second.post("/api/v1/login", data=form)).status_code for _ in range(3)]
    assert answers == [401, 401, 429]
    form["username"] = user.username
    assert {(await pair.first.post("/api/v1/login", data=form)).status_code for _ in range(5)} == {401}

"""Removing a settings group from `class Settings(...)` switches off its feature only."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.models.user import User
from scripts.servers import HOST, free_port
from tests.environment import SRC
from tests.factories import PASSWORD
from tests.fixtures import RedisRoles, RunningServer, RunProgram, RunServer
from tests.helper import sign_in
from tests.integration.own_app import copy_without
from tests.specimen.factories import make_moth
from tests.specimen.main import SPECIMEN

API = "/api/v1"
JOB = f"{API}/specimen/job"
OPTIONAL = (
    "SessionSettings",
    "AbuseLimitSettings",
    "MailSettings",
    "WebSecuritySettings",
    "RedisCacheSettings",
    "ClientSideCacheSettings",
    "RedisQueueSettings",
    "RedisRateLimiterSettings",
    "DefaultRateLimitSettings",
    "FirstUserSettings",
    "TestSettings",
)
FOR_SCRIPTS_AND_TESTS = OPTIONAL[-2:]
WEB_SECURITY = {"CORS_ORIGINS": "https://app.example.com", "ALLOWED_HOSTS": HOST}

StartWithout = Callable[..., Awaitable[RunningServer]]


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


@pytest.fixture
def start_without(run_server: RunServer, tmp_path: Path) -> StartWithout:
    """Start a copy of the service without these settings groups and without their servers."""

    async def start(*groups: str) -> RunningServer:
        copy = copy_without(tmp_path, *groups)
        roles = {"RedisCacheSettings": "CACHE", "RedisQueueSettings": "QUEUE", "RedisRateLimiterSettings": "RATE_LIMIT"}
        nowhere = {f"REDIS_{roles[group]}_PORT": str(free_port()) for group in groups if group in roles}
        environment = {**nowhere, **WEB_SECURITY, "DEFAULT_RATE_LIMIT_LIMIT": "2"}
        return await run_server(app=SPECIMEN, environment=environment, cwd=copy)

    return start


async def check(server: RunningServer, user: User, *groups: str) -> None:
    """Check that all features work as they should without these groups."""
    client = server.client
    headers = await sign_in(client, user)
    await check_moths(client, user, headers)

    moths = await client.get(f"{API}/{user.username}/moths")
    expected = None if "ClientSideCacheSettings" in groups else "public, max-age=60"
    assert moths.headers.get("Cache-Control") == expected

    await check_web_security(client, *groups)
    await check_jobs(client, headers, *groups)
    await check_accounts(client, user, headers, *groups)
    dependencies = (await client.get("/health/ready")).json()["dependencies"]
    roles = {"RedisCacheSettings": "cache", "RedisQueueSettings": "queue", "RedisRateLimiterSettings": "rate limit"}
    left = {role: "up" for group, role in roles.items() if group not in groups}
    assert dependencies == {"postgresql": "up", **left}
    assert "redis server away" not in server.output
    assert "Traceback" not in server.output


async def check_moths(client: httpx.AsyncClient, user: User, headers: dict[str, str]) -> None:
    moth = await make_moth(user, title="before")
    path = f"{API}/{user.username}/moth/{moth.id}"
    for title in ("one", "two"):
        assert (await client.patch(path, json={"title": title}, headers=headers)).status_code == 200
        assert [(await client.get(path)).json()["title"] for _ in range(2)] == [title] * 2
    body = {"title": "more", "text": "text"}
    assert (await client.post(f"{API}/{user.username}/moth", json=body, headers=headers)).status_code == 201


async def check_web_security(client: httpx.AsyncClient, *groups: str) -> None:
    is_on = "WebSecuritySettings" not in groups
    answer = await client.get(f"{API}/users", headers={"Origin": "https://app.example.com"})
    assert ("access-control-allow-origin" in answer.headers) is is_on
    foreign = await client.get(f"{API}/users", headers={"Host": "evil.example"})
    assert foreign.status_code == (400 if is_on else 200)


async def check_jobs(client: httpx.AsyncClient, headers: dict[str, str], *groups: str) -> None:
    jobs = [await client.post(JOB, params={"message": "x"}) for _ in range(3)]
    documented = JOB in (await client.get("/openapi.json")).json()["paths"]
    if "RedisQueueSettings" in groups:
        assert {job.status_code for job in jobs} == {404}
        assert not documented
        return
    assert documented
    if {"RedisRateLimiterSettings", "DefaultRateLimitSettings"} & set(groups):
        assert [job.status_code for job in jobs] == [201] * 3
        assert "RateLimit" not in jobs[0].headers
    else:
        assert [job.status_code for job in jobs] == [201, 201, 429]
        assert "RateLimit" in jobs[0].headers


async def check_accounts(client: httpx.AsyncClient, user: User, headers: dict[str, str], *groups: str) -> None:
    with_sessions = "SessionSettings" not in groups
    assert (await client.get(f"{API}/user/me", headers=headers)).status_code == 200
    sessions = await client.get(f"{API}/user/me/sessions", headers=headers)
    assert sessions.status_code == (200 if with_sessions else 404)
    form = {"username": user.username, "password": PASSWORD}
    signed_in = await client.post(f"{API}/login?refresh_in_body=true", data=form)
    assert ("refresh_token" in signed_in.json()) is with_sessions
    assert bool(signed_in.headers.get_list("Set-Cookie")) is with_sessions
    assert (await client.post(f"{API}/refresh")).status_code == (200 if with_sessions else 404)
    with_mail = not {"MailSettings", "RedisQueueSettings"} & set(groups)
    forgotten = await client.post(f"{API}/password/forgot", json={"email": user.email})
    assert forgotten.status_code == (202 if with_mail else 404)
    guesses = [await client.post(f"{API}/login", data={**form, "password": "wrong"}) for _ in range(11)]
    with_limits = not {"AbuseLimitSettings", "RedisRateLimiterSettings"} & set(groups)
    assert [guess.status_code for guess in guesses] == [401] * 10 + ([429] if with_limits else [401])
    change = {"current_password": PASSWORD, "new_password": "N3w&better"}
    changed = await client.post(f"{API}/user/me/password", json=change, headers=headers)
    assert changed.status_code == (429 if with_limits else 200)


@pytest.mark.parametrize("groups", [*([group] for group in OPTIONAL[:-2]), FOR_SCRIPTS_AND_TESTS], ids=" ".join)
async def test_left_out(start_without: StartWithout, user: User, redis: RedisRoles, groups: Sequence[str]) -> None:
    server = await start_without(*groups)
    await check(server, user, *groups)
    await server.client.get(f"{API}/{user.username}/moths")
    assert bool(await redis.cache.keys()) is ("RedisCacheSettings" not in groups)


async def test_all_of_them_left_out(start_without: StartWithout, user: User) -> None:
    server = await start_without(*OPTIONAL)
    await check(server, user, *OPTIONAL)


@pytest.mark.parametrize(
    ("group", "command"),
    [
        ("EnvironmentSettings", ["gunicorn", "app.main:app", "-b", f"{HOST}:1", "--no-control-socket"]),
        ("AppSettings", ["uvicorn", "app.main:app", "--port", "1"]),
        ("PostgresSettings", ["alembic", "current"]),
        ("RedisQueueSettings", ["arq", "app.worker.WorkerSettings"]),
        *(("FirstUserSettings", [f"scripts.{file.stem}"]) for file in (SRC / "scripts").glob("create_first_*.py")),
    ],
)
async def test_process_that_needs_the_group_names_it(
    run_program: RunProgram, tmp_path: Path, group: str, command: list[str]
) -> None:
    program = await run_program(*command, cwd=copy_without(tmp_path, group))
    assert await program.wait() != 0
    assert f"{group} is needed here: let the class Settings inherit it\n" in program.output
    assert "Traceback" not in program.output

"""A cache server without free memory: the keys that it evicts, and the answers of the service."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from app.models.user import User
from scripts.dev import CACHE_SETTINGS, QUEUE_SETTINGS
from scripts.servers import HOST, Valkey
from tests.environment import SRC
from tests.fixtures import RunningServer, RunServer
from tests.specimen.factories import make_moth
from tests.specimen.main import SPECIMEN

pytestmark = pytest.mark.drill

API = "/api/v1"
MOTHS = 60
TASKS = 30


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


def compose_settings() -> dict[str, str]:
    """Return the settings of the single server in `docker-compose.yml`."""
    text = (SRC.parent / "docker-compose.yml").read_text()
    command = re.search(r"command: redis-server (.*)", text)
    assert command is not None
    return dict(re.findall(r"--(\S+) (\S+)", command[1]))


@pytest.fixture
def server_settings() -> Mapping[str, str]:
    return compose_settings()


@pytest.fixture
async def valkey(tmp_path: Path, server_settings: Mapping[str, str]) -> AsyncIterator[Valkey]:
    with Valkey(tmp_path / "valkey", settings=server_settings) as server:
        yield server


@pytest.fixture
async def full(valkey: Valkey) -> AsyncIterator["Redis"]:
    """The server with too little memory for the answers of these tests."""
    async with Redis(host=HOST, port=valkey.port) as client:
        await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] + 2_000_000)
        yield client


async def read_much(server: RunningServer, user: User, moths: Mapping[int, str], at_once: int = 10) -> None:
    """Read and check lists of all lengths, several times as much as fits into the memory."""

    async def read(size: int) -> None:
        answer = await server.client.get(f"{API}/{user.username}/moths?items_per_page={size}")
        assert answer.status_code == 200
        assert {moth["id"]: moth["title"] for moth in answer.json()["data"]} == dict([*moths.items()][:size])

    for begin in range(1, MOTHS, at_once):
        await asyncio.gather(*(read(size) for size in range(begin, begin + at_once)))


async def make_moths(user: User) -> dict[int, str]:
    moths = [await make_moth(user, text="text " * 1000) for _ in range(MOTHS)]
    return {moth.id: moth.title for moth in moths}


@pytest.mark.parametrize("server_settings", [CACHE_SETTINGS, compose_settings(), {"maxmemory-policy": "noeviction"}])
async def test_reads_are_right_and_writes_go_on(
    full: "Redis", valkey: Valkey, run_server: RunServer, user: User, user_headers: dict[str, str], server_settings: Any
) -> None:
    server = await run_server(app=SPECIMEN, environment=valkey.environment("CACHE"))
    moths = await make_moths(user)
    for number, moth_id in enumerate([*moths][:3]):
        await read_much(server, user, moths)
        moths[moth_id] = f"new {number}"
        answer = await server.client.patch(
            f"{API}/{user.username}/moth/{moth_id}", json={"title": moths[moth_id]}, headers=user_headers
        )
        assert answer.status_code == 200
    await read_much(server, user, moths)
    if server_settings["maxmemory-policy"] == "noeviction":
        assert "OutOfMemoryError" in server.output
    else:
        assert (await full.info("stats"))["evicted_keys"] > 0
        assert "redis server away" not in server.output


async def test_no_job_is_dropped_where_one_server_serves_all(
    full: "Redis", valkey: Valkey, run_server: RunServer, user: User, user_headers: dict[str, str]
) -> None:
    environment = valkey.environment("CACHE", "QUEUE", "RATE_LIMIT")
    databases = {f"REDIS_{role}_DB": "0" for role in ("CACHE", "QUEUE", "RATE_LIMIT")}
    server = await run_server(
        app=SPECIMEN, environment={**environment, **databases, "DEFAULT_RATE_LIMIT_LIMIT": str(TASKS)}
    )
    moths = await make_moths(user)

    async def make_task() -> str:
        answer = await server.client.post(f"{API}/specimen/job?message={'x' * 100}", headers=user_headers)
        assert answer.status_code == 201
        return str(answer.json()["id"])

    # One at a time, because answers in output buffers count as used memory and could exceed the free memory.
    ids = [await make_task() for _ in range(TASKS // 2)]
    await read_much(server, user, moths, at_once=1)
    ids += [await make_task() for _ in range(TASKS // 2)]
    await read_much(server, user, moths, at_once=1)
    assert (await full.info("stats"))["evicted_keys"] > 0
    assert await full.exists(*(f"arq:job:{job_id}" for job_id in ids)) == TASKS
    assert await full.zcard("arq:queue") == TASKS


@pytest.mark.parametrize(
    ("server_settings", "policy"),
    [(CACHE_SETTINGS, "allkeys-lru"), (QUEUE_SETTINGS, "noeviction"), (compose_settings(), "volatile-ttl")],
)
async def test_settings_are_in_force(valkey: Valkey, policy: str) -> None:
    async with Redis(host=HOST, port=valkey.port, decode_responses=True) as client:
        answer = await client.config_get("*")
    assert answer["maxmemory-policy"] == policy
    # Servers that may evict keys have a memory limit; the others are persistent.
    assert (int(answer["maxmemory"]) > 0) is (policy != "noeviction")
    assert answer["appendonly"] == ("no" if policy == "allkeys-lru" else "yes")

"""Servers that are killed, paused or not there yet, one at a time: what is still answered, and how all recovers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from app.core.config import settings
from app.core.exceptions import RedisUnavailableError
from app.core.redis import RedisServer
from app.models.user import User
from scripts.servers import HOST, Postgres, Server, Valkey, free_port
from tests.factories import make_post
from tests.fixtures import HeadersFor, RunningServer, RunServer

API = "/api/v1"
TASK = f"{API}/tasks/task"
MESSAGE = {"message": "x"}
# No answer may take longer; it says that a wait is bounded, not how fast anything is.
BOUND = 10


# What the service waits for by default; other tests have more patience.
DEFAULTS = {"REDIS_CACHE_TIMEOUT": "0.2", "REDIS_QUEUE_TIMEOUT": "1", "REDIS_RATE_LIMIT_TIMEOUT": "1"}


async def start(server: Server) -> None:
    await asyncio.to_thread(server.start)


async def kill(server: Server) -> None:
    await asyncio.to_thread(server.stop, signal.SIGKILL)


def pause(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGSTOP)


def resume(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGCONT)


async def away(server: Server, how: str) -> None:
    await kill(server) if how == "killed" else pause(server)


async def back(server: Server, how: str) -> None:
    await start(server) if how == "killed" else resume(server)


@contextmanager
def all_processes_paused(server: Server) -> Iterator[None]:
    main = psutil.Process(server.process.pid)
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


WAYS = pytest.mark.parametrize("how", ["killed", "paused"])


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server
        if server.process.returncode is None:
            resume(server)


async def readiness(server: RunningServer) -> tuple[int, dict[str, str]]:
    response = await server.client.get("/health/ready", timeout=BOUND)
    return response.status_code, response.json()["dependencies"]


async def wait_until(server: RunningServer, role: str, state: str) -> None:
    async def has_state() -> bool:
        return (await readiness(server))[1][role] == state

    await server.wait_until(has_state, f"{role} is not {state}")


def outages(server: RunningServer, role: str) -> tuple[int, int]:
    """How often the log says that a Redis server went away, and that it came back."""
    lines = [line for line in server.output.splitlines() if f'role="{role}"' in line]
    return sum("redis server away" in line for line in lines), sum("redis server back" in line for line in lines)


@dataclass
class Blog:
    """Two processes of the API, one cache, and a user with a post."""

    servers: list[RunningServer]
    valkey: Valkey
    path: str
    headers: dict[str, str]

    async def read(self, server: RunningServer) -> str:
        response = await server.client.get(self.path, timeout=BOUND)
        assert response.status_code == 200
        return str(response.json()["text"])

    async def write(self, server: RunningServer, text: str) -> None:
        response = await server.client.patch(self.path, json={"text": text}, headers=self.headers, timeout=BOUND)
        assert response.status_code == 200

    async def is_cached(self, server: RunningServer) -> bool:
        """Whether what is stored is served: it is changed behind the service's back."""
        await server.client.get(self.path)
        client = self.client()
        try:
            key = (await client.keys("*_post_cache:*"))[0]
            stored = await client.get(key)
            await client.set(key, b'{"text": "from the cache"}', ex=60)
            served = await self.read(server) == "from the cache"
            await client.set(key, stored or b"", ex=60)
        except (IndexError, OSError):
            return False
        finally:
            await client.aclose()
        return served

    def client(self) -> "Redis":
        return Redis(host=HOST, port=self.valkey.port, db=settings.REDIS_CACHE_DB)


class TestCache:
    @pytest.fixture
    async def blog(
        self, valkey: Valkey, run_server: RunServer, client: httpx.AsyncClient, headers_for: HeadersFor, user: User
    ) -> Blog:
        environment = {**DEFAULTS, **valkey.environment("CACHE")}
        servers = await asyncio.gather(*(run_server(environment=environment) for _ in range(2)))
        post = await make_post(user, text="0")
        return Blog([*servers], valkey, f"{API}/{user.username}/post/{post.id}", await headers_for(user))

    @WAYS
    async def test_reads_and_writes_go_on_and_nothing_is_stale_afterwards(self, blog: Blog, how: str) -> None:
        first = blog.servers[0]
        for server in blog.servers:
            assert await blog.is_cached(server)
        await away(blog.valkey, how)
        assert await blog.read(first) == "0"
        for number in range(1, 4):
            await blog.write(first, str(number))
            assert [await blog.read(server) for server in blog.servers] == [str(number)] * 2
        for server in blog.servers:
            status, dependencies = await readiness(server)
            assert (status, dependencies["cache"]) == (200, "down")
        await back(blog.valkey, how)
        for number in range(4, 20):
            # Now through the one, now through the other, while both find out that the cache is back.
            await blog.write(blog.servers[number % 2], str(number))
            assert [await blog.read(server) for server in blog.servers] == [str(number)] * 2
        for server in blog.servers:
            await server.wait_until(lambda server=server: blog.is_cached(server), "the cache is not used again")  # type: ignore[misc]
            assert outages(server, "cache") == (1, 1)
        if how == "paused":
            await self.check_process_that_did_not_notice(blog)

    async def check_process_that_did_not_notice(self, blog: Blog) -> None:
        """The one writes while the cache is away, the other asks nothing meanwhile."""
        first = blog.servers[0]
        pause(blog.valkey)
        await blog.write(first, "the last")
        resume(blog.valkey)
        assert [await blog.read(server) for server in blog.servers] == ["the last"] * 2

    async def test_start_without_it(self, run_server: RunServer, user: User) -> None:
        server = await run_server(environment={**DEFAULTS, "REDIS_CACHE_PORT": str(free_port())})
        for _ in range(5):
            assert (await server.client.get(f"{API}/{user.username}/posts", timeout=BOUND)).status_code == 200
        assert outages(server, "cache invalidation") == (1, 0)  # what a process begins with; it reads nothing before


class TestRateLimiter:
    @WAYS
    async def test_requests_pass_and_are_counted_again_afterwards(
        self, valkey: Valkey, run_server: RunServer, how: str
    ) -> None:
        environment = {**DEFAULTS, **valkey.environment("RATE_LIMIT"), "DEFAULT_RATE_LIMIT_LIMIT": "2"}
        server = await run_server(environment=environment)

        async def statuses(times: int) -> list[int]:
            answers = [await server.client.post(TASK, params=MESSAGE, timeout=BOUND) for _ in range(times)]
            return [answer.status_code for answer in answers]

        async def is_limited() -> bool:
            return await statuses(1) == [429]

        assert await statuses(3) == [201, 201, 429]
        await away(valkey, how)
        assert await statuses(10) == [201] * 10
        assert (await readiness(server))[1]["rate limit"] == "down"
        await back(valkey, how)
        await server.wait_until(is_limited, "the limit is not applied again")
        assert outages(server, "rate limit") == (1, 1)

    async def test_requests_are_refused_when_told_so(self, valkey: Valkey, run_server: RunServer) -> None:
        server = await run_server(
            environment={**DEFAULTS, **valkey.environment("RATE_LIMIT"), "RATE_LIMIT_FAIL_OPEN": "false"}
        )
        await kill(valkey)
        for _ in range(3):
            response = await server.client.post(TASK, params=MESSAGE, timeout=BOUND)
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            assert response.json() == {"detail": "The rate limit server is away: try again"}
        assert (await server.client.get(f"{API}/users", timeout=BOUND)).status_code == 200
        await start(valkey)

        async def passes() -> bool:
            return (await server.client.post(TASK, params=MESSAGE)).status_code == 201

        await server.wait_until(passes, "requests are still refused")


class TestQueue:
    @WAYS
    async def test_tasks_are_refused_until_it_is_back(self, valkey: Valkey, run_server: RunServer, how: str) -> None:
        server = await run_server(
            environment={**DEFAULTS, **valkey.environment("QUEUE"), "DEFAULT_RATE_LIMIT_LIMIT": "1000"}
        )
        job_id = (await server.client.post(TASK, params=MESSAGE)).json()["id"]
        await away(valkey, how)
        for _ in range(3):
            for method, path in (("POST", TASK), ("GET", f"{TASK}/{job_id}")):
                response = await server.client.request(method, path, params=MESSAGE, timeout=BOUND)
                assert response.status_code == 503
                assert response.headers["Retry-After"] == "1"
                assert response.json() == {"detail": "The queue server is away: try again"}
                assert ("RateLimit" in response.headers) is (method == "POST")
        status, dependencies = await readiness(server)
        assert (status, dependencies["queue"]) == (200, "down")
        assert (await server.client.get(f"{API}/users", timeout=BOUND)).status_code == 200
        await back(valkey, how)

        async def accepts() -> bool:
            return (await server.client.post(TASK, params=MESSAGE)).status_code == 201

        await server.wait_until(accepts, "tasks are still refused")
        assert outages(server, "queue") == (1, 1)


async def test_server_is_left_alone_after_a_try_however_long_it_took() -> None:
    """Or else each request would try, one after the other, and wait."""
    server = RedisServer("test")
    server.open(HOST, free_port(), 0, None, 1)
    tries = 0

    async def slow_try() -> None:
        nonlocal tries
        async with server.guard():
            tries += 1
            await asyncio.sleep(1.5 * server.PAUSE)
            raise TimeoutError

    for _ in range(2):
        with pytest.raises(RedisUnavailableError):
            await slow_try()
    assert tries == 1
    await server.close()


class TestAllRedisServers:
    async def test_away_at_once(
        self, valkey: Valkey, run_server: RunServer, headers_for: HeadersFor, user: User
    ) -> None:
        server = await run_server(environment={**DEFAULTS, **valkey.environment("CACHE", "QUEUE", "RATE_LIMIT")})
        headers = await headers_for(user)
        pause(valkey)
        body = {"title": "A title", "text": "text"}
        answers = await asyncio.gather(
            *(server.client.get(f"{API}/{user.username}/posts", timeout=BOUND) for _ in range(20)),
            *(server.client.get(f"{API}/user/me", headers=headers, timeout=BOUND) for _ in range(20)),
            *(
                server.client.post(f"{API}/{user.username}/post", json=body, headers=headers, timeout=BOUND)
                for _ in range(5)
            ),
        )
        assert [answer.status_code for answer in answers] == [200] * 40 + [201] * 5
        status, dependencies = await readiness(server)
        assert status == 200
        assert dependencies == {"postgresql": "up", "cache": "down", "queue": "down", "rate limit": "down"}
        resume(valkey)
        for role in ("cache", "queue", "rate limit"):
            await wait_until(server, role, "up")


class TestPostgres:
    @pytest.fixture
    async def postgres_server(self, tmp_path: Path) -> AsyncIterator[Postgres]:
        with Postgres(tmp_path / "postgres", settings={"fsync": "off"}) as server:
            yield server

    @pytest.fixture
    async def server(self, postgres_server: Postgres, run_server: RunServer) -> RunningServer:
        bounds = {"POSTGRES_STATEMENT_TIMEOUT": "1", "POSTGRES_POOL_TIMEOUT": "1"}
        return await run_server(environment={**postgres_server.environment(), **bounds}, wait_for="/health/ready")

    async def sign_up(self, server: RunningServer, username: str) -> int:
        body = {"name": "Some User", "username": username, "email": f"{username}@example.com", "password": "Str1ng$t"}
        return (await server.client.post(f"{API}/user", json=body, timeout=BOUND)).status_code

    async def test_restarted_while_idle(self, postgres_server: Postgres, server: RunningServer) -> None:
        """No request finds a connection of the old server, though many are in the pools."""
        await asyncio.gather(*(self.sign_up(server, f"user{number}") for number in range(5)))
        await asyncio.gather(*(server.client.get(f"{API}/users") for _ in range(20)))
        await asyncio.to_thread(postgres_server.stop)
        await start(postgres_server)
        reads = await asyncio.gather(*(server.client.get(f"{API}/users", timeout=BOUND) for _ in range(20)))
        assert [read.status_code for read in reads] == [200] * 20
        writes = await asyncio.gather(*(self.sign_up(server, f"other{number}") for number in range(5)))
        assert writes == [201] * 5

    async def test_stopped_and_back(self, postgres_server: Postgres, server: RunningServer) -> None:
        assert await self.sign_up(server, "before") == 201
        await asyncio.to_thread(postgres_server.stop)
        for _ in range(3):
            assert await self.sign_up(server, "meanwhile") == 503
            for path in (f"{API}/users", f"{API}/user/before", f"{API}/before/posts"):
                response = await server.client.get(path, timeout=BOUND)
                assert response.status_code == 503
                assert response.headers["Retry-After"] == "1"
                assert response.headers["Cache-Control"] == "private, no-store"
                detail = "The database cannot be reached or is too busy: try again"
                assert response.json() == {"detail": detail}
        assert (await server.client.get("/health")).status_code == 200
        response = await server.client.get("/health/ready", timeout=BOUND)
        assert response.status_code == 503
        assert response.json()["status"] == "not ready"
        assert response.json()["dependencies"]["postgresql"] == "down"
        await start(postgres_server)
        await server.wait_until(lambda: server.is_answering("/health/ready"), "not ready again")
        assert (await server.client.get(f"{API}/users")).json()["total_count"] == 1
        assert await self.sign_up(server, "after") == 201

    async def test_paused_and_resumed(self, postgres_server: Postgres, server: RunningServer) -> None:
        """Every wait ends, also of those who stand in line for a connection."""
        assert await self.sign_up(server, "before") == 201
        with all_processes_paused(postgres_server):
            answers = await asyncio.gather(
                *(server.client.get(f"{API}/users", timeout=2 * BOUND) for _ in range(50)),
                *(self.sign_up(server, f"user{number}") for number in range(3)),
                return_exceptions=True,
            )
            statuses = {answer.status_code if isinstance(answer, httpx.Response) else answer for answer in answers}
            assert statuses == {503}
            assert (await server.client.get("/health", timeout=BOUND)).status_code == 200
        await server.wait_until(lambda: server.is_answering(f"{API}/users"), "not answering again")
        assert await self.sign_up(server, "after") == 201

    async def test_lock_that_somebody_holds(
        self, run_server: RunServer, postgres: Any, headers_for: HeadersFor, user: User, client: httpx.AsyncClient
    ) -> None:
        """It stops those who need the table, for a bounded time, and nobody else."""
        headers = await headers_for(user)
        post = await make_post(user)
        server = await run_server(environment={"POSTGRES_LOCK_TIMEOUT": "0.5"})
        async with postgres.transaction():
            await postgres.execute("LOCK TABLE post")
            path = f"{API}/{user.username}/post/{post.id}"
            stopped = [server.client.get(path, timeout=BOUND) for _ in range(5)]
            stopped += [server.client.patch(path, json={"title": "New"}, headers=headers, timeout=BOUND)]
            others = [server.client.get(f"{API}/users", timeout=BOUND) for _ in range(5)]
            answers = await asyncio.gather(*stopped, *others)
        assert [answer.status_code for answer in answers] == [503] * 6 + [200] * 5
        assert (await server.client.get(path)).status_code == 200

    async def test_service_that_starts_first(self, tmp_path: Path, run_server: RunServer) -> None:
        database = Postgres(tmp_path / "late", settings={"fsync": "off"})
        await start(database)
        await asyncio.to_thread(database.stop)
        server = await run_server(environment=database.environment())
        response = await server.client.get("/health/ready", timeout=BOUND)
        assert (response.status_code, response.json()["dependencies"]["postgresql"]) == (503, "down")
        assert (await server.client.get(f"{API}/users", timeout=BOUND)).status_code == 503
        await start(database)
        try:
            await server.wait_until(lambda: server.is_answering("/health/ready"), "does not become ready")
            assert await self.sign_up(server, "first") == 201
        finally:
            await server.stop()
            await asyncio.to_thread(database.stop)

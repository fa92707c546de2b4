"""Servers that are killed, paused or missing at the start, one at a time: the answers meanwhile, and the recovery."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import httpx
import psutil
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from app.core.config import RedisCacheSettings, Settings, settings
from app.core.exceptions import DatabaseUnavailableError, RedisUnavailableError
from app.core.redis import RedisServer
from app.models.user import User
from scripts.servers import HOST, Postgres, Server, Valkey, free_port
from tests.factories import PASSWORD
from tests.fixtures import HeadersFor, RunningServer, RunProgram, RunServer
from tests.helper import running, wait_until
from tests.integration.own_app import sealed, send
from tests.specimen.factories import make_moth
from tests.specimen.main import SPECIMEN

pytestmark = pytest.mark.drill

API = "/api/v1"
TASK = f"{API}/specimen/job"
MESSAGE = {"message": "x"}
Request = tuple[str, str, list[str], str]
"""Method, path, header lines and body."""
# The greatest latency of any answer in seconds. It shows that waits are bounded, and is no measure of speed.
BOUND = 10


# The service's default timeouts; other tests use longer ones.
DEFAULTS = {
    f"{name}_TIMEOUT": str(Settings.model_fields[f"{name}_TIMEOUT"].default)
    for name in (
        *("REDIS_CACHE", "REDIS_QUEUE", "REDIS_RATE_LIMIT"),
        *("POSTGRES_CONNECT", "POSTGRES_POOL", "POSTGRES_STATEMENT", "POSTGRES_LOCK"),
    )
}


NO_LIMITS = dict.fromkeys(
    ("SIGN_UP_LIMIT", "LOGIN_LIMIT", "LOGIN_LIMIT_PER_ACCOUNT", "LOGIN_LIMIT_PER_ADDRESS"), "10000"
)


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


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


async def wait_for_role(server: RunningServer, role: str, state: str) -> None:
    async def has_state() -> bool:
        return (await readiness(server))[1][role] == state

    await server.wait_until(has_state, f"{role} is not {state}")


def outages(server: RunningServer, role: str) -> tuple[int, int]:
    """Count the log events of a Redis server's outages and returns."""
    lines = [line for line in server.output.splitlines() if f'role="{role}"' in line]
    return sum("redis server away" in line for line in lines), sum("redis server back" in line for line in lines)


@dataclass
class Blog:
    """Two processes of the API, one cache, and a user with a moth."""

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
        """Return whether the service answers from the cache: change the stored answer directly, then read it."""
        await server.client.get(self.path)
        client = self.client()
        try:
            key = (await client.keys("*_moth_cache:*"))[0]
            stored = await client.get(key)
            await client.set(key, sealed(key.decode(), b'{"text": "from the cache"}'), ex=60)
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
        servers = await asyncio.gather(*(run_server(app=SPECIMEN, environment=environment) for _ in range(2)))
        moth = await make_moth(user, text="0")
        return Blog([*servers], valkey, f"{API}/{user.username}/moth/{moth.id}", await headers_for(user))

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
            # Alternate between the processes while both discover that the cache is back.
            await blog.write(blog.servers[number % 2], str(number))
            assert [await blog.read(server) for server in blog.servers] == [str(number)] * 2
        for server in blog.servers:
            await server.wait_until(lambda server=server: blog.is_cached(server), "the cache is not used again")  # type: ignore[misc]
            assert outages(server, "cache") == (1, 1)
        if how == "paused":
            await self.check_process_that_did_not_notice(blog)

    async def check_process_that_did_not_notice(self, blog: Blog) -> None:
        """Write through one process while the cache is away; the other process gets no request in that time."""
        first = blog.servers[0]
        pause(blog.valkey)
        await blog.write(first, "the last")
        resume(blog.valkey)
        assert [await blog.read(server) for server in blog.servers] == ["the last"] * 2

    @WAYS
    async def test_retries_delay_answers_briefly(self, blog: Blog, how: str) -> None:
        """Each retry after the pause delays one answer, by a quarter of a second at most."""
        server = blog.servers[0]
        assert await blog.is_cached(server)
        await away(blog.valkey, how)
        seconds = []
        for _ in range(4):
            began = time.monotonic()
            assert await blog.read(server) == "0"
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(1.1 * RedisServer.PAUSE)
        assert min(seconds) < 0.25  # the fastest of them, because a busy machine may delay the others

    async def test_start_without_it(self, run_server: RunServer, user: User) -> None:
        server = await run_server(app=SPECIMEN, environment={**DEFAULTS, "REDIS_CACHE_PORT": str(free_port())})
        for _ in range(5):
            assert (await server.client.get(f"{API}/{user.username}/moths", timeout=BOUND)).status_code == 200
        assert outages(server, "cache invalidation") == (1, 0)  # by the invalidation at the start, before any read


class TestRateLimiter:
    @WAYS
    async def test_requests_pass_and_are_counted_again_afterwards(
        self, valkey: Valkey, run_server: RunServer, how: str
    ) -> None:
        environment = {**DEFAULTS, **valkey.environment("RATE_LIMIT"), "DEFAULT_RATE_LIMIT_LIMIT": "2"}
        server = await run_server(app=SPECIMEN, environment=environment)

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
            app=SPECIMEN, environment={**DEFAULTS, **valkey.environment("RATE_LIMIT"), "RATE_LIMIT_FAIL_OPEN": "false"}
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
            app=SPECIMEN, environment={**DEFAULTS, **valkey.environment("QUEUE"), "DEFAULT_RATE_LIMIT_LIMIT": "1000"}
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


async def test_pause_follows_each_try_of_any_length() -> None:
    """Otherwise each request would try the server in turn, and wait for the timeout."""
    server = RedisServer("test")
    server.open(RedisCacheSettings(REDIS_CACHE_HOST=HOST, REDIS_CACHE_PORT=free_port()), "REDIS_CACHE", 1)
    tries = 0

    async def slow_try() -> None:
        nonlocal tries
        async with server.guard():
            tries += 1
            await asyncio.sleep(1.5 * server.PAUSE)
            raise TimeoutError

    try:
        for _ in range(2):
            with pytest.raises(RedisUnavailableError):
                await slow_try()
        assert tries == 1
    finally:
        await server.close()


class TestAllRedisServers:
    OUTAGE = 3
    """The documented bound in seconds, above the sum of the default timeouts."""

    async def test_away_at_once(
        self, valkey: Valkey, run_server: RunServer, headers_for: HeadersFor, user: User
    ) -> None:
        environment = {**DEFAULTS, **valkey.environment("CACHE", "QUEUE", "RATE_LIMIT")}
        server = await run_server(app=SPECIMEN, environment={**environment, "DEFAULT_RATE_LIMIT_LIMIT": "1000"})
        token = (await headers_for(user))["Authorization"]
        body = json.dumps({"title": "A title", "text": "text"})
        moth = await make_moth(user)
        requests = [
            *[("GET", f"{API}/{user.username}/moths", "", 200)] * 20,
            *[("GET", f"{API}/user/me", "", 200)] * 20,
            *[("POST", f"{API}/{user.username}/moth", body, 201)] * 10,
            *[("PATCH", f"{API}/{user.username}/moth/{moth.id}", body, 200)] * 10,
            *[("POST", f"{TASK}?message=x", "", 503)] * 10,
        ]

        async def check(method: str, path: str, body: str, expected: int) -> None:
            async with asyncio.timeout(self.OUTAGE):
                status, _, content = await send(server.port, method, path, [f"Authorization: {token}"], body)
            assert status == expected, content

        pause(valkey)
        for _ in range(2):
            await asyncio.gather(*(check(*request) for request in requests))
        status, dependencies = await readiness(server)
        assert status == 200
        assert dependencies == {"postgresql": "up", "cache": "down", "queue": "down", "rate limit": "down"}
        resume(valkey)
        for role in ("cache", "queue", "rate limit"):
            await wait_for_role(server, role, "up")

    async def test_restarted_while_idle(self, valkey: Valkey, run_server: RunServer, user: User) -> None:
        """No request fails on a connection to the old server."""
        environment = {**DEFAULTS, **valkey.environment("CACHE", "QUEUE", "RATE_LIMIT")}
        server = await run_server(app=SPECIMEN, environment={**environment, "DEFAULT_RATE_LIMIT_LIMIT": "20"})

        async def statuses() -> list[int]:
            requests = [("GET", f"{API}/{user.username}/moths"), ("POST", f"{TASK}?message=x")] * 10
            return [status for status, _, _ in await asyncio.gather(*(send(server.port, *each) for each in requests))]

        for _ in range(2):
            assert await statuses() == [200, 201] * 10
            await asyncio.to_thread(valkey.stop)
            await start(valkey)
        assert outages(server, "rate limit") == outages(server, "queue") == (0, 0)


class TestPostgres:
    """Outages of all kinds, and the recovery. Each request that needs the database gets its answer within `OUTAGE`."""

    OUTAGE = 3
    """The documented bound in seconds, above the sum of the default timeouts (pool, connect, statement)."""

    @pytest.fixture
    async def postgres_server(self, tmp_path: Path) -> AsyncIterator[Postgres]:
        with Postgres(tmp_path / "postgres", settings={"fsync": "off"}) as server:
            yield server

    @pytest.fixture
    async def server(self, postgres_server: Postgres, run_server: RunServer, run_program: RunProgram) -> RunningServer:
        environment = {**DEFAULTS, **postgres_server.environment(), **NO_LIMITS}
        server = await run_server(app=SPECIMEN, environment=environment, wait_for="/health/ready")
        tables = await run_program("tests.specimen.models", environment=environment)
        assert await tables.wait() == 0
        return server

    @pytest.fixture
    async def requests(self, server: RunningServer) -> list[Request]:
        """A mix of 60 requests: anonymous reads, reads and writes with a token, sign-ins, sign-ups."""
        assert await self.sign_up(server, "before") == 201
        data = {"username": "before", "password": PASSWORD}
        token = (await server.client.post(f"{API}/login", data=data)).json()["access_token"]
        bearer = [f"Authorization: Bearer {token}"]
        form = ["Content-Type: application/x-www-form-urlencoded"]
        moth = json.dumps({"title": "A title", "text": "text"})
        return [
            request
            for number in range(12)
            for request in (
                ("GET", f"{API}/users", [], ""),
                ("GET", f"{API}/user/me", bearer, ""),
                ("POST", f"{API}/before/moth", bearer, moth),
                ("POST", f"{API}/login", form, urlencode(data)),
                ("POST", f"{API}/user", [], json.dumps(self.new_user(f"user{number}"))),
            )
        ]

    def new_user(self, username: str) -> dict[str, str]:
        return {"name": "Some User", "username": username, "email": f"{username}@example.com", "password": PASSWORD}

    async def sign_up(self, server: RunningServer, username: str) -> int:
        response = await server.client.post(f"{API}/user", json=self.new_user(username), timeout=BOUND)
        return response.status_code

    async def all_unavailable(self, server: RunningServer, requests: Sequence[Request]) -> None:
        """Assert that each request gets a 503 within `OUTAGE`."""

        async def check(method: str, path: str, headers: Sequence[str], body: str) -> None:
            async with asyncio.timeout(self.OUTAGE):
                status, head, content = await send(server.port, method, path, headers, body)
            assert (status, json.loads(content)) == (503, {"detail": DatabaseUnavailableError.detail}), path
            assert "\r\nretry-after: 1\r\n" in head.lower()
            assert "\r\ncache-control: private, no-store\r\n" in head.lower()

        await asyncio.gather(*(check(*request) for request in requests))
        assert (await server.client.get("/health")).status_code == 200
        ready = await server.client.get("/health/ready", timeout=self.OUTAGE)
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert ready.json()["dependencies"]["postgresql"] == "down"

    async def check_recovery(self, server: RunningServer, requests: Sequence[Request]) -> None:
        """Assert that five seconds after the server's return all requests succeed."""
        await asyncio.sleep(5)
        answers = await asyncio.gather(*(send(server.port, *request) for request in requests))
        assert {status for status, _, _ in answers} == {200, 201}
        assert "Traceback" not in server.output

    async def test_restarted_while_idle(self, postgres_server: Postgres, server: RunningServer) -> None:
        """No request fails on a connection to the old server, although the pools hold many."""
        await asyncio.gather(*(self.sign_up(server, f"user{number}") for number in range(5)))
        await asyncio.gather(*(server.client.get(f"{API}/users") for _ in range(20)))
        await asyncio.to_thread(postgres_server.stop)
        await start(postgres_server)
        reads = await asyncio.gather(*(server.client.get(f"{API}/users", timeout=BOUND) for _ in range(20)))
        assert [read.status_code for read in reads] == [200] * 20
        writes = await asyncio.gather(*(self.sign_up(server, f"other{number}") for number in range(5)))
        assert writes == [201] * 5

    @pytest.mark.parametrize("how", ["stopped", "killed"])
    async def test_refuses_connections(
        self, postgres_server: Postgres, server: RunningServer, requests: list[Request], how: str
    ) -> None:
        await asyncio.to_thread(postgres_server.stop, signal.SIGINT if how == "stopped" else signal.SIGKILL)
        for _ in range(2):
            await self.all_unavailable(server, requests)
        await start(postgres_server)
        await self.check_recovery(server, requests)

    async def test_does_not_answer(
        self, postgres_server: Postgres, server: RunningServer, requests: list[Request]
    ) -> None:
        """Pause the server during requests: first the open connections are silent, then the new ones."""
        with all_processes_paused(postgres_server):
            for _ in range(3):
                await self.all_unavailable(server, requests)
        await self.check_recovery(server, requests)

    async def test_is_killed_under_statements(self, postgres_server: Postgres, server: RunningServer) -> None:
        """The statements never get an answer; some wait for a lock that they never get."""
        user, password = postgres_server.user, postgres_server.password
        connection = await asyncpg.connect(
            host=HOST, port=postgres_server.port, user=user, password=password, database=postgres_server.database
        )
        requests = [send(server.port, "GET", f"{API}/users") for _ in range(10)]
        requests += [self.sign_up_raw(server, f"user{number}") for number in range(10)]

        async def wait() -> bool:
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            return bool(await connection.fetchval(query) == len(requests))

        with ExitStack() as stack:
            stack.callback(connection.terminate)
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute('LOCK TABLE "user"')
            async with running(*requests) as waiting:
                await wait_until(wait)
                await kill(postgres_server)
                stack.close()
                async with asyncio.timeout(self.OUTAGE):
                    assert {status for status, _, _ in await asyncio.gather(*waiting)} == {503}
        await start(postgres_server)
        await server.wait_until(lambda: server.is_answering("/health/ready"), "not ready again")

    async def sign_up_raw(self, server: RunningServer, username: str) -> tuple[int, str, bytes]:
        return await send(server.port, "POST", f"{API}/user", body=json.dumps(self.new_user(username)))

    async def test_accepts_nothing(
        self, postgres_server: Postgres, server: RunningServer, requests: list[Request]
    ) -> None:
        """The port neither accepts nor refuses connections, as behind a firewall that drops packets."""
        await kill(postgres_server)
        with socket.socket() as hole:
            hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            hole.bind((HOST, postgres_server.port))
            hole.listen(1024)
            for _ in range(2):
                await self.all_unavailable(server, requests)
        await start(postgres_server)
        await self.check_recovery(server, requests)

    async def test_service_ends_while_it_does_not_answer(
        self, postgres_server: Postgres, server: RunningServer, requests: list[Request]
    ) -> None:
        await asyncio.gather(*(send(server.port, *request) for request in requests))
        with all_processes_paused(postgres_server):
            server.process.popen.send_signal(signal.SIGTERM)
            await server.wait(BOUND)

    async def test_lock_that_somebody_holds(
        self, run_server: RunServer, postgres: Any, headers_for: HeadersFor, user: User, client: httpx.AsyncClient
    ) -> None:
        """A locked table delays the requests that need it, for a bounded time, and no others."""
        headers = await headers_for(user)
        moth = await make_moth(user)
        server = await run_server(app=SPECIMEN, environment={**DEFAULTS, "POSTGRES_LOCK_TIMEOUT": "0.5"})
        async with postgres.transaction():
            await postgres.execute("LOCK TABLE moth")
            path = f"{API}/{user.username}/moth/{moth.id}"
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
        server = await run_server(app=SPECIMEN, environment={**DEFAULTS, **database.environment()})
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

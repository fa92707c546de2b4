"""The middleware of every request: HEAD, ids, headers, hosts, limits of bodies and time, unexpected errors."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from starlette.types import Receive, Scope, Send

from app.api.dependencies import SessionDep
from app.core.config import EnvironmentOption
from app.models.user import User
from scripts.servers import HOST
from tests.environment import SRC
from tests.fixtures import Fetch, LogRecords, RunServer, open_client
from tests.helper import running, sign_in
from tests.in_between import wait_for_locks
from tests.integration.own_app import MODULE, build, build_specimen
from tests.specimen.factories import make_moth

BROKEN = """
@router.get("/broken")
async def broken() -> None:
    raise RuntimeError("a secret")
"""
ENDLESS = """
from fastapi.responses import StreamingResponse

@router.get("/endless")
async def endless() -> StreamingResponse:
    async def parts():
        while True:
            yield b"more "
            await asyncio.sleep(0.05)

    return StreamingResponse(parts())
"""
LIMIT = 100_000
TOO_LARGE = {"detail": f"The body is too large: send no more than {LIMIT} bytes"}


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


class TestRealConnection:
    """Several requests on the same connection."""

    @pytest.fixture
    def module(self, tmp_path: Path) -> Path:
        (tmp_path / "own.py").write_text(MODULE.replace("{routes}", BROKEN))
        return tmp_path

    @pytest.mark.parametrize("http_implementation", ["httptools", "h11"])
    async def test_connection_lives_through_it_all(
        self, run_server: RunServer, module: Path, user: User, http_implementation: str
    ) -> None:
        server = await run_server(
            ["uvicorn", "own:app", "--port", "{port}", "--http", http_implementation],
            environment={"PYTHONPATH": str(SRC)},
            cwd=module,
        )
        with closing(http.client.HTTPConnection(HOST, server.port, timeout=20)) as connection:
            connection.connect()
            connection.auto_open = 0  # so that a closed connection raises an error
            for method, path, status in (
                ("GET", "/broken", 500),
                ("GET", "/health", 200),
                ("HEAD", "/health", 200),
                ("HEAD", "/api/v1/users", 200),
                ("GET", "/api/v1/users", 200),
                ("HEAD", f"/api/v1/{user.username}/moths", 200),
                ("HEAD", "/broken", 500),
                ("HEAD", "/nowhere", 404),
                ("HEAD", "/docs", 200),
                ("HEAD", "/docs/assets/swagger-ui.css", 200),
                ("GET", "/docs/assets/swagger-ui.css", 200),
                ("HEAD", "/api/v1/login", 405),
                ("OPTIONS", "/api/v1/users", 405),
                ("POST", "/docs/assets/swagger-ui.css", 405),
                ("GET", "/health/ready", 200),
            ):
                connection.request(method, path)
                response = connection.getresponse()
                body = response.read()
                assert response.status == status, (method, path)
                assert int(response.headers["content-length"]) > 0
                if method == "HEAD":
                    assert body == b""
                else:
                    assert len(body) == int(response.headers["content-length"])
                if status == 500 and method == "GET":
                    answer = json.loads(body)
                    assert answer == {"detail": "Internal server error", "request_id": response.headers["x-request-id"]}
                    assert b"secret" not in body
        assert server.output.count("RuntimeError: a secret") == 2

    async def test_bodies_that_are_too_large(self, run_server: RunServer) -> None:
        server = await run_server(environment={"MAX_BODY_BYTES": str(LIMIT)})
        for path in ("/api/v1/user", "/api/v1/login"):
            for size, chunked in ((LIMIT + 1, False), (LIMIT + 1, True), (50 * LIMIT, False), (50 * LIMIT, True)):
                kind = "application/json" if path.endswith("user") else "application/x-www-form-urlencoded"
                body = chunks(size) if chunked else b"x" * size
                with closing(http.client.HTTPConnection(HOST, server.port, timeout=20)) as connection:
                    connection.request("POST", path, body, {"Content-Type": kind}, encode_chunked=chunked)
                    response = connection.getresponse()
                    assert (response.status, json.loads(response.read())) == (413, TOO_LARGE)
                    assert response.headers["x-content-type-options"] == "nosniff"
        assert (await server.client.get("/health")).status_code == 200
        assert "Traceback" not in server.output


def chunks(size: int) -> Iterator[bytes]:
    while size > 0:
        yield b"x" * min(size, 65536)
        size -= 65536


async def test_largest_body_is_read(client: httpx.AsyncClient) -> None:
    for size, status in ((1024 * 1024, 422), (1024 * 1024 + 1, 413)):
        content = b" " * (size - 2) + b"{}"
        response = await client.post("/api/v1/user", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == status


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "٣"])
async def test_length_that_is_no_number(client: httpx.AsyncClient, length: str) -> None:
    """A real server refuses the header. If it arrives, the application counts the received bytes instead."""
    response = await client.post("/api/v1/login", content=b"", headers={b"Content-Length": length.encode()})
    assert response.status_code == 422


class TestRequestId:
    async def test_made_up(self, client: httpx.AsyncClient) -> None:
        ids = {(await client.get("/health")).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        assert all(len(request_id) == 32 for request_id in ids)

    async def test_given(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/health", headers={"X-Request-ID": "Trace-1.2_3"})
        assert response.headers.get_list("x-request-id") == ["Trace-1.2_3"]

    @pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"b', "a\tb", "<b>", "ü"])
    async def test_given_one_that_could_forge_a_log_is_not_used(self, client: httpx.AsyncClient, given: str) -> None:
        response = await client.get("/health", headers={b"X-Request-ID": given.encode()})
        (request_id,) = response.headers.get_list("x-request-id")
        assert request_id != given
        assert len(request_id) == 32

    async def test_in_the_log_and_in_the_answer_to_an_error(self, client: httpx.AsyncClient, logs: LogRecords) -> None:
        router = APIRouter()

        @router.get("/broken/{name}")
        async def broken(request: Request, name: str) -> None:
            raise RuntimeError(name)

        async with open_client(build(router)) as own:
            response = await own.get("/broken/x%0Aforged", headers={"X-Request-ID": "mine"})
        assert response.status_code == 500
        assert response.json() == {"detail": "Internal server error", "request_id": "mine"}
        assert response.headers["x-request-id"] == "mine"
        (record,) = logs.named("unhandled error")
        assert record.exc_info
        assert (record.method, record.path) == ("GET", "/broken/x\nforged")  # type: ignore[attr-defined]


class TestUnexpectedErrors:
    @pytest.fixture
    def broken(self) -> FastAPI:
        router = APIRouter()

        @router.get("/broken")
        async def fail() -> None:
            raise LookupError("a secret")

        return build(router)

    @pytest.mark.parametrize("key", [Exception, 500])
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_registered_handler_answers(
        self, broken: FastAPI, logs: LogRecords, key: Any, is_async: bool
    ) -> None:
        """With the id, the headers and the line in the log that any other 500 has."""

        def answer(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"path": request.url.path, "error": type(error).__name__}, 418)

        async def answer_async(request: Request, error: Exception) -> JSONResponse:
            return answer(request, error)

        broken.add_exception_handler(key, answer_async if is_async else answer)
        async with open_client(broken) as own:
            response = await own.get("/broken")
            assert (await own.get("/nowhere")).status_code == 404
        assert (response.status_code, response.json()) == (418, {"path": "/broken", "error": "LookupError"})
        assert response.headers["x-request-id"]
        assert response.headers["cache-control"] == "private, no-store"
        assert [str(record.exc_info and record.exc_info[1]) for record in logs.named("unhandled error")] == ["a secret"]

    async def test_handler_of_a_subclass_answers(self, broken: FastAPI, logs: LogRecords) -> None:
        async def answer(request: Request, error: LookupError) -> JSONResponse:
            return JSONResponse({"detail": "not there"}, 410)

        broken.add_exception_handler(LookupError, answer)  # type: ignore[arg-type]  # Starlette types all alike
        async with open_client(broken) as own:
            assert (await own.get("/broken")).status_code == 410
        assert logs.named("unhandled error") == []

    async def test_handler_that_fails_itself(self, broken: FastAPI) -> None:
        """Starlette's own middleware answers, and the next request is answered, too."""

        async def answer(request: Request, error: Exception) -> JSONResponse:
            raise RuntimeError

        broken.add_exception_handler(Exception, answer)
        async with open_client(broken) as own:
            assert (await own.get("/broken")).status_code == 500
            assert (await own.get("/nowhere")).status_code == 404


async def test_security_headers_are_on_every_answer(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/nowhere", "/docs", "/docs/assets/swagger-ui.css"):
        response = await client.get(path)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"


async def test_host_header_decides_nothing(client: httpx.AsyncClient) -> None:
    """The application builds no redirect from the header: a path with a trailing slash gets a 404."""
    for path in ("/api/v1/users/", "/health/", "/docs/"):
        response = await client.get(path, headers={"Host": "evil.example"})
        assert response.status_code == 404
        assert "location" not in response.headers


class TestTrustedHosts:
    HOSTS = "api.example.com, *.example.org, [2001:db8::1]"

    async def statuses(self, *hosts: bytes, path: str = "/api/v1/users") -> list[int]:
        async with open_client(build_specimen(ALLOWED_HOSTS=self.HOSTS)) as own:
            return [(await own.get(path, headers={b"Host": host})).status_code for host in hosts]

    async def test_any_by_default(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/api/v1/users", headers={"Host": "evil.example"})).status_code == 200

    async def test_named_ones(self, client: httpx.AsyncClient) -> None:
        names = ["api.example.com", "API.Example.COM:8000", "api.example.com.", "a.b.example.org:1", "[2001:db8::1]:80"]
        assert await self.statuses(*(name.encode() for name in names)) == [200] * len(names)

    async def test_others(self, client: httpx.AsyncClient) -> None:
        names = [
            *(b"", b".", b":80", b"evil.example", b"api.example.com.evil.example", b"evil.example#api.example.com"),
            *(b"example.org", b".example.org:x", b"evilexample.org", b"api.example.com:80:80", b"a@api.example.com"),
            *(b"[::1]", b"[api.example.com]", b"\xff", b"x" * 5000, b"api.example.com, api.example.com", b"[", b"]:"),
        ]
        assert await self.statuses(*names) == [400] * len(names)

    async def test_missing_or_given_twice(self, client: httpx.AsyncClient) -> None:
        for hosts in ([], [(b"host", b"api.example.com"), (b"host", b"evil.example")]):
            async with open_client(WithHeaders(build_specimen(ALLOWED_HOSTS=self.HOSTS), hosts)) as own:
                answer = await own.get("/api/v1/users")
                assert (await own.get("/health")).status_code == 200
            assert answer.status_code == 400
            assert answer.json() == {"detail": "This host name is not served: check the Host header"}
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "private, no-store"

    async def test_health_checks_may_use_any_host(self, client: httpx.AsyncClient) -> None:
        for path in ("/health", "/health/ready"):
            assert await self.statuses(b"10.0.0.1:8000", b"", path=path) == [200, 200]


class WithHeaders:
    """An application that gets these headers in place of the request's own."""

    def __init__(self, app: FastAPI, headers: list[tuple[bytes, bytes]]) -> None:
        self.app = app
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "headers": self.headers}, receive, send)


class TestTransportSecurity:
    async def test_not_in_local(self, client: httpx.AsyncClient) -> None:
        assert "strict-transport-security" not in (await client.get("/health")).headers

    @pytest.mark.parametrize("environment", [EnvironmentOption.STAGING, EnvironmentOption.PRODUCTION])
    async def test_elsewhere(self, client: httpx.AsyncClient, environment: EnvironmentOption) -> None:
        async with open_client(build(ENVIRONMENT=environment, HSTS_MAX_AGE=60)) as own:
            for path in ("/health", "/nowhere"):
                assert (await own.get(path)).headers["strict-transport-security"] == "max-age=60"


@pytest.fixture
async def slow_commit(postgres: "asyncpg.Connection[Any]") -> AsyncIterator[None]:
    """Make each commit of a changed moth wait for the advisory lock 7."""
    await postgres.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$"
    )
    await postgres.execute(
        "CREATE CONSTRAINT TRIGGER wait AFTER UPDATE ON moth DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    yield
    await postgres.execute("DROP FUNCTION wait CASCADE")


class TestRequestTimeout:
    async def test_nothing_sent_yet(self, client: httpx.AsyncClient, logs: LogRecords, fetch: Fetch) -> None:
        router = APIRouter()

        @router.post("/slow")
        async def slow(db: SessionDep) -> None:
            await db.execute(text("INSERT INTO drawer (name, created_at) VALUES ('slow', now())"))
            await asyncio.sleep(60)

        async with open_client(build(router, REQUEST_TIMEOUT=0.3)) as own:
            answer = await own.post("/slow")
        assert answer.status_code == 503
        assert answer.json() == {
            "detail": "The request took too long: check what it has changed before you repeat it, with less at once"
        }
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["cache-control"] == "private, no-store"
        assert answer.headers["x-request-id"]
        (record,) = logs.named("request timed out")
        assert (record.method, record.path) == ("POST", "/slow")  # type: ignore[attr-defined]
        assert await fetch("SELECT * FROM drawer") == []
        assert (await client.get("/api/v1/users")).status_code == 200

    async def test_in_the_middle_of_a_commit(
        self,
        client: httpx.AsyncClient,
        postgres: "asyncpg.Connection[Any]",
        fetch: Fetch,
        slow_commit: None,
        user: User,
    ) -> None:
        """The change still commits, so no cache may keep the older answer."""
        moth = await make_moth(user, title="before")
        path = f"/api/v1/{user.username}/moth/{moth.id}"
        headers = await sign_in(client, user)
        assert (await client.get(path)).json()["title"] == "before"
        async with open_client(build_specimen(REQUEST_TIMEOUT=1)) as own:
            async with AsyncExitStack() as stack, postgres.transaction():
                await postgres.execute("SELECT pg_advisory_xact_lock(7)")
                patch = running(own.patch(path, json={"title": "after"}, headers=headers))
                (patching,) = await stack.enter_async_context(patch)
                await wait_for_locks(fetch)
                await asyncio.sleep(1.1)  # longer than the request timeout, shorter than the lock timeout
            answer = patching.result()
        assert answer.status_code == 503
        assert (await client.get(path)).json()["title"] == "after"

    async def test_timeout_error_of_the_endpoint_is_no_request_timeout(self, client: httpx.AsyncClient) -> None:
        router = APIRouter()

        @router.get("/own")
        async def own_error() -> None:
            raise TimeoutError

        async with open_client(build(router)) as own:
            assert (await own.get("/own")).status_code == 500

    async def test_on_a_connection(self, run_server: RunServer, tmp_path: Path) -> None:
        """A body that never arrives gets a 503; an answer that has begun ends with a closed connection."""
        (tmp_path / "own.py").write_text(MODULE.replace("{routes}", ENDLESS))
        environment = {"PYTHONPATH": str(SRC), "REQUEST_TIMEOUT": "0.5"}
        server = await run_server(["uvicorn", "own:app", "--port", "{port}"], environment=environment, cwd=tmp_path)
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(HOST, server.port)
            with closing(writer):
                writer.write(b"POST /api/v1/user HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nretry-after: 1\r\n" in head.lower()
            reader, writer = await asyncio.open_connection(HOST, server.port)
            with closing(writer):
                writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert not answer.endswith(b"0\r\n\r\n")  # the final chunk, which marks a complete answer
        assert (await server.client.get("/health")).status_code == 200

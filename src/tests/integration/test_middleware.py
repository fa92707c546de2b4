"""What surrounds every request: HEAD, ids, headers, the limit of bodies, and errors that nobody foresaw."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, Request

from app.models.user import User
from scripts.servers import HOST
from tests.environment import SRC
from tests.fixtures import LogRecords, RunServer, open_client
from tests.integration.own_app import MODULE, build

BROKEN = """
@router.get("/broken")
async def broken() -> None:
    raise RuntimeError("a secret")
"""
LIMIT = 100_000
TOO_LARGE = {"detail": f"The body is too large: send no more than {LIMIT} bytes"}


class TestRealConnection:
    """Requests one after the other on the same connection."""

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
        connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
        connection.connect()
        connection.auto_open = 0  # so that a connection that was cut is an error
        for method, path, status in (
            ("GET", "/broken", 500),
            ("GET", "/health", 200),
            ("HEAD", "/health", 200),
            ("HEAD", "/api/v1/users", 200),
            ("GET", "/api/v1/users", 200),
            ("HEAD", f"/api/v1/{user.username}/posts", 200),
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
        connection.close()
        assert server.output.count("RuntimeError: a secret") == 2

    async def test_bodies_that_are_too_large(self, run_server: RunServer) -> None:
        server = await run_server(environment={"MAX_BODY_BYTES": str(LIMIT)})
        for path in ("/api/v1/user", "/api/v1/login"):
            for size, chunked in ((LIMIT + 1, False), (LIMIT + 1, True), (50 * LIMIT, False), (50 * LIMIT, True)):
                kind = "application/json" if path.endswith("user") else "application/x-www-form-urlencoded"
                connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
                body = chunks(size) if chunked else b"x" * size
                connection.request("POST", path, body, {"Content-Type": kind}, encode_chunked=chunked)
                response = connection.getresponse()
                assert (response.status, json.loads(response.read())) == (413, TOO_LARGE)
                assert response.headers["x-content-type-options"] == "nosniff"
                connection.close()
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
    """A server refuses it; the application, were it to come through, counts what comes."""
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


async def test_security_headers_are_on_every_answer(client: httpx.AsyncClient) -> None:
    for path in ("/health", "/nowhere", "/docs", "/docs/assets/swagger-ui.css"):
        response = await client.get(path)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"


async def test_host_header_decides_nothing(client: httpx.AsyncClient) -> None:
    """No redirect is built from it: a path with a slash too much is not found."""
    for path in ("/api/v1/users/", "/health/", "/docs/"):
        response = await client.get(path, headers={"Host": "evil.example"})
        assert response.status_code == 404
        assert "location" not in response.headers

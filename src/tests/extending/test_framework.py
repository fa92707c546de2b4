"""What FastAPI's documentation shows, in a clone."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.extending.clone import Clone, open_clone
from tests.fixtures import RunningServer

ROUTES = """
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, File, Header, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, StreamingResponse

from app.api.dependencies import CurrentUser, rate_limit
from app.core.http import max_body_bytes, request_timeout


async def need_key(x_key: Annotated[str, Header()] = "") -> None:
    if x_key != "open":
        raise HTTPException(400, "Give X-Key")


router = APIRouter()
responses = {418: {"description": "Tea"}}
keyed = APIRouter(prefix="/keyed", tags=["keyed"], dependencies=[Depends(need_key)], responses=responses)


@keyed.get("/thing")
async def read_thing() -> str:
    return "a thing"


@keyed.get("/old", deprecated=True, include_in_schema=True, name="old thing", operation_id="read_old_thing")
async def read_old() -> str:
    return "an old thing"


router.include_router(keyed)


@router.get("/slow")
async def slow() -> str:
    await asyncio.sleep(3)
    return "never"


@router.get("/patient", dependencies=[Depends(request_timeout(10))])
async def patient() -> str:
    await asyncio.sleep(3)
    return "done"


@router.get("/impatient", dependencies=[Depends(request_timeout(0.2))])
async def impatient() -> str:
    await asyncio.sleep(3)
    return "never"


@router.get("/events", dependencies=[Depends(request_timeout(None))])
async def events() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for number in range(4):
            await asyncio.sleep(1)
            yield f"data: {number}\\n\\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


@router.post("/upload")
@max_body_bytes(300_000_000)
async def upload(file: UploadFile) -> int:
    size = 0
    while chunk := await file.read(1024 * 1024):
        size += len(chunk)
    return size


@router.post("/upload-stream")
@max_body_bytes(300_000_000)
async def upload_stream(request: Request) -> int:
    return sum([len(chunk) async for chunk in request.stream()])


@router.post("/upload-small")
async def upload_small(file: UploadFile) -> int:
    return len(await file.read())


@router.get("/limited", dependencies=[Depends(rate_limit(2, per=60))])
async def limited() -> str:
    return "let in"


@router.get("/limited-too", dependencies=[Depends(rate_limit(3, per=60))])
async def limited_too() -> str:
    return "let in"


@router.get("/file")
async def read_file() -> FileResponse:
    return FileResponse(Path(__file__), filename="own.py")
"""
MAIN = """

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

part = FastAPI()


@part.get("/hello")
async def hello() -> str:
    return "from a part"


app.mount("/part", part)
inner = app.router.lifespan_context


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with inner(app):
        print("own start", flush=True)
        yield
        print("own end", flush=True)


app.router.lifespan_context = lifespan
"""
SYNC_TEST = """
import os

from fastapi.testclient import TestClient

from app.main import app


def test_in_a_plain_function() -> None:
    with TestClient(app) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/api/v1/users").json()["data"] == []
    with TestClient(app) as client:
        assert client.get("/api/v1/users").status_code == 200
"""


@pytest.fixture(scope="module")
async def clone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clone]:
    async with open_clone(tmp_path_factory.mktemp("clone")) as clone:
        clone.write({"app/api/v1/own.py": ROUTES})
        main = clone.src / "app/main.py"
        main.write_text(main.read_text() + MAIN)
        yield clone


@pytest.fixture(scope="module")
async def server(clone: Clone) -> RunningServer:
    return await clone.start(REQUEST_TIMEOUT="1.5")


class TestRouter:
    async def test_options(self, server: RunningServer, client: httpx.AsyncClient) -> None:
        assert (await client.get("/keyed/thing")).status_code == 400
        assert (await client.get("/keyed/thing", headers={"X-Key": "open"})).json() == "a thing"
        document = (await client.get(f"{server.url}/openapi.json")).json()
        operation = document["paths"]["/api/v1/keyed/old"]["get"]
        assert (operation["deprecated"], operation["tags"], operation["operationId"]) == (
            True,
            ["keyed"],
            "read_old_thing",
        )
        assert "418" in operation["responses"]

    async def test_mounted_application(self, server: RunningServer, client: httpx.AsyncClient) -> None:
        answer = await client.get(f"{server.url}/part/hello")
        assert (answer.status_code, answer.json()) == (200, "from a part")
        assert answer.headers["x-request-id"]
        assert (await client.get(f"{server.url}/part/nowhere")).status_code == 404


class TestTimeout:
    async def test_of_the_settings(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/slow")).status_code == 503

    async def test_of_the_route(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/patient")).json() == "done"
        assert (await client.get("/impatient")).status_code == 503

    async def test_none(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/events")
        assert answer.text == "".join(f"data: {number}\n\n" for number in range(4))


def resident_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


class TestUpload:
    async def test_in_constant_memory(self, server: RunningServer, client: httpx.AsyncClient, tmp_path: Path) -> None:
        file = tmp_path / "large"
        with file.open("wb") as large:
            large.truncate(150_000_000)
        await client.post("/upload", files={"file": b"warm"})
        before, peak = resident_kib(server.pid), 0
        with file.open("rb") as large:
            sending = asyncio.ensure_future(client.post("/upload", files={"file": large}))
            while not sending.done():
                peak = max(peak, resident_kib(server.pid))
                await asyncio.sleep(0.01)
        assert (await sending).json() == 150_000_000
        assert peak - before < 50_000

    async def test_slow_one_is_not_cut(self, client: httpx.AsyncClient) -> None:
        async def body() -> AsyncIterator[bytes]:
            for _ in range(4):
                await asyncio.sleep(0.7)
                yield b"a" * 1000

        begin = time.monotonic()
        assert (await client.post("/upload-stream", content=body())).json() == 4000
        assert time.monotonic() - begin > 1.5

    @pytest.mark.parametrize("path", ["/upload-small", "/user"])
    async def test_beyond_the_limit_of_the_settings(self, client: httpx.AsyncClient, path: str) -> None:
        answer = await client.post(path, files={"file": b"a" * 1_100_000})
        assert (answer.status_code, answer.json()) == (
            413,
            {"detail": "The body is too large: send no more than 1048576 bytes"},
        )

    async def test_beyond_the_limit_of_the_route(self, server: RunningServer, client: httpx.AsyncClient) -> None:
        async def body() -> AsyncIterator[bytes]:
            for _ in range(310):
                yield b"a" * 1_000_000

        assert (await client.post("/upload-stream", content=body())).status_code == 413
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /api/v1/upload-stream HTTP/1.1\r\nHost: x\r\nContent-Length: 300000001\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_limit_of_one_route(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/limited") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["Retry-After"]) <= 60
    assert (await client.get("/limited-too")).status_code == 200


async def test_file_that_the_client_has(client: httpx.AsyncClient) -> None:
    first = await client.get("/file")
    assert first.status_code == 200
    again = await client.get("/file", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_lifespan_of_its_own(clone: Clone) -> None:
    server = await clone.start()
    assert "own start" in server.output
    await server.stop()
    assert "own end" in server.output


@pytest.mark.parametrize("prefix", ["/backend", "/a/b"])
async def test_behind_a_proxy_that_strips_a_prefix(clone: Clone, prefix: str) -> None:
    server = await clone.start(UVICORN_ROOT_PATH=prefix)
    top = server.url
    page = await server.client.get(f"{top}/docs")
    addresses = re.findall(r"(?:href|src|url)[=:] ?[\"'](/[^\"']+)", page.text)
    assert addresses
    assert all(address.startswith(f"{prefix}/") for address in addresses)
    for address in addresses:
        assert (await server.client.get(top + address.removeprefix(prefix))).status_code == 200, address
    document = (await server.client.get(f"{top}/openapi.json")).json()
    assert document["servers"] == [{"url": prefix}]
    scheme = document["components"]["securitySchemes"]["OAuth2PasswordBearer"]
    assert scheme["flows"]["password"]["tokenUrl"] == f"{prefix}/api/v1/login"
    person = {"name": "Ann", "username": "ann", "email": "ann@example.com", "password": "Pr1de&Prejudice"}
    await server.client.post("/user", json=person)
    signed_in = await server.client.post("/login", data={"username": "ann", "password": "Pr1de&Prejudice"})
    assert f"path={prefix}/api/v1" in signed_in.headers["set-cookie"].lower()


async def test_plain_test_client(clone: Clone) -> None:
    (clone.src / "tests/test_sync.py").write_text(SYNC_TEST)
    status, printed = await clone.run("pytest", "-q", "-p", "no:cacheprovider", "tests/test_sync.py")
    assert status == 0, printed

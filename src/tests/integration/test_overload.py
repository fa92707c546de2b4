"""More concurrent requests than a process serves: it refuses the others at once and keeps their connections open."""

import asyncio
import contextlib
import http.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from app.api.health import router as health
from app.core.http.load_shedding import LoadShedding
from scripts.servers import HOST
from tests.environment import SRC
from tests.fixtures import LogRecords, RunServer, open_client
from tests.helper import running, wait_until
from tests.integration.own_app import MODULE, build, send

SLOW = """
from app.core.http.load_shedding import LoadShedding

LoadShedding.BURST_SECONDS = 60


@router.get("/slow")
async def slow() -> None:
    with open("arrived", "a") as file:
        file.write("x")
    while not os.path.exists("leave"):
        await asyncio.sleep(0.01)
"""
REFUSED = {"detail": "The service has too much to do: try again"}


class Place:
    """A route `GET /slow` whose requests hold their slots until `leave` is set."""

    def __init__(self) -> None:
        self.router = APIRouter()
        self.arrivals = asyncio.Semaphore(0)
        self.leave = asyncio.Event()
        self.router.get("/slow")(self.slow)
        self.router.post("/broken")(self.broken)

    async def slow(self) -> None:
        self.arrivals.release()
        await self.leave.wait()

    async def broken(self) -> None:
        raise RuntimeError

    @asynccontextmanager
    async def taken(
        self, client: httpx.AsyncClient, times: int
    ) -> "AsyncIterator[list[asyncio.Future[httpx.Response]]]":
        async with running(*(client.get("/slow") for _ in range(times))) as requests:
            async with asyncio.timeout(10):
                for _ in range(times):
                    await self.arrivals.acquire()
            yield requests
            self.leave.set()
        self.leave.clear()


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
async def two_at_once(app: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(LoadShedding, "BURST", 1)
    async with open_client(build(place.router, health, MAX_CONCURRENT_REQUESTS=2)) as client:
        yield client


async def test_third_is_refused_until_there_is_a_place(
    two_at_once: httpx.AsyncClient, place: Place, logs: LogRecords
) -> None:
    async with place.taken(two_at_once, 2) as tasks:
        for _ in range(3):
            answer = await two_at_once.post("/slow", headers={"X-Request-ID": "mine"})
            assert (answer.status_code, answer.json()) == (503, REFUSED)
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "private, no-store"
    assert [(await task).status_code for task in tasks] == [200, 200]
    async with place.taken(two_at_once, 2):
        pass
    (record,) = logs.named("too many requests at once")
    assert (record.limit, record.refused) == (2, 1)  # type: ignore[attr-defined]


async def test_a_burst_is_let_in_after_a_calm(
    two_at_once: httpx.AsyncClient, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadShedding, "BURST", 3)
    monkeypatch.setattr(LoadShedding, "BURST_SECONDS", 5.0)
    async with place.taken(two_at_once, 6):
        assert (await two_at_once.get("/slow")).status_code == 503
    monkeypatch.setattr(LoadShedding, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(LoadShedding, "BURST_SECONDS", 0.0)
    async with place.taken(two_at_once, 2):  # the burst ends at once
        assert (await two_at_once.get("/slow")).status_code == 503
    monkeypatch.setattr(LoadShedding, "CALM_SECONDS", 60.0)
    monkeypatch.setattr(LoadShedding, "BURST_SECONDS", 5.0)
    async with place.taken(two_at_once, 2):  # no calm period has passed
        assert (await two_at_once.get("/slow")).status_code == 503


async def test_probes_are_always_answered(two_at_once: httpx.AsyncClient, place: Place) -> None:
    async with place.taken(two_at_once, 2):
        assert (await two_at_once.get("/health")).status_code == 200
        assert (await two_at_once.get("/health/ready")).status_code == 200


async def test_failed_and_cancelled_requests_free_their_slots(two_at_once: httpx.AsyncClient, place: Place) -> None:
    for _ in range(3):
        assert (await two_at_once.post("/broken")).status_code == 500
        async with place.taken(two_at_once, 2) as tasks:
            for task in tasks:
                task.cancel()
    async with place.taken(two_at_once, 2) as tasks:
        pass
    assert [(await task).status_code for task in tasks] == [200, 200]


async def test_pages_of_other_origins_can_read_it(app: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadShedding, "BURST", 1)
    page = "https://app.example.com"
    changes = {"MAX_CONCURRENT_REQUESTS": 1, "CORS_ORIGINS": page}
    async with open_client(build(place.router, **changes)) as client, place.taken(client, 1):
        answer = await client.get("/slow", headers={"Origin": page})
    assert answer.status_code == 503
    assert answer.headers["access-control-allow-origin"] == page


@pytest.mark.parametrize("http_implementation", ["httptools", "h11"])
async def test_connection_of_a_refused_request_goes_on(
    run_server: RunServer, tmp_path: Path, http_implementation: str
) -> None:
    """The connection stays usable even if the body of the refused request was not read."""
    (tmp_path / "own.py").write_text(MODULE.replace("{routes}", SLOW))
    command = ["uvicorn", "own:app", "--port", "{port}", "--http", http_implementation]
    environment = {"PYTHONPATH": str(SRC), "MAX_CONCURRENT_REQUESTS": "1"}
    server = await run_server(command, environment=environment, cwd=tmp_path)
    connection = http.client.HTTPConnection(HOST, server.port, timeout=20)
    slow = (send(server.port, "GET", "/slow") for _ in range(LoadShedding.BURST))

    async def is_full() -> bool:
        file = tmp_path / "arrived"
        return file.exists() and file.stat().st_size == LoadShedding.BURST

    async with running(*slow) as burst:
        with contextlib.closing(connection):
            await wait_until(is_full)
            for method, body in (
                ("GET", None),
                ("POST", b"x" * 500_000),
                ("HEAD", None),
                ("POST", b"{}"),
                ("GET", None),
            ):
                connection.request(method, "/api/v1/user", body)
                response = connection.getresponse()
                assert response.status == 503
                assert response.headers["retry-after"] == "1"
                assert bool(response.read()) is (method != "HEAD")
            (tmp_path / "leave").touch()
            assert [status for status, _, _ in await asyncio.gather(*burst)] == [200] * len(burst)
            connection.request("GET", "/api/v1/users")
            response = connection.getresponse()
            assert response.status == 200


async def test_slow_senders_hold_no_slots(run_server: RunServer) -> None:
    server = await run_server(environment={"MAX_CONCURRENT_REQUESTS": "2"})
    with contextlib.ExitStack() as stack:
        for _ in range(3 * LoadShedding.BURST):
            _, writer = await asyncio.open_connection(HOST, server.port)
            stack.callback(writer.close)
            writer.write(b"POST /api/v1/user HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
        for _ in range(20):
            assert (await send(server.port, "GET", "/api/v1/users"))[0] == 200

"""The life of a session: streams, background tasks, forgotten connections, slow services."""

import asyncio
import re
import time

import httpx
import pytest

from tests.extending.clone import Clone
from tests.fixtures import RunningServer
from tests.helper import wait_until

POOL_SIZE = 3
IDLE_SECONDS = 2
ROUTES = """
import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, BackgroundTasks, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select, text, update

from app.api.dependencies import ReaderDep, SessionDep
from app.core.database import engines_of, transaction
from app.models.user import User

router = APIRouter()
forgotten = []


@router.get("/stream/request-session")
async def stream_request_session(db: SessionDep) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield "id\\n"
        for user_id in await db.scalars(select(User.id)):
            yield f"{user_id}\\n"

    return StreamingResponse(lines(), media_type="text/csv")


@router.get("/stream/result-of-request-session")
async def stream_result(db: SessionDep) -> StreamingResponse:
    result = await db.stream(select(func.generate_series(1, 100_000)))

    async def lines() -> AsyncIterator[str]:
        yield "id\\n"
        async for (number,) in result:
            yield f"{number}\\n"

    return StreamingResponse(lines(), media_type="text/csv")


@router.get("/stream/reader")
async def stream_reader(db: ReaderDep) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async with db.stream(select(func.generate_series(1, 5000))) as rows:
            async for (number,) in rows:
                yield f"{number}\\n"

    return StreamingResponse(lines(), media_type="text/csv")


@router.get("/stream/transaction")
async def stream_transaction() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async with transaction() as db:
            async for (number,) in await db.stream(select(func.generate_series(1, 5000))):
                yield f"{number}\\n"

    return StreamingResponse(lines(), media_type="text/csv")


@router.get("/stream/slow")
async def stream_slow(db: ReaderDep) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async with db.stream(select(func.generate_series(1, 1000))) as rows:
            async for (number,) in rows:
                yield f"{number}\\n" * 1000
                await asyncio.sleep(0.01)

    return StreamingResponse(lines(), media_type="text/csv")


@router.post("/background/request-session")
async def background_session(db: SessionDep, tasks: BackgroundTasks) -> None:
    async def rename() -> None:
        await db.execute(update(User).values(name="From a background task"))

    tasks.add_task(rename)


@router.post("/background/transaction")
async def background_transaction(tasks: BackgroundTasks) -> None:
    async def rename() -> None:
        async with transaction() as db:
            await db.execute(update(User).values(name="From a background task"))

    tasks.add_task(rename)


@router.post("/forgotten/transaction")
async def forget_transaction(request: Request) -> None:
    session = engines_of(request).session()
    await session.execute(text("SELECT 1"))
    forgotten.append(session)


@router.post("/write")
async def write(db: SessionDep) -> None:
    await db.execute(text("SELECT 1"))


@router.post("/slow-service")
async def call_slow_service(db: SessionDep, seconds: float, writes_after: bool = True) -> None:
    await db.execute(text("SELECT 1"))
    await asyncio.sleep(seconds)
    if writes_after:
        await db.execute(text("SELECT 1"))


@router.post("/report")
async def report(seconds: float, statement_timeout: float | None = None) -> None:
    async with transaction(statement_timeout=statement_timeout) as db:
        await db.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
"""


@pytest.fixture(scope="module")
async def server(clone: Clone) -> RunningServer:
    return await clone.start(
        POSTGRES_POOL_SIZE=str(POOL_SIZE),
        POSTGRES_POOL_TIMEOUT="1",
        POSTGRES_STATEMENT_TIMEOUT="2",
        POSTGRES_IDLE_TIMEOUT=str(IDLE_SECONDS),
    )


async def assert_pool_is_whole(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("/write") for _ in range(3 * POOL_SIZE)))
    assert {answer.status_code for answer in answers} == {200}


def traceback_of(server: RunningServer, path: str) -> str:
    """Return what the log says of the last unhandled error on this path."""
    *_, last = re.split(f'unhandled error.*path="/api/v1{re.escape(path)}"', server.output)
    return last


class TestStream:
    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("/stream/request-session", "This Session has been permanently closed"),
            ("/stream/result-of-request-session", "cursor cannot be created outside of a transaction"),
        ],
    )
    async def test_that_outlives_the_request_session_fails_each_time(
        self, server: RunningServer, client: httpx.AsyncClient, path: str, error: str
    ) -> None:
        for _ in range(3 * POOL_SIZE):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(path)
        assert f'unhandled error method="GET" path="/api/v1{path}"' in server.output
        assert error in traceback_of(server, path)
        await assert_pool_is_whole(client)

    @pytest.mark.parametrize("path", ["/stream/reader", "/stream/transaction"])
    async def test_with_a_connection_of_its_own(self, client: httpx.AsyncClient, path: str) -> None:
        answers = await asyncio.gather(*(client.get(path) for _ in range(POOL_SIZE)))
        assert {answer.text for answer in answers} == {"".join(f"{number}\n" for number in range(1, 5001))}
        await assert_pool_is_whole(client)

    async def test_client_that_leaves_early(self, client: httpx.AsyncClient) -> None:
        for _ in range(3 * POOL_SIZE):
            async with client.stream("GET", "/stream/slow") as answer:
                await anext(answer.aiter_bytes())
        whole = await client.get("/stream/reader")
        assert whole.text.endswith("\n5000\n")


class TestBackgroundTask:
    async def test_with_the_request_session_fails(self, server: RunningServer, client: httpx.AsyncClient) -> None:
        for _ in range(3 * POOL_SIZE):
            assert (await client.post("/background/request-session")).status_code == 200
        path = "/background/request-session"
        await server.wait_for_output(f'unhandled error method="POST" path="/api/v1{path}"')
        assert "This Session has been permanently closed" in traceback_of(server, path)
        await assert_pool_is_whole(client)

    async def test_with_its_own_transaction(self, client: httpx.AsyncClient) -> None:
        person = {"name": "Ann", "username": "ann", "email": "ann@example.com", "password": "Pr1de&Prejudice"}
        assert (await client.post("/user", json=person)).status_code == 201
        assert (await client.post("/background/transaction")).status_code == 200

        async def is_renamed() -> bool:
            return "From a background task" in (await client.get("/user/ann")).text

        await wait_until(is_renamed)


class TestForgottenConnection:
    async def test_does_not_take_a_place_for_ever(self, server: RunningServer, client: httpx.AsyncClient) -> None:
        ready = f"{server.url}/health/ready"
        for _ in range(2):
            for _ in range(POOL_SIZE):
                assert (await client.post("/forgotten/transaction")).status_code == 200
            assert (await client.post("/write")).status_code == 503

            async def is_whole() -> bool:
                return (await client.post("/write")).status_code == 200

            await wait_until(is_whole)
            await assert_pool_is_whole(client)
            assert (await client.get(ready)).status_code == 200

    async def test_readiness_says_when_no_connection_is_free(self, clone: Clone) -> None:
        """With the default limit for idle transactions, which is longer than a load balancer should wait."""
        server = await clone.start(POSTGRES_POOL_SIZE=str(POOL_SIZE))
        ready = f"{server.url}/health/ready"
        assert "connection pool" not in (await server.client.get(ready)).json()["dependencies"]
        for _ in range(POOL_SIZE):
            await server.client.post("/forgotten/transaction")

        async def is_drained() -> bool:
            return (await server.client.get(ready)).status_code == 503

        await wait_until(is_drained)
        answer = (await server.client.get(ready)).json()
        assert answer["status"] == "not ready"
        assert (answer["dependencies"]["connection pool"], answer["dependencies"]["postgresql"]) == ("down", "up")


class TestSlowService:
    async def test_within_the_limit(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("/slow-service", params={"seconds": 0.1})).status_code == 200

    @pytest.mark.parametrize("writes_after", [True, False])
    async def test_beyond_the_limit(self, server: RunningServer, client: httpx.AsyncClient, writes_after: bool) -> None:
        params = {"seconds": IDLE_SECONDS + 1, "writes_after": writes_after}
        answer = await client.post("/slow-service", params=params)
        assert (answer.status_code, answer.json()["detail"]) == (500, "Internal server error")
        assert "POSTGRES_IDLE_TIMEOUT" in traceback_of(server, "/slow-service")
        await assert_pool_is_whole(client)


class TestSlowStatement:
    async def test_of_a_transaction_with_more_time(self, client: httpx.AsyncClient) -> None:
        begin = time.monotonic()
        assert (await client.post("/report", params={"seconds": 4, "statement_timeout": 10})).status_code == 200
        assert time.monotonic() - begin >= 4

    @pytest.mark.parametrize("params", [{"seconds": 4}, {"seconds": 4, "statement_timeout": 1}])
    async def test_beyond_its_time(self, client: httpx.AsyncClient, params: dict[str, float]) -> None:
        assert (await client.post("/report", params=params)).status_code == 503
        await assert_pool_is_whole(client)

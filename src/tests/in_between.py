"""Writes that commit during a request, after one of its statements, and requests that wait for a lock.

See `test_write_in_between.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import Executable

from app.core.cache import CacheStore
from app.core.database import Reader, transaction
from tests.fixtures import Fetch
from tests.helper import running, wait_until

Write = Callable[[], Awaitable[Any]]
Between = Callable[[int, Write], None]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    """`between(2, write)`: the next request waits for `write()` after its second statement on the reader."""
    fetch_all = Reader.fetch_all
    countdown: list[Write | None] = []

    async def fetch_all_and_write(reader: Reader, *arguments: Any) -> Sequence[Any]:
        rows = await fetch_all(reader, *arguments)
        if countdown and (write := countdown.pop()) is not None:
            await write()
        return rows

    def set_up(statement: int, write: Write) -> None:
        countdown[:] = [write, *[None] * (statement - 1)]

    monkeypatch.setattr(Reader, "fetch_all", fetch_all_and_write)
    return set_up


@pytest.fixture
def check_read(
    client: httpx.AsyncClient,
    between: Between,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
    statement: int,
) -> Callable[..., Awaitable[None]]:
    """Read a path while writes commit: the answer is right before, between or after them."""
    monkeypatch.setattr(CacheStore, "is_open", False)

    async def check(path: str, *writes: str, headers: dict[str, str] | None = None) -> None:
        async def read() -> tuple[int, Any]:
            response = await client.get(f"/api/v1/{path}", headers=headers)
            return response.status_code, response.json()

        async def write() -> None:
            for sql in writes:
                await fetch(sql)
                possible.append(await read())

        possible = [await read()]
        between(statement, write)
        assert await read() in possible

    return check


@pytest.fixture
def meanwhile(between: Between, fetch: Fetch, statement: int) -> Callable[..., Awaitable[httpx.Response]]:
    """Send a request, and commit the writes after its statement `statement`, or after its end if it has fewer."""

    async def do(request: Awaitable[httpx.Response], *writes: str) -> httpx.Response:
        waiting = [*writes]

        async def write() -> None:
            while waiting:
                await fetch(waiting.pop(0))

        between(statement, write)
        response = await request
        await write()
        return response

    return do


@pytest.fixture
def check_limit(
    client: httpx.AsyncClient,
    meanwhile: Callable[..., Awaitable[httpx.Response]],
    fetch: Fetch,
    superuser_headers: dict[str, str],
) -> Callable[..., Awaitable[None]]:
    """Change or delete a row whose limit the writes set to 99: the request came first, or found nothing."""

    async def check(method: str, path: str, table: str, *writes: str) -> None:
        body = {"limit": 7} if method == "PATCH" else None
        request = client.request(method, f"/api/v1/{path}", json=body, headers=superuser_headers)
        response = await meanwhile(request, *writes)
        found = [row["limit"] for row in await fetch(f"SELECT * FROM {table}")]  # noqa: S608 (a fixed word)
        assert (response.status_code, found) in [(200, [99] if method == "PATCH" else []), (404, [99])]

    return check


@pytest.fixture
def check_name(
    client: httpx.AsyncClient,
    meanwhile: Callable[..., Awaitable[httpx.Response]],
    fetch: Fetch,
    superuser_headers: dict[str, str],
) -> Callable[..., Awaitable[None]]:
    """Rename or delete the row `free`, while row 1 gives this name to row 2: one of them changes, or none."""

    async def check(method: str, table: str) -> None:
        body = {"name": "pro"} if method == "PATCH" else None
        request = client.request(method, f"/api/v1/{table}/free", json=body, headers=superuser_headers)
        renames = [f"UPDATE {table} SET name = '{new}' WHERE name = '{old}'" for old, new in RENAMES]  # noqa: S608
        response = await meanwhile(request, *renames)
        found = [(row["id"], row["name"]) for row in await fetch(f"SELECT id, name FROM {table} ORDER BY id")]  # noqa: S608
        possible = [(404, [(1, "old"), (2, "free")])]
        if method == "PATCH":
            possible += [(200, [(1, "pro"), (2, "free")]), (200, [(1, "old"), (2, "pro")])]
        else:
            possible += [(200, [(2, "free")]), (200, [(1, "old")])]
        assert (response.status_code, found) in possible

    return check


RENAMES = [("free", "old"), ("next", "free")]
WAITING = """
    SELECT count(*) AS waiting FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND wait_event_type = 'Lock'
"""


async def wait_for_locks(fetch: Fetch, number: int = 1) -> None:
    """Wait until `number` sessions of the database wait for a lock."""

    async def are_waiting() -> bool:
        await fetch("SELECT pg_stat_clear_snapshot()")  # a transaction sees the same activity until its end
        return bool((await fetch(WAITING))[0]["waiting"] >= number)

    await wait_until(are_waiting)


@asynccontextmanager
async def in_turn(
    fetch: Fetch, lock: Executable, *requests: Awaitable[httpx.Response]
) -> "AsyncIterator[list[asyncio.Future[httpx.Response]]]":
    """Run requests beside the block, during which a lock is held: each waits for it or for the one before.

    After the block they have their answers.
    """
    answers: list[asyncio.Future[httpx.Response]] = []
    async with AsyncExitStack() as stack, transaction() as db:
        await db.execute(lock)
        for number, request in enumerate(requests, 1):
            answers += await stack.enter_async_context(running(request))
            await wait_for_locks(fetch, number)
        yield answers

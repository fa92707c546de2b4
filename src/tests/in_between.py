"""Fixtures for writes that commit during a request, after one of its statements: see `test_write_in_between.py`."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest

from app.core.cache import CacheStore
from app.core.database import Reader
from tests.fixtures import Fetch

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

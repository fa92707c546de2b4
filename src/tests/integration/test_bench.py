"""`make bench`: failures instead of invalid measurements."""

import asyncio
import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain, cycle, repeat
from pathlib import Path

import pytest

from bench import load, wrk
from bench.bulk import Content
from bench.check import refuse_differences, without_cursor
from bench.endpoints import Request
from bench.growth import refuse_other_page
from bench.load import BenchError, Load, Measure
from bench.resources import NEEDED, missing
from scripts.servers import HOST


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    contract = tmp_path / "openapi.json"
    contract.write_text(json.dumps({"paths": NEEDED}))
    assert missing(contract) == ""
    contract.write_text(json.dumps({"paths": {"/api/v1/user/{username}": {}, "/api/v1/tasks/task": {}}}))
    assert missing(contract).endswith(" needs posts, tiers and rate limits: see bench/resources.py")


def test_expected_contents_match_the_bulk_of_rows() -> None:
    content = Content(users=20)
    written: dict[int, list[int]] = defaultdict(list)
    others = cycle(range(2, 21))
    for post in range(1, content.posts + 1):
        written[1 if post % 5 == 0 else next(others)].append(post)
    assert content.posts_on(1) + content.posts_on(2) == written[1]
    assert {user: content.posts_of(user) for user in range(2, 21)} == {user: written[user] for user in range(2, 21)}
    assert content.users_on(2) == [*range(11, 21)]
    assert content.users_on(3) == content.posts_on(3) == []


@pytest.mark.parametrize("expected", [([1], 2, True), ([1, 2], 3, True), ([1, 2], 2, False)])
def test_another_page_than_expected(expected: tuple[list[int], int, bool]) -> None:
    answer = {"data": [{"id": 1}, {"id": 2}], "total_count": 2, "has_more": True}
    refuse_other_page("/users", answer, ([1, 2], 2, True))
    with pytest.raises(BenchError, match=r"GET /users: .*, not "):
        refuse_other_page("/users", answer, expected)


RUNS = [pytest.param(load.run, id="own"), *([pytest.param(wrk.run, id="wrk")] if wrk.find_wrk() else [])]


async def answer_with(answers: Iterator[bytes], run: Callable[[Load], Measure]) -> Measure:
    """Measure a server that gives these answers; for an empty answer, it closes the connection."""

    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has closed the connection
            while await reader.readuntil(b"\r\n\r\n"):
                answer = next(answers)
                writer.write(answer)
                if not answer:
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.create_task(serve(reader, writer)))

    async with await asyncio.start_server(connected, HOST, 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        try:
            return await asyncio.to_thread(run, Load(port, os.getpid(), [Request("GET", "/").encode()], 200, 0.01))
        finally:
            await asyncio.gather(*served)


EXPECTED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
ANOTHER = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"


class TestLoad:
    @pytest.mark.parametrize("run", RUNS)
    async def test_the_expected_answer(self, run: Callable[[Load], Measure]) -> None:
        measure = await answer_with(repeat(EXPECTED), run)
        assert measure.per_second > 0
        assert 0 < measure.p50_ms <= measure.p99_ms

    @pytest.mark.parametrize("run", RUNS)
    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(ANOTHER, id="another status"),
            pytest.param(b"HTTP/1.1 200 OK\r\n\r\n{}", id="no length"),
            pytest.param(b"", id="the connection is closed"),
        ],
    )
    async def test_any_other(self, answer: bytes, run: Callable[[Load], Measure]) -> None:
        with pytest.raises(BenchError):
            await answer_with(repeat(answer), run)

    @pytest.mark.parametrize("run", RUNS)
    async def test_another_status_after_the_first_answers(self, run: Callable[[Load], Measure]) -> None:
        with pytest.raises(BenchError, match=r"unexpected answer: (HTTP/1.1 )?500 "):
            await answer_with(chain([EXPECTED] * 2, repeat(ANOTHER)), run)


def test_answers_that_differ() -> None:
    refuse_differences("GET user", {"ours": [{"id": 1}], "floor": [{"id": 1}]})
    with pytest.raises(BenchError, match=r"GET user: ours answers \{'id': 1\}, floor answers \{'id': 2\}"):
        refuse_differences("GET user", {"ours": [{"id": 1}], "floor": [{"id": 2}]})


def test_cursors_that_differ() -> None:
    def answers(ours: object, floor: object) -> dict[str, list[object]]:
        found = {"ours": ours, "floor": floor}
        return {name: [without_cursor({"data": [], "next_cursor": cursor})] for name, cursor in found.items()}

    refuse_differences("GET users", answers("one", "another"))
    refuse_differences("GET users", answers(None, None))
    with pytest.raises(BenchError):
        refuse_differences("GET users", answers("one", None))

"""`make bench`: a short run of all of it, and that it fails rather than measure what was not meant."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import pytest

from bench.check import refuse_differences
from bench.endpoints import NAMES, Request
from bench.load import BenchError, Load, put_load
from bench.report import COLUMNS, table
from bench.services import APPS
from scripts.servers import HOST

SRC = Path(__file__).parents[2]


async def test_a_short_run_has_every_endpoint() -> None:
    options = ("--json", "--rounds", "1", "--seconds", "0.05")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", *options), cwd=SRC, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode == 0
    result = json.loads(output)
    assert {*result["endpoints"]} == {*NAMES}
    for services in result["endpoints"].values():
        assert {*services} == {*APPS}
        for row in services.values():
            assert row["per_second"]["median"] > 0
            assert row["p50_ms"]["median"] <= row["p99_ms"]["median"]
        assert services["floor"]["to_floor"]["median"] == 1
    asked = {name: (rows["ours"]["statements"], rows["ours"]["commands"]) for name, rows in result["endpoints"].items()}
    assert asked["constant"] == (0, 0)
    assert asked["user"] == (1, 0)
    assert asked["cached"] == (0, 1)
    lines = table(result["endpoints"], {name: name for name in NAMES}).splitlines()
    assert len(lines) == 2 + len(NAMES) * len(APPS)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}


async def answer_with(answer: bytes) -> None:
    """Put a load on a server that always answers this, and then closes the connection if it is empty."""

    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the load is over
            while await reader.readuntil(b"\r\n\r\n"):
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
            await put_load(Load(port, os.getpid(), [Request("GET", "/").encode()], 200, 0.01))
        finally:
            await asyncio.gather(*served)


class TestLoad:
    async def test_the_expected_answer(self) -> None:
        await answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}", id="another status"),
            pytest.param(b"HTTP/1.1 200 OK\r\n\r\n{}", id="no length"),
            pytest.param(b"", id="the connection is closed"),
        ],
    )
    async def test_any_other(self, answer: bytes) -> None:
        with pytest.raises(BenchError):
            await answer_with(answer)


def test_answers_that_differ() -> None:
    refuse_differences("GET user", {"ours": [{"id": 1}], "floor": [{"id": 1}]})
    with pytest.raises(BenchError, match=r"GET user: ours answers \{'id': 1\}, floor answers \{'id': 2\}"):
        refuse_differences("GET user", {"ours": [{"id": 1}], "floor": [{"id": 2}]})

"""Reads and writes of all kinds while packets to and from the cache server are late: no answer is stale.

Each process has its own proxy before the server. The proxy delays each packet at random and keeps the order.
"""

import asyncio
import contextlib
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from app.models.user import User
from scripts.servers import HOST, Valkey
from tests.factories import make_user
from tests.fixtures import HeadersFor, RunningServer, RunServer
from tests.integration.own_app import send
from tests.specimen.main import SPECIMEN

pytestmark = pytest.mark.drill

API = "/api/v1"
Delay = Callable[[], float]
Posts = tuple[tuple[int, int], ...]
"""Number and version of each moth, in the order of creation."""


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


class Proxy:
    """A proxy that delays each packet in both directions, and keeps the order within a connection."""

    def __init__(self, target: int, delay: Delay) -> None:
        self._target = target
        self._delay = delay
        self._connections: set[asyncio.Future[None]] = set()
        self.hits = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._connect, HOST, 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await server.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._connections.add(task)
        await asyncio.wait([task])

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(HOST, self._target)
        except BaseException:
            writer.close()
            raise
        ways = [
            asyncio.create_task(way)
            for one, other in ((reader, back), (there, writer))
            for way in self._way(one, other, counted=one is there)
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, back):
                end.close()
                with contextlib.suppress(ConnectionError):
                    await end.wait_closed()

    def _way(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> Iterable[Coroutine[Any, Any, None]]:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def accept() -> None:
            while packet := await reader.read(65536):
                self.hits += counted and b'"title":' in packet
                waiting.put_nowait((time.monotonic() + self._delay(), packet))

        async def deliver() -> None:
            while True:
                due, packet = await waiting.get()
                await asyncio.sleep(due - time.monotonic())
                writer.write(packet)

        return accept(), deliver()


@dataclass(frozen=True)
class State:
    name: str | None
    """The author's username; None after the deletion."""
    moths: Posts = ()


@dataclass
class Author:
    """An author with the state of the blog after each write, and the number of acknowledged writes."""

    user: User
    headers: list[str]
    states: list[State]
    acknowledged: int = 0
    names: list[str] = field(default_factory=list)
    ids: dict[int, int] = field(default_factory=dict)
    """The id of each moth by its number."""

    @property
    def state(self) -> State:
        return self.states[-1]


def titles(moths: Posts) -> list[str]:
    return [f"{number}.{version}" for number, version in moths]


class Blogs:
    """Authors that write sequentially, and readers that check each answer."""

    def __init__(self, servers: list[RunningServer], headers_for: HeadersFor, admin: dict[str, str], seed: int) -> None:
        self._ports = [server.port for server in servers]
        self._headers_for = headers_for
        self._admin = lines(admin)
        self.authors: list[Author] = []
        self.is_over = False
        self.checked = 0
        self.ways: set[str] = set()
        self._random = random.Random(seed)

    async def add(self) -> Author:
        user = await make_user()
        author = Author(user, lines(await self._headers_for(user)), [State(user.username)], names=[user.username])
        self.authors.append(author)
        return author

    # -------- writing --------
    async def write(self, author: Author) -> None:
        """Make random writes that end with the author's deletion; continue with new authors until `is_over`."""
        while True:
            ways = [self._create, self._patch, self._delete, self._patch, self._hard_delete, self._create, self._rename]
            for way in [self._create, self._create, *self._random.sample(ways, len(ways)), self._end]:
                await asyncio.sleep(self._random.uniform(0, 0.4))
                if self.is_over:
                    return
                if author.state.moths or way in {self._create, self._rename, self._end}:
                    await way(author)
                    self.ways.add(way.__name__)
            author = await self.add()

    async def _create(self, author: Author) -> None:
        number = 1 + max((number for state in author.states for number, _ in state.moths), default=0)
        new = State(author.state.name, (*author.state.moths, (number, 0)))
        body = {"title": f"{number}.0", "text": "text"}
        created = await self._send(author, new, "POST", f"{author.state.name}/moth", body=body)
        author.ids[number] = created["id"]

    async def _patch(self, author: Author) -> None:
        number, version = self._random.choice(author.state.moths)
        moths = tuple((each, version + 1 if each == number else known) for each, known in author.state.moths)
        path = f"{author.state.name}/moth/{author.ids[number]}"
        await self._send(author, State(author.state.name, moths), "PATCH", path, {"title": f"{number}.{version + 1}"})

    async def _delete(self, author: Author) -> None:
        await self._remove(author, "moth", author.headers)

    async def _hard_delete(self, author: Author) -> None:
        await self._remove(author, "db_moth", self._admin)

    async def _remove(self, author: Author, kind: str, headers: list[str]) -> None:
        number, _ = self._random.choice(author.state.moths)
        moths = tuple(moth for moth in author.state.moths if moth[0] != number)
        path = f"{author.state.name}/{kind}/{author.ids[number]}"
        await self._send(author, State(author.state.name, moths), "DELETE", path, headers=headers)

    async def _rename(self, author: Author) -> None:
        name = f"{author.user.username}x{len(author.names)}"
        author.names.append(name)
        path = f"user/{author.state.name}"
        await self._send(author, State(name, author.state.moths), "PATCH", path, {"username": name})

    async def _end(self, author: Author) -> None:
        kind, headers = self._random.choice([("user", author.headers), ("db_user", self._admin)])
        await self._send(author, State(None), "DELETE", f"{kind}/{author.state.name}", headers=headers)

    async def _send(
        self,
        author: Author,
        new: State,
        method: str,
        path: str,
        body: dict[str, str] | None = None,
        headers: list[str] | None = None,
    ) -> dict[str, int]:
        author.states.append(new)
        port = self._random.choice(self._ports)
        text = json.dumps(body) if body else ""
        status, _, answer = await send(port, method, f"{API}/{path}", headers or author.headers, text)
        assert status in {200, 201}, answer
        author.acknowledged = len(author.states) - 1
        found: dict[str, int] = json.loads(answer)
        return found

    # -------- reading --------
    async def read_until(self, is_enough: Callable[["Blogs"], bool]) -> None:
        while not is_enough(self):
            await self._read(random.choice(self.authors[-8:]))

    async def _read(self, author: Author) -> None:
        """Read, and check that the answer matches a state since the last write acknowledged before the read."""
        name = self._random.choice(author.names[-2:])
        number = self._random.choice([*author.ids, 0])
        known = author.acknowledged
        path = f"{name}/moth/{author.ids[number]}" if number else f"{name}/moths"
        status, _, body = await send(self._random.choice(self._ports), "GET", f"{API}/{path}")
        states = author.states[known:]
        shown: list[str] | None = None
        if status == 200:
            answer = json.loads(body)
            shown = [moth["title"] for moth in answer["data"]] if "data" in answer else [answer["title"]]
        possible: list[list[str] | None] = []
        for state in states:
            moths = [moth for moth in state.moths if number in {0, moth[0]}]
            is_found = state.name == name and (moths or not number)
            possible.append(titles(tuple(moths)) if is_found else None)
        assert status in {200, 404}, body
        assert shown in possible, f"{path}: {shown} was read, {possible} were possible"
        self.checked += 1


def lines(headers: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    with Valkey(tmp_path / "valkey") as server:
        yield server


class Run:
    """Two processes with a proxy each, and the blogs that are written and read through both."""

    def __init__(self, valkey: Valkey, run_server: RunServer, make_blogs: Callable[..., Blogs]) -> None:
        self._valkey = valkey
        self._run_server = run_server
        self._make_blogs = make_blogs
        self.servers: list[RunningServer] = []
        self._proxies: list[Proxy] = []

    @property
    def hits(self) -> int:
        return sum(proxy.hits for proxy in self._proxies)

    async def __call__(self, delay: Delay, environment: dict[str, str], is_enough: Callable[[Blogs], bool]) -> Blogs:
        proxies = self._proxies = [Proxy(self._valkey.port, delay) for _ in range(2)]
        async with proxies[0].running() as first, proxies[1].running() as second:
            addresses = [
                {**self._valkey.environment("CACHE"), "REDIS_CACHE_PORT": str(port)} for port in (first, second)
            ]
            starting = (self._run_server(app=SPECIMEN, environment={**address, **environment}) for address in addresses)
            self.servers += await asyncio.gather(*starting)
            blogs = self._make_blogs(self.servers)
            authors = [await blogs.add() for _ in range(6)]
            try:
                async with asyncio.timeout(90), asyncio.TaskGroup() as everybody:
                    for author in authors:
                        everybody.create_task(blogs.write(author))
                    async with asyncio.TaskGroup() as readers:
                        for _ in range(80):
                            readers.create_task(blogs.read_until(is_enough))
                    blogs.is_over = True
            finally:
                for server in self.servers:
                    await server.stop()
        return blogs


@pytest.fixture
def run(valkey: Valkey, run_server: RunServer, headers_for: HeadersFor, superuser_headers: dict[str, str]) -> Run:
    seed = random.randrange(2**32)
    return Run(valkey, run_server, lambda servers: Blogs(servers, headers_for, superuser_headers, seed))


async def test_packets_that_are_late(run: Run) -> None:
    blogs = await run(
        lambda: random.uniform(0, 0.2),
        {"REDIS_CACHE_TIMEOUT": "5", "REDIS_CACHE_REMOVAL_TIMEOUT": "5"},
        # Reads bypass the cache and are fast until the process has cleared it, so also require hits.
        lambda blogs: blogs.checked >= 2000 and run.hits >= 200,
    )
    assert blogs.ways == {"_create", "_patch", "_delete", "_hard_delete", "_rename", "_end"}


class Blackout:
    """A delay that holds packets from the eighth second after the first read until the fourteenth.

    A process that has just started distrusts its cache for five seconds.
    """

    def __init__(self) -> None:
        self._began = math.inf

    def delay(self) -> float:
        since = time.monotonic() - self._began
        return 14 - since if 8 < since < 14 else random.uniform(0, 0.02)

    def is_over(self, blogs: Blogs) -> bool:
        self._began = min(self._began, time.monotonic())
        return time.monotonic() - self._began > 26


async def test_packets_that_are_later_than_anybody_waits(run: Run) -> None:
    """Delays exceed the removal timeout: writes continue, and reads bypass the cache until all removals are done."""
    blackout = Blackout()
    timeouts = {"REDIS_CACHE_TIMEOUT": "0.2", "REDIS_CACHE_REMOVAL_TIMEOUT": "2"}  # the defaults
    blogs = await run(blackout.delay, timeouts, blackout.is_over)
    assert blogs.checked >= 2000
    assert run.hits >= 200
    assert all('role="cache"' in server.output for server in run.servers)
    assert any('role="cache invalidation"' in server.output for server in run.servers)

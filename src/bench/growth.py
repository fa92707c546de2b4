"""Latency of single requests on a database with a million users and five million posts: `python -m bench growth`.

The same requests go to a service with a thousand users for comparison.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import asyncpg
from redis import Redis

from bench.bulk import POSTS_PER_USER, Content, load
from bench.endpoints import Request
from bench.load import GIVE_UP_SECONDS, BenchError, percentile_ms, split, unexpected
from bench.report import markdown
from bench.services import SRC, Bench, Service, running_bench, sign_in
from scripts.servers import HOST

SMALL = 1000
POSTS = "/api/v1/user1/posts"
WARM_UP = 10  # requests that are not counted; after them PostgreSQL uses generic plans
KEYS_AT_ONCE = 50_000
PUT_KEYS = """
for number = ARGV[1], ARGV[2] do
  local name = 'other' .. number
  redis.call('SET', name .. '_posts:page_1:items_per_page:10:' .. name, 'x', 'EX', 86400)
end
"""
COLUMNS = ("request", "p50 ms", "p99 ms", "p50 ms, few rows", "ratio")

Waits = tuple[str, list[float]]
"""The kind of request, and the latency of each answer in seconds."""


@dataclass(frozen=True)
class World:
    """Servers, a service and their contents."""

    bench: Bench
    service: Service
    content: Content
    tokens: Sequence[str]
    requests: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--users", type=int, default=1_000_000, help="number of users; there are five times as many posts"
    )
    parser.add_argument("--requests", type=int, default=300, help="number of requests of each kind")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Load the rows and measure the requests; return the result as data and as text."""
    contents = Content(options.users), Content(SMALL)
    with ExitStack() as stack:
        benches = [stack.enter_context(running_bench()) for _ in contents]
        seconds, _ = (load(bench, content) for bench, content in zip(benches, contents, strict=True))
        services = [stack.enter_context(bench.service("ours")) for bench in benches]
        many, few = (
            World(bench, service, content, sign_in(service), options.requests)
            for bench, service, content in zip(benches, services, contents, strict=True)
        )
        found: list[tuple[str, list[float], list[float] | None]]
        found = [(title, waits, base) for (title, waits), (_, base) in zip(_measure(many), _measure(few), strict=True)]
        found += [(title, waits, None) for title, waits in _measure_beside_keys(many)]
    rows = {
        title: {
            "p50_ms": percentile_ms(waits, 50),
            "p99_ms": percentile_ms(waits, 99),
            "few_rows_p50_ms": percentile_ms(base, 50) if base else None,
        }
        for title, waits, base in found
    }
    loaded = f"{many.content.users:,} users and {many.content.posts:,} posts, loaded in {seconds:.0f} s"
    return {"users": options.users, "load_seconds": seconds, "growth": rows}, f"{table(rows)}\n\n{loaded}"


def table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    lines = [list(COLUMNS)]
    for title, row in rows.items():
        few = row["few_rows_p50_ms"]
        ratio = (row["p50_ms"] or 0) / few if few else None
        cells = (row["p50_ms"], row["p99_ms"], few, ratio)
        lines.append([title, *("" if cell is None else f"{cell:.2f}" for cell in cells)])
    return markdown(lines, texts=1)


def refuse_other_page(path: str, answer: Mapping[str, Any], expected: tuple[Sequence[int], int, bool]) -> None:
    """Raise BenchError unless the page has these ids, this total count and this `has_more`."""
    found = ([row["id"] for row in answer["data"]], answer["total_count"], answer["has_more"])
    if found != expected:
        raise BenchError(f"GET {path}: {found}, not {expected}")


def _measure(world: World) -> Iterator[Waits]:
    with world.bench.redis() as redis, _Client(world.service.port) as client:
        yield from _lists(world, client, redis)
        yield from _writes(world, client)
    yield from _counts(world)


def _measure_beside_keys(world: World) -> Iterator[Waits]:
    """Measure the removals that a write causes: first alone, then with as many other keys as there are users."""
    with world.bench.redis() as redis:
        redis.config_resetstat()
        keys = f"{world.content.users:,} other keys in Valkey"
        yield "removal of a user's lists", _removals(world)
        for first in range(0, world.content.users, KEYS_AT_ONCE):
            redis.eval(PUT_KEYS, 0, first, min(first + KEYS_AT_ONCE, world.content.users) - 1)
        with _Client(world.service.port) as client:
            yield f"PATCH post, {keys}", _patches(world, client)
        yield f"removal of a user's lists, {keys}", _removals(world)
        used = redis.info("commandstats").keys()
        if slow := used & {"cmdstat_scan", "cmdstat_keys"}:
            raise BenchError(f"the removal scanned all keys of Valkey: {', '.join(sorted(slow))}")


def _lists(world: World, client: "_Client", redis: Redis) -> Iterator[Waits]:
    content, times = world.content, range(WARM_UP + world.requests)

    def read(path: str, ids: Sequence[int], total: int, has_more: bool) -> float:
        redis.flushdb()  # so that each read is a cache miss
        seconds, answer = client.ask(Request("GET", path))
        refuse_other_page(path, answer, (ids, total, has_more))
        return seconds

    lists = {"GET /users": ("/api/v1/users", content.users_on), "first user's posts": (POSTS, content.posts_on)}
    middle, pages = content.pages // 2, content.pages
    numbers = {"page 1": 1, "middle": middle, "nine tenths": pages * 9 // 10, "last page": pages, "beyond": pages + 1}
    for title, (path, ids_on) in lists.items():
        for where, page in numbers.items():
            expected = (ids_on(page), content.users, page < pages)
            yield f"{title}, {where}", [read(f"{path}?page={page}", *expected) for _ in times][WARM_UP:]
        for where, page in {"beginning": 1, "middle": middle, "end": pages - 1}.items():
            _, answer = client.ask(Request("GET", f"{path}?page={page}"))
            url = f"{path}?cursor={answer['next_cursor']}"
            expected = (ids_on(page + 1), content.users, page + 1 < pages)
            yield f"{title}, cursor, {where}", [read(url, *expected) for _ in times][WARM_UP:]
    users = [2 + number % (content.users - 1) for number in times]
    lists_of = {user: content.posts_of(user) for user in users}
    waits = [read(f"/api/v1/user{user}/posts", lists_of[user], len(lists_of[user]), False) for user in users]
    yield "another user's posts, each another's", waits[WARM_UP:]


def _writes(world: World, client: "_Client") -> Iterator[Waits]:
    waits, posts = [], len(world.content.posts_of(2))
    new = Request("POST", "/api/v1/user2/post", world.tokens[1], '{"title": "A new post", "text": "What it says"}')
    for number in range(WARM_UP + world.requests):
        waits.append(client.ask(new, 201)[0])
        _, answer = client.ask(Request("GET", "/api/v1/user2/posts"))
        if answer["total_count"] != posts + number + 1:
            raise BenchError(f"total_count is {answer['total_count']}, not {posts + number + 1}")
    yield "POST post", waits[WARM_UP:]
    yield "PATCH post", _patches(world, client)


def _patches(world: World, client: "_Client") -> list[float]:
    """Change the first user's posts one after the other."""
    waits = []
    for number in range(WARM_UP + world.requests):
        post = POSTS_PER_USER * (1 + number % world.content.users)
        title = f"Changed {time.monotonic_ns()}"
        body = json.dumps({"title": title})
        seconds, answer = client.ask(Request("PATCH", f"/api/v1/user1/post/{post}", world.tokens[0], body))
        if (answer["id"], answer["title"]) != (post, title):
            raise BenchError(f"the title became {answer['title']}, not {title}")
        waits.append(seconds)
    return waits[WARM_UP:]


def _removals(world: World) -> list[float]:
    first, last = 2, 1 + min(world.requests, world.content.users - 1)
    command = [sys.executable, "-m", "bench.removal", *map(str, (world.service.port, first, last))]
    done = subprocess.run(command, cwd=SRC, env=world.bench.environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(done.stderr)
    waits: list[float] = json.loads(done.stdout)
    return waits


def _counts(world: World) -> Iterator[Waits]:
    """Measure how long counting the rows for each request would take."""

    async def count(table: str, owner: str) -> list[float]:
        connection = await asyncpg.connect(world.bench.environment["DATABASE_URL"])
        waits = []
        for _ in range(WARM_UP):
            began = time.perf_counter()
            found = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE NOT is_deleted {owner}")  # noqa: S608
            waits.append(time.perf_counter() - began)
            if found != world.content.users:
                raise BenchError(f"{table}: {found} rows, not {world.content.users}")
        await connection.close()
        return waits

    yield "count(*) of users, by hand", asyncio.run(count('"user"', ""))
    yield "count(*) of the first user's posts, by hand", asyncio.run(count("post", "AND created_by_user_id = 1"))


class _Client:
    """One connection that sends one request at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=GIVE_UP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: Request, status: int = 200) -> tuple[float, Any]:
        """Return the latency in seconds, and the content of the answer."""
        message, received = request.encode(), b""
        began = time.perf_counter()
        self._socket.sendall(message)
        while (answer := split(received)) is None:
            more = self._socket.recv(65536)
            if not more:
                raise BenchError("the connection was closed by the server")
            received += more
        seconds = time.perf_counter() - began
        if not received.startswith(b"HTTP/1.1 %d " % status):
            raise unexpected(received)
        return seconds, json.loads(answer[1])

"""Checks before the measurement: the services give the same answers. Counts their statements and commands, too."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bench.endpoints import Endpoint, Request
from bench.load import BenchError
from bench.services import Bench, Service

_STATEMENT = re.compile(rb" LOG:  (?:statement|execute [^:]*): ")
_END = "the end of what is counted"
_RANDOM_ID = re.compile(r"[0-9a-f]{32}")  # of a task


@dataclass(frozen=True)
class Asked:
    """Statements and commands that one request sends to PostgreSQL and Redis."""

    statements: float
    commands: float


def send(client: httpx.Client, request: Request, status: int) -> Any:
    """Send the request; return the answer's content without values that differ each time."""
    answer = client.request(request.method, request.path, headers=request.headers, content=request.body)
    if answer.status_code != status:
        raise BenchError(f"{request.method} {request.path}: {answer.status_code}, not {status}: {answer.text}")
    return without_cursor(json.loads(_RANDOM_ID.sub("*", answer.text)))


def without_cursor(content: Any) -> Any:
    """Mask the cursor: each service signs its own, but all must agree on whether there is one."""
    if isinstance(content, dict) and isinstance(content.get("next_cursor"), str):
        return {**content, "next_cursor": "*"}
    return content


def refuse_differences(title: str, answers: Mapping[str, Sequence[object]]) -> None:
    """Raise BenchError unless all services gave the same answers."""
    (first, expected), *others = answers.items()
    for name, found in others:
        for one, other in zip(expected, found, strict=True):
            if one != other:
                raise BenchError(f"{title}: {first} answers {one}, {name} answers {other}")


def check(
    bench: Bench, services: Mapping[str, Service], endpoints: Mapping[str, Endpoint]
) -> dict[str, dict[str, Asked]]:
    """Send each request once to compare the answers, then again with warm caches to count statements and commands."""
    asked: dict[str, dict[str, Asked]] = {}
    for name, endpoint in endpoints.items():
        answers: dict[str, list[object]] = {}
        asked[name] = {}
        for service_name, service in services.items():
            with bench.redis() as redis, bench.redis() as watcher, service.client() as client:
                redis.flushall()
                answers[service_name] = [send(client, request, endpoint.status) for request in endpoint.requests]
                statements = _statements(bench)
                with watcher.monitor() as monitor:
                    for request in endpoint.requests:
                        send(client, request, endpoint.status)
                    redis.echo(_END)
                    commands = sum(1 for _ in _until_end(monitor))
                times = len(endpoint.requests)
                asked[name][service_name] = Asked((_statements(bench) - statements) / times, commands / times)
        refuse_differences(endpoint.title, answers)
    return asked


def _until_end(monitor: Any) -> Iterator[str]:
    """Yield the commands of clients, without those of scripts."""
    while True:
        command = monitor.next_command()
        if _END in command["command"]:
            return
        if command["client_type"] != "lua":
            yield command["command"]


def _statements(bench: Bench) -> int:
    """Count the statements in PostgreSQL's log, which has each before it runs."""
    return len(_STATEMENT.findall(bench.postgres_log.read_bytes()))

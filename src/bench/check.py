"""Before anything is measured: that the services answer the same, and what each asks its servers for an answer."""

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
    """How much of its servers one request uses."""

    statements: float
    commands: float


def send(client: httpx.Client, request: Request, status: int) -> Any:
    """What the answer says, without what is different each time."""
    answer = client.request(request.method, request.path, headers=request.headers, content=request.body)
    if answer.status_code != status:
        raise BenchError(f"{request.method} {request.path}: {answer.status_code}, not {status}: {answer.text}")
    return without_cursor(json.loads(_RANDOM_ID.sub("*", answer.text)))


def without_cursor(content: Any) -> Any:
    """Each service signs its own; that there is one, or none, is the same."""
    if isinstance(content, dict) and isinstance(content.get("next_cursor"), str):
        return {**content, "next_cursor": "*"}
    return content


def refuse_differences(title: str, answers: Mapping[str, Sequence[object]]) -> None:
    """Raise BenchError unless all services have answered the same."""
    (first, expected), *others = answers.items()
    for name, found in others:
        for one, other in zip(expected, found, strict=True):
            if one != other:
                raise BenchError(f"{title}: {first} answers {one}, {name} answers {other}")


def check(
    bench: Bench, services: Mapping[str, Service], endpoints: Mapping[str, Endpoint]
) -> dict[str, dict[str, Asked]]:
    """Send each request once, for the answers, and once more, for what is asked when all is warm."""
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
    """The commands as clients sent them, without what scripts did."""
    while True:
        command = monitor.next_command()
        if _END in command["command"]:
            return
        if command["client_type"] != "lua":
            yield command["command"]


def _statements(bench: Bench) -> int:
    """How many statements PostgreSQL's log has by now: it writes each down before it runs it."""
    return len(_STATEMENT.findall(bench.postgres_log.read_bytes()))

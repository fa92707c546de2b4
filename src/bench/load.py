"""The load generator: handwritten HTTP/1.1 on a few connections, cheap enough to saturate a server from one process."""

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import cast

import psutil
import uvloop

from scripts.servers import HOST

CONNECTIONS = 32
GIVE_UP_SECONDS = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class BenchError(Exception):
    """An error whose message says why a measurement is invalid."""


@dataclass(frozen=True)
class Load:
    port: int
    pid: int
    requests: Sequence[bytes]
    status: int
    seconds: float
    connections: int = CONNECTIONS


@dataclass(frozen=True)
class Measure:
    cpu_us: float
    """Processor time of the server's process for each request, user and system."""
    per_second: float
    p50_ms: float
    p99_ms: float


class Exchange(asyncio.Protocol, ABC):
    """A connection that sends one request at a time, with callbacks for a complete answer and for a failure."""

    sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> None:
        self._received = b""
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            answer = split(self._received)
        except BenchError as error:
            self.failed(error)
            return
        if answer is not None:
            self.answered(*answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed(BenchError(f"the connection was lost: {exc or 'closed by the server'}"))

    @abstractmethod
    def answered(self, head: bytes, body: bytes) -> None: ...

    @abstractmethod
    def failed(self, error: BenchError) -> None: ...


def split(answer: bytes) -> tuple[bytes, bytes] | None:
    """Return head and body of an answer; None while incomplete. Raises BenchError if its length is unknown."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return None
    length = _LENGTH.search(head)
    if length is None:
        raise unexpected(answer)
    return (head, body) if len(body) >= int(length[1]) else None


def unexpected(answer: bytes) -> BenchError:
    return BenchError(f"unexpected answer: {answer.decode(errors='replace')}")


class _Loop(Exchange):
    """A connection that repeats its requests, each as soon as the answer to the previous one is complete."""

    def __init__(self, requests: Sequence[bytes], status: int) -> None:
        self._requests = cycle(requests)
        self._status = b"HTTP/1.1 %d " % status
        self._idle = asyncio.get_running_loop().create_future()
        self.waits: list[float] = []

    async def run(self, times: int, until: float = 0) -> None:
        """Send at least `times` requests, and continue until the time `until`."""
        self.waits.clear()
        self._times, self._until = times, until
        self._idle = asyncio.get_running_loop().create_future()
        self.send(next(self._requests))
        await self._idle

    def answered(self, head: bytes, body: bytes) -> None:
        if not head.startswith(self._status):
            self.failed(unexpected(head + b"\r\n\r\n" + body))
            return
        now = time.perf_counter()
        self.waits.append(now - self.sent)
        if len(self.waits) < self._times or now < self._until:
            self.send(next(self._requests))
        else:
            self._idle.set_result(None)

    def failed(self, error: BenchError) -> None:
        if not self._idle.done():
            self._idle.set_exception(error)


async def put_load(load: Load) -> Measure:
    """Send each request once to warm up, then repeat all of them for `load.seconds` and measure.

    No request is in flight when the measurement begins or ends, so the processor time belongs to the counted requests.
    """
    server, loop = psutil.Process(load.pid), asyncio.get_running_loop()
    count = min(load.connections, len(load.requests))
    shares = [load.requests[number::count] for number in range(count)]
    connections: list[_Loop] = []
    try:
        async with asyncio.timeout(load.seconds + GIVE_UP_SECONDS):
            for share in shares:
                new = _Loop(share, load.status)
                connections.append(new)
                await loop.create_connection(lambda new=new: new, HOST, load.port)  # type: ignore[misc]
            await asyncio.gather(*(each.run(len(share)) for each, share in zip(connections, shares, strict=True)))
            began, cpu = time.perf_counter(), cpu_seconds(server)
            await asyncio.gather(*(each.run(1, began + load.seconds) for each in connections))
            cpu, seconds = cpu_seconds(server) - cpu, time.perf_counter() - began
    except TimeoutError:
        raise BenchError(f"no answer within {GIVE_UP_SECONDS:.0f} s") from None
    finally:
        for each in connections:
            each.transport.abort()
    waits = [wait for each in connections for wait in each.waits]
    return Measure(
        cpu_us=cpu / len(waits) * 1e6,
        per_second=len(waits) / seconds,
        p50_ms=percentile_ms(waits, 50),
        p99_ms=percentile_ms(waits, 99),
    )


def percentile_ms(seconds: Iterable[float], percent: int) -> float:
    ordered = sorted(seconds)
    return ordered[len(ordered) * percent // 100] * 1e3


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()  # utime and stime of /proc/PID/stat
    return float(times.user + times.system)


def run(load: Load) -> Measure:
    """Run `put_load` in a process of its own."""
    return uvloop.run(put_load(load))

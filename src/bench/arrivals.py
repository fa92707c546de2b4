"""An open load: requests arrive at a fixed rate, independently of the answers to earlier requests."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import psutil
import uvloop

from bench.endpoints import Request
from bench.load import GIVE_UP_SECONDS, BenchError, Exchange, cpu_seconds, percentile_ms, unexpected
from scripts.servers import HOST

_TICK_SECONDS = 0.001
_PROBE = Request("GET", "/health").encode()


@dataclass(frozen=True)
class Offer:
    port: int
    pid: int
    requests: Sequence[bytes]
    per_second: float
    seconds: float
    connections: int
    max_lag_ms: float
    """The greatest median delay of the generator; beyond it, the offered rate was not the intended rate."""


@dataclass(frozen=True)
class Outcome:
    """The answers during the load. Latencies count from the time at which a request was due to arrive."""

    offered_per_second: float
    answered_per_second: float
    shed_per_second: float
    unsent: float
    """Requests that still waited for a free connection when the load ended."""
    cpu: float
    """Share of a processor that the server used; below one if other processes took more of the machine."""
    p50_ms: float
    p99_ms: float
    lag_p50_ms: float
    """How late the generator offered the requests."""
    lag_p99_ms: float


class _Connection(Exchange):
    due = 0.0

    def __init__(self, generator: "_Generator") -> None:
        self._generator = generator
        self.opened = asyncio.get_running_loop().create_future()

    def answered(self, head: bytes, body: bytes) -> None:
        if self.opened.done():
            self._generator.answered(self, head, body)
        else:
            self.opened.set_result(None)

    def failed(self, error: BenchError) -> None:
        if self.opened.done():
            self._generator.failed(error)
        else:
            self.opened.set_exception(error)


class _Generator:
    """The arriving requests and their connections. Requests wait for a free connection in the order of arrival."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._requests = cycle(offer.requests)
        self._idle: list[_Connection] = []
        self._waiting: deque[float] = deque()
        self._is_over = False
        self._done = asyncio.get_running_loop().create_future()
        self.lags: list[float] = []
        self.served: list[tuple[float, float]] = []
        """For each request: time of the answer, and latency."""
        self.shed: list[float] = []
        self.connections: list[_Connection] = []

    async def run(self) -> Outcome:
        offer, server = self._offer, psutil.Process(self._offer.pid)
        await self._connect()
        arrivals = round(offer.per_second * offer.seconds)
        began, cpu = time.perf_counter(), cpu_seconds(server)
        end = began + offer.seconds
        number = 0
        while number < arrivals and not self._done.done():
            now = time.perf_counter()
            while number < arrivals and (due := began + number / offer.per_second) <= now:
                self.lags.append(now - due)
                self._waiting.append(due)
                self._send_next()
                number += 1
            await asyncio.sleep(_TICK_SECONDS)
        cpu = (cpu_seconds(server) - cpu) / (time.perf_counter() - began)
        unsent = len(self._waiting)
        self._waiting.clear()
        self._is_over = True
        self._finish_if_idle()
        await self._done
        if not self.served:
            raise BenchError("no request was served")
        return Outcome(
            offered_per_second=arrivals / offer.seconds,
            answered_per_second=sum(moment <= end for moment, _ in self.served) / offer.seconds,
            shed_per_second=sum(moment <= end for moment in self.shed) / offer.seconds,
            unsent=unsent,
            cpu=cpu,
            p50_ms=percentile_ms((wait for _, wait in self.served), 50),
            p99_ms=percentile_ms((wait for _, wait in self.served), 99),
            lag_p50_ms=percentile_ms(self.lags, 50),
            lag_p99_ms=percentile_ms(self.lags, 99),
        )

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self._offer.connections):
            connection = _Connection(self)
            await loop.create_connection(lambda connection=connection: connection, HOST, self._offer.port)  # type: ignore[misc]
            self.connections.append(connection)
            # uvloop accepts one new connection in each iteration of its loop, so new connections to a busy service
            # wait very long. Open all of them before the load begins.
            connection.send(_PROBE)
            await connection.opened
            self._idle.append(connection)

    def _send_next(self) -> None:
        if self._idle and self._waiting:
            connection = self._idle.pop()  # the most recently used, as in the pools of clients and proxies
            connection.due = self._waiting.popleft()
            connection.send(next(self._requests))

    def answered(self, connection: _Connection, head: bytes, body: bytes) -> None:
        now = time.perf_counter()
        if head.startswith(b"HTTP/1.1 200 "):
            self.served.append((now, now - connection.due))
        elif head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after:" in head.lower():
            self.shed.append(now)
        else:
            self.failed(unexpected(head + b"\r\n\r\n" + body))
        self._idle.append(connection)
        self._send_next()
        self._finish_if_idle()

    def _finish_if_idle(self) -> None:
        if self._is_over and len(self._idle) == len(self.connections) and not self._done.done():
            self._done.set_result(None)

    def failed(self, error: BenchError) -> None:
        if not self._done.done():
            self._done.set_exception(error)


async def offer_load(offer: Offer) -> Outcome:
    """Offer the load. Raises BenchError unless each answer is 200, or 503 with Retry-After, and for too much lag."""
    generator = _Generator(offer)
    try:
        async with asyncio.timeout(offer.seconds + 3 * GIVE_UP_SECONDS):
            outcome = await generator.run()
    except TimeoutError:
        raise BenchError(f"no answer within {3 * GIVE_UP_SECONDS:.0f} s") from None
    finally:
        for connection in generator.connections:
            connection.transport.abort()
    if outcome.lag_p50_ms > offer.max_lag_ms:
        raise BenchError(f"{offer.per_second:.0f} requests/s could not be offered: {outcome.lag_p50_ms:.0f} ms late")
    return outcome


def run(offer: Offer) -> Outcome:
    """Run `offer_load` in a process of its own."""
    return uvloop.run(offer_load(offer))

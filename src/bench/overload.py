"""Behaviour of one worker that gets more requests than it can serve: `python -m bench overload`.

The same load goes to a service with its limit on concurrent requests, and to a service without a limit.
"""

import argparse
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from statistics import median
from typing import Any

from bench import arrivals, load
from bench.arrivals import Offer, Outcome
from bench.endpoints import Endpoint, endpoints
from bench.load import CONNECTIONS, Load
from bench.report import markdown
from bench.services import Service, running_bench, sign_in

FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0)
NO_LIMIT = 1_000_000_000
ENDPOINTS = ("user", "users", "cached", "me", "patch")
MIXED = "mixed"
BURST_SECONDS = 2.5
"""How long the overload lasts before the measurement: the service first admits a burst above its limit."""
SATURATED_SECONDS = 1.0
"""How long a service is saturated to measure its capacity."""
COLUMNS = (
    "limit", "load", "arrive/s", "200/s", "of best", "503/s", "not sent", "processor", "p50 ms", "p99 ms", "lag p99 ms",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One load on one service."""

    outcome: Outcome
    share: float
    """Answered requests as a share of the service's capacity."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", choices=(MIXED, *ENDPOINTS), default=MIXED, help="default: all in turns")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; the table shows their medians")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2,
        help="duration of each load in each round; above 4 the service admits another burst",
    )
    parser.add_argument("--connections", type=int, default=1000, help="number of connections")
    parser.add_argument("--max-lag", type=float, default=50, help="greatest median delay of the generator in ms")
    parser.add_argument("--limit", type=int, help="MAX_CONCURRENT_REQUESTS; default: the service's setting")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measure; return the result as data and as text."""
    shown = str(options.limit or "default")
    given = {shown: str(options.limit) if options.limit else None, "none": str(NO_LIMIT)}
    rounds: dict[str, dict[float, list[Point]]] = {name: defaultdict(list) for name in given}
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        bench = stack.enter_context(running_bench())
        bench.fill()
        services = {
            name: stack.enter_context(
                bench.service("ours", may_warn=True, **({"MAX_CONCURRENT_REQUESTS": limit} if limit else {}))
            )
            for name, limit in given.items()
        }
        requests = _requests(endpoints(sign_in(services[shown])), options.endpoint)
        pool = stack.enter_context(ProcessPoolExecutor(1, spawn))
        for _ in range(options.rounds):
            for name, service in services.items():
                for factor, point in _round(pool, service, requests, options):
                    rounds[name][factor].append(point)
    found = {name: {factor: _median(points) for factor, points in each.items()} for name, each in rounds.items()}
    result = {
        name: {factor: {**asdict(point.outcome), "share_of_best": point.share} for factor, point in each.items()}
        for name, each in found.items()
    }
    return {"overload": result}, table(found)


def _median(points: Sequence[Point]) -> Point:
    """Return the median of each figure."""
    outcomes = zip(*(astuple(point.outcome) for point in points), strict=True)
    return Point(Outcome(*map(median, outcomes)), median(point.share for point in points))


def _requests(kinds: Mapping[str, Endpoint], name: str) -> Sequence[bytes]:
    chosen = [kinds[each].requests for each in (ENDPOINTS if name == MIXED else (name,))]
    return [request.encode() for one_of_each in zip(*chosen, strict=True) for request in one_of_each]


def _round(
    pool: ProcessPoolExecutor, service: Service, requests: Sequence[bytes], options: argparse.Namespace
) -> Iterator[tuple[float, Point]]:
    """Offer shares and multiples of the service's capacity.

    The capacity is measured before and after each load, because the speed of a machine drifts.
    """
    connections = min(CONNECTIONS, options.limit or CONNECTIONS)  # no more than the limit admits
    saturating = Load(service.port, service.process.pid, requests, 200, SATURATED_SECONDS, connections)

    def saturate() -> float:
        return pool.submit(load.run, saturating).result().per_second

    def offer(rate: float, seconds: float) -> Outcome:
        arriving = Offer(
            service.port, service.process.pid, requests, rate, seconds, options.connections, options.max_lag
        )
        return pool.submit(arrivals.run, arriving).result()

    offer(max(FACTORS) * saturate(), BURST_SECONDS)
    before = saturate()
    for factor in FACTORS:
        outcome = offer(factor * before, options.seconds)
        after = saturate()
        yield factor, Point(outcome, 2 * outcome.answered_per_second / (before + after))
        before = after


def table(found: Mapping[str, Mapping[float, Point]]) -> str:
    lines = [list(COLUMNS)]
    for name, by_factor in found.items():
        for factor, point in by_factor.items():
            outcome = point.outcome
            rates = (outcome.offered_per_second, outcome.answered_per_second, outcome.shed_per_second)
            offered, answered, shed = (f"{rate:.0f}" for rate in rates)
            waits = (outcome.p50_ms, outcome.p99_ms, outcome.lag_p99_ms)
            cells = [
                name,
                f"{factor:g}",
                offered,
                answered,
                f"{point.share:.0%}",
                shed,
                f"{outcome.unsent:.0f}",
                f"{outcome.cpu:.0%}",
            ]
            lines.append([*cells, *(f"{wait:.0f}" for wait in waits)])
    return markdown(lines, texts=1)

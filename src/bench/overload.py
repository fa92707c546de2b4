"""What becomes of one worker that is asked for more than it can do: `python -m bench overload`.

The same load arrives at a service with its limit on requests under way, and at one without.
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
WITHOUT = 1_000_000_000
ENDPOINTS = ("user", "users", "cached", "me", "patch")
MIXED = "mixed"
BURST_SECONDS = 2.5
"""How long a service is offered too much before anything is counted: more than the limit is let in at first."""
SATURATED_SECONDS = 1.0
"""How long a service is kept busy, to see how much it can do."""
COLUMNS = (
    "limit", "load", "arrive/s", "200/s", "of best", "503/s", "not sent", "processor", "p50 ms", "p99 ms", "lag p99 ms",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One load on one service."""

    outcome: Outcome
    share: float
    """What was answered of what the service can do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", choices=(MIXED, *ENDPOINTS), default=MIXED, help="default: all in turns")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are shown")
    parser.add_argument(
        "--seconds", type=float, default=2, help="for each load, each round; with more than 4 a burst is let in again"
    )
    parser.add_argument("--connections", type=int, default=1000, help="on which requests arrive")
    parser.add_argument("--max-lag", type=float, default=50, help="milliseconds by which half the requests may be late")
    parser.add_argument("--limit", type=int, help="MAX_CONCURRENT_REQUESTS; default: what the service has")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measure; return the result for programs and for people."""
    shown = str(options.limit or "default")
    given = {shown: str(options.limit) if options.limit else None, "none": str(WITHOUT)}
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
    """The medians, figure by figure."""
    outcomes = zip(*(astuple(point.outcome) for point in points), strict=True)
    return Point(Outcome(*map(median, outcomes)), median(point.share for point in points))


def _requests(kinds: Mapping[str, Endpoint], name: str) -> Sequence[bytes]:
    chosen = [kinds[each].requests for each in (ENDPOINTS if name == MIXED else (name,))]
    return [request.encode() for one_of_each in zip(*chosen, strict=True) for request in one_of_each]


def _round(
    pool: ProcessPoolExecutor, service: Service, requests: Sequence[bytes], options: argparse.Namespace
) -> Iterator[tuple[float, Point]]:
    """Offer shares and multiples of what the service can do. That is found out before and after each, since the speed
    of a machine drifts.
    """
    connections = min(CONNECTIONS, options.limit or CONNECTIONS)  # no more than the limit lets through
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

"""Compare the cost of requests to the service and to handwritten equivalents: `python -m bench [ENDPOINT ...]`.

`python -m bench growth` measures single requests on a database with a million users. `python -m bench overload`
measures a worker that gets more requests than it can serve.

The exit status is 1 if a service gives an unexpected answer, or another answer than the other services.
"""

import argparse
import json
import multiprocessing
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

from bench import growth, overload
from bench.check import check
from bench.endpoints import NAMES, endpoints
from bench.load import BenchError, Load, Measure, run
from bench.report import rows, table
from bench.resources import missing
from bench.services import APPS, running_bench, sign_in
from bench.wrk import find_wrk
from bench.wrk import run as run_wrk
from scripts.servers import ServerError

ROUNDS = 5
SECONDS = 1.5
STARTS = 9
"""How many times each service is started."""
PARTS = {"growth": growth, "overload": overload}
LOADS = {"wrk": run_wrk, "own": run}


def compare(names: Sequence[str], rounds: int, seconds: float, load_name: str) -> tuple[dict[str, Any], str]:
    """Check and measure; return the result as data and as text."""
    measures: dict[str, dict[str, list[Measure]]] = {name: defaultdict(list) for name in names}
    with running_bench() as bench:
        bench.fill()
        # Log statements only while they are counted, because logging takes time.
        bench.execute(("ALTER DATABASE postgres SET log_statement = 'all'",))
        with bench.services() as services:
            known = endpoints(sign_in(services["ours"]))
            chosen = {name: known[name] for name in names}
            asked = check(bench, services, chosen)
        bench.execute(("ALTER DATABASE postgres RESET log_statement",), ("VACUUM ANALYZE",))
        starts: dict[str, list[float]] = defaultdict(list)
        for number in range(STARTS):
            for name in _rotated_services(number):
                with bench.service(name) as started:
                    starts[name].append(started.start_seconds)
        spawn = multiprocessing.get_context("spawn")
        with bench.services() as services, ProcessPoolExecutor(1, spawn) as pool, bench.redis() as redis:
            for number in range(rounds + 1):
                for name, endpoint in chosen.items():
                    requests = [request.encode() for request in endpoint.requests]
                    for service in _rotated_services(number):
                        redis.flushall()
                        at = services[service]
                        job = Load(at.port, at.process.pid, requests, endpoint.status, seconds)
                        measure = pool.submit(LOADS[load_name], job).result()
                        if number > 0:  # the first round warms up
                            measures[name][service].append(measure)
            memory = {name: service.memory_mib() for name, service in services.items()}
    processes = {
        name: {
            "start_seconds": median(starts[name]),
            "start_to_floor": median(one / of for one, of in zip(starts[name], starts["floor"], strict=True)),
            "memory_mib": memory[name],
            "memory_to_floor": memory[name] / memory["floor"],
        }
        for name in APPS
    }
    found = {name: rows({service: measures[name][service] for service in services}, asked[name]) for name in names}
    lines = [table(found, {name: endpoint.title for name, endpoint in chosen.items()}), ""]
    for name, process in processes.items():
        start, start_ratio, mib, mib_ratio = process.values()
        lines.append(
            f"{name}: {start:.2f} s to start ({start_ratio:.2f} to floor), "
            f"{mib:.0f} MiB after the load ({mib_ratio:.2f})"
        )
    return {
        "load": load_name,
        "rounds": rounds,
        "seconds": seconds,
        "endpoints": found,
        "processes": processes,
    }, "\n".join(lines)


def _rotated_services(number: int) -> Sequence[str]:
    """Return the names of the services in the order of this round."""
    names, first = [*APPS], number % len(APPS)
    return names[first:] + names[:first]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _compare(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    return compare(options.endpoints or NAMES, options.rounds, options.seconds, options.load)


def _parse() -> tuple[argparse.Namespace, Callable[[argparse.Namespace], tuple[dict[str, Any], str]]]:
    name = next((argument for argument in sys.argv[1:] if argument in PARTS), None)
    doc = (PARTS[name].__doc__ if name else __doc__) or ""
    parser = argparse.ArgumentParser(prog="python -m bench", description=doc.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    if name:
        parser.add_argument("part", choices=[name])
        PARTS[name].add_arguments(parser)
        return parser.parse_args(), PARTS[name].run
    parser.add_argument("endpoints", nargs="*", metavar="ENDPOINT", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="number of rounds that are counted, after a warm-up round"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="duration for each service and endpoint in each round"
    )
    parser.add_argument("--load", choices=LOADS, default="wrk" if find_wrk() else "own", help="default: wrk if found")
    options = parser.parse_args()
    if unknown := {*options.endpoints} - {*NAMES}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join((*NAMES, *PARTS))}")
    return options, _compare


def main() -> int:
    options, run_part = _parse()
    signal.signal(signal.SIGTERM, _interrupt)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    try:
        result, text = run_part(options)
    except (BenchError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result, indent=2) if options.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Put load on the service while its servers fail, one after the other: `python -m soak [SECONDS]`.

The exit status is 1 if the service broke a promise by a 500, a late answer or an error that the fault does not excuse.
It is also 1 after a read older than an acknowledged write, or for an accepted job that never finished.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
from collections import defaultdict

import psutil
from redis.asyncio import Redis

from scripts.servers import HOST, ServerError
from soak import faults
from soak.load import Api, User
from soak.report import Report
from soak.resources import left_out
from soak.service import FINISHED, SRC, Service, running_service

USERS = 20
WARM_UP_SECONDS = 6
FAULT_SECONDS = 20.0
JOB_SECONDS = 60.0
"""How long after the load the last job may take to finish."""


def schedule(seconds: float) -> tuple[list[faults.Fault], float]:
    """Return the faults for a run of this length, and the seconds for each: all faults in turn if there is time."""
    seconds -= WARM_UP_SECONDS
    times = int(seconds // FAULT_SECONDS)
    if times < len(faults.ALL):
        return faults.SHORT, seconds / len(faults.SHORT)
    return [faults.ALL[number % len(faults.ALL)] for number in range(times)], FAULT_SECONDS


class Memory:
    """The memory of the API's workers, measured each second."""

    def __init__(self) -> None:
        self.samples: dict[int, list[int]] = defaultdict(list)

    async def watch(self, service: Service) -> None:
        while True:
            for process in service.api_workers():
                try:
                    resident = process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                if resident:  # 0 for a process that has just ended
                    self.samples[process.pid].append(resident)
            await asyncio.sleep(1)

    def __str__(self) -> str:
        longest = max(self.samples.values(), key=len)[WARM_UP_SECONDS:]
        first, last = (f"{sample / 2**20:.1f} MiB" for sample in (longest[0], longest[-1]))
        return f"memory: the API worker that lived longest had {first} when warm, {last} after {len(longest)} s"


async def finish_jobs(service: Service, report: Report) -> str:
    """Wait for the queued jobs; report those that are lost, and return a summary."""
    async with Redis(host=HOST, port=service.redis["queue"].port) as redis:
        deadline = time.monotonic() + JOB_SECONDS
        while True:
            runs = {job.decode(): int(times) async for job, times in redis.hscan_iter(FINISHED, count=1000)}
            lost = [job for job in report.jobs if job not in runs]
            if not lost or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
    for job in lost:
        report.breaks("lost jobs", job)
    again = sum(times > 1 for times in runs.values())
    return f"jobs: {len(report.jobs)} accepted, {len(lost)} lost, {again} finished more than once"


async def read_back(user: User) -> None:
    """Check after the last write that every way to read returns the written state."""
    if not user.token:
        await user.sign_in()
    for _ in range(len(user.jobs)):
        await user.read_task()
    user.doubt_until = time.monotonic()
    await user.settle()
    if user.doubt_until or user.jobs:
        user.api.report.breaks("in doubt to the end", f"user {user.number}: {user.jobs} {user.posts}")


async def soak(seconds: float) -> bool:
    """Run the load and the faults, print the report, and return whether all promises were kept."""
    plan, each = schedule(seconds)
    paths = json.loads((SRC / "openapi.json").read_text())["paths"]
    memory, end, crowd = Memory(), asyncio.Event(), list[User]()
    async with running_service() as service, service.client() as client:
        report = Report(await faults.seconds_until_ready(service))
        crowd += [User(number, Api(client, report, paths), crowd) for number in range(USERS)]
        async with asyncio.TaskGroup() as tasks:
            for user in crowd:
                tasks.create_task(user.live(end))
            watch = tasks.create_task(memory.watch(service))
            await asyncio.sleep(WARM_UP_SECONDS)
            await faults.inject(plan, each, service, report)
            end.set()
            watch.cancel()
        jobs = await finish_jobs(service, report)
        for user in crowd:
            await read_back(user)
    reads = f"reads: {report.reads} checked, {report.broken['stale reads']} stale"
    print(report.table(), "", reads, jobs, memory, *left_out(paths), *report.details, sep="\n")
    if report.broken:
        print("broken:", ", ".join(f"{times} {promise}" for promise, times in report.broken.items()))
        print("logs:", service.logs)
    else:
        shutil.rmtree(service.logs)
    return not report.broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seconds", type=float, nargs="?", default=1200)
    seconds = parser.parse_args().seconds
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background jobs ignore SIGINT
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # asyncio cancels on SIGINT
    try:
        return 0 if asyncio.run(soak(seconds)) else 1
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""Put load on the service while its servers fail, one after the other: `python -m soak [SECONDS]`.

Ends with status 1 when a promise was broken: a 500, an answer that is late or of another kind than the fault excuses, a
read older than a write that had answered, a job that was accepted and never finished.
"""

import argparse
import asyncio
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
from soak.service import FINISHED, Service, running_service

USERS = 20
WARM_UP_SECONDS = 6
FAULT_SECONDS = 20.0
JOB_SECONDS = 60.0
"""How long after the load the last job may take to be finished."""


def schedule(seconds: float) -> tuple[list[faults.Fault], float]:
    """The faults for a run of this length, and the time for each: all of them, in turn, if there is time."""
    seconds -= WARM_UP_SECONDS
    times = int(seconds // FAULT_SECONDS)
    if times < len(faults.ALL):
        return faults.SHORT, seconds / len(faults.SHORT)
    return [faults.ALL[number % len(faults.ALL)] for number in range(times)], FAULT_SECONDS


class Memory:
    """What the workers of the API hold, second by second."""

    def __init__(self) -> None:
        self.samples: dict[int, list[int]] = defaultdict(list)

    async def watch(self, service: Service) -> None:
        while True:
            for process in service.api_workers():
                try:
                    resident = process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                if resident:  # none is left of one that has just ended
                    self.samples[process.pid].append(resident)
            await asyncio.sleep(1)

    def __str__(self) -> str:
        longest = max(self.samples.values(), key=len)[WARM_UP_SECONDS:]
        first, last = (f"{sample / 2**20:.1f} MiB" for sample in (longest[0], longest[-1]))
        return f"memory: the API worker that lived longest had {first} when warm, {last} after {len(longest)} s"


async def finish_jobs(service: Service, report: Report) -> str:
    """Wait for what is still queued; count what is lost."""
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
    """Now that nothing is written any more: what was written is there, in every way to read it."""
    if not user.token:
        await user.sign_in()
    for _ in range(len(user.jobs)):
        await user.read_task()
    user.doubt_until = time.monotonic()
    await user.settle()
    if user.doubt_until or user.jobs:
        user.api.report.breaks("in doubt to the end", f"user {user.number}: {user.jobs} {user.posts}")


async def soak(seconds: float) -> bool:
    """Run it, print the table, and return whether all promises were kept."""
    plan, each = schedule(seconds)
    memory, end, crowd = Memory(), asyncio.Event(), list[User]()
    async with running_service() as service, service.client() as client:
        report = Report(await faults.seconds_until_ready(service))
        crowd += [User(number, Api(client, report), crowd) for number in range(USERS)]
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
    print(report.table(), "", reads, jobs, memory, *report.details, sep="\n")
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with `&` ignore it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which asyncio turns into an end
    try:
        return 0 if asyncio.run(soak(seconds)) else 1
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

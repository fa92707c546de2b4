"""The faults, which strike the service in a fixed order, and the time until it has recovered."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
import psutil

from scripts.servers import Server
from soak.report import CALM, RECOVERY_SECONDS, Report
from soak.service import API_WORKERS, Service

DOWN_SECONDS = 2.0
PAUSE_SECONDS = 4.0  # longer than any timeout of the service
START_SECONDS = 30.0
LOOKS = 3 * API_WORKERS
"""Checks of readiness, each on a new connection, so that every worker is likely to answer one."""


@dataclass(frozen=True)
class Fault:
    name: str
    role: str
    """The server or process that is unavailable during the fault."""
    strike: Callable[[Service], Awaitable[None]]
    """Causes the fault, and returns when the affected process is running again."""


async def inject(faults: list[Fault], seconds: float, service: Service, report: Report) -> None:
    """Cause one fault after the other; leave the service alone for the rest of each fault's `seconds`."""
    for fault in faults:
        end = time.monotonic() + seconds
        report.enter(fault.name)
        report.goes_away(fault.role)
        try:
            await fault.strike(service)
        except TimeoutError:
            report.breaks("slow recoveries", "the process is not running again")
        recovered_by = report.is_back(fault.role)
        recovery = await seconds_until_ready(service)
        report.phase.recovery = max(report.phase.recovery, recovery)
        if recovery > RECOVERY_SECONDS:
            report.breaks("slow recoveries", f"ready after {recovery:.1f} s")
        for name in service.ended():
            report.breaks("processes that ended", name)
        await asyncio.sleep(min(recovered_by, end) - time.monotonic())
        report.enter(CALM)
        await asyncio.sleep(end - time.monotonic())


async def seconds_until_ready(service: Service) -> float:
    """Wait until the service is ready, START_SECONDS at most; return how long it took."""
    began = time.monotonic()
    looks = 0
    async with service.client(headers={"Connection": "close"}) as client:
        while looks < LOOKS and time.monotonic() < began + START_SECONDS:
            try:
                looks = looks + 1 if (await client.get("/health/ready")).json()["status"] == "ready" else 0
            except httpx.TransportError:
                looks = 0
            if looks == 0:
                await asyncio.sleep(0.1)
    return time.monotonic() - began


async def _wait(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not condition():  # noqa: ASYNC110  (another process does it)
            await asyncio.sleep(0.05)


# -------- servers --------
def _pause(server: Server) -> list[psutil.Process]:
    """Suspend the server's process first, so that it starts no other, and then its children."""
    processes = [psutil.Process(server.process.pid)]
    processes[0].suspend()
    processes += processes[0].children(recursive=True)
    for process in processes:
        process.suspend()
    return processes


async def _kill_server(server: Server) -> None:
    """Kill all processes of the server at once: PostgreSQL's children outlive their parent until they notice."""
    processes = _pause(server)
    for process in processes:
        process.kill()
    await asyncio.to_thread(server.stop)
    await _wait(lambda: not any(map(_is_alive, processes)))
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(server.start)


async def _pause_server(server: Server) -> None:
    processes = _pause(server)
    try:
        await asyncio.sleep(PAUSE_SECONDS)
    finally:
        for process in processes:
            process.resume()


async def _restart_server(server: Server) -> None:
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # an orphan stays a zombie where no process reaps it
    except psutil.NoSuchProcess:
        return False


# -------- the service's own processes --------
async def _kill_job_worker(service: Service) -> None:
    service.job_workers[0].popen.kill()
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(service.job_workers[0].stop)
    service.job_workers[0] = service.run_job_worker(0)  # as a process supervisor would


async def _kill_api_worker(service: Service) -> None:
    before = service.api_workers()
    before[0].kill()
    await _wait(lambda: len(set(service.api_workers()) - set(before)) == 1)


async def _reload(service: Service) -> None:
    before = service.api_workers()
    service.gunicorn.popen.send_signal(signal.SIGHUP)
    await _wait(lambda: len(now := service.api_workers()) == API_WORKERS and not set(now) & set(before))


def _on_server(role: str, name: str, how: Callable[[Server], Awaitable[None]]) -> Fault:
    return Fault(f"{role} {name}", role, lambda service: how(service.servers[role]))


ALL = [
    *(
        _on_server(role, name, how)
        for role in ("PostgreSQL", "cache", "queue", "rate limit")
        for name, how in (("killed", _kill_server), ("paused", _pause_server), ("restarted", _restart_server))
    ),
    Fault("job worker killed", "job worker", _kill_job_worker),
    Fault("API worker killed", "gunicorn", _kill_api_worker),
    Fault("API reloaded", "gunicorn", _reload),
]
_SHORT = [
    *("API worker killed", "API reloaded", "PostgreSQL paused", "cache paused", "queue killed", "rate limit paused"),
    *("job worker killed", "PostgreSQL killed"),
]
SHORT = [fault for name in _SHORT for fault in ALL if fault.name == name]

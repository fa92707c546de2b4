"""The worker as a process: the jobs that it runs, and their state after each kind of end."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import JobStatus
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.core import queue
from app.core.queue import ArqJob, JobQueue
from app.core.queue.client import LEASE_SECONDS
from app.main import app as the_app
from scripts.servers import HOST, Valkey
from tests.environment import SRC
from tests.fixtures import Program, RedisRoles, RunProgram, RunWorker
from tests.helper import wait_until

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures("app")]

# A worker with the test's own jobs: `arq own_worker.Settings`.
MODULE = """
import asyncio
import os
import signal

from arq import cron

from app.core.queue import client
from app.core.queue.worker import retried
from app.worker import WorkerSettings

client.LEASE_SECONDS = int(os.environ.get("LEASE_SECONDS", "30"))


async def nap(ctx, name, seconds):
    await ctx["redis"].rpush(f"started:{name}", os.getpid())
    await asyncio.sleep(seconds)
    await ctx["redis"].rpush(f"finished:{name}", os.getpid())
    return f"{name} slept"


async def stumble(ctx, times):
    if await ctx["redis"].incr("stumbled") <= times:
        raise RuntimeError("stumbled")
    return f"arrived at try {ctx['job_try']}"


async def kill(ctx):
    await ctx["redis"].rpush("started:kill", os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


async def tick(ctx):
    await ctx["redis"].rpush("started:tick", os.getpid())
    raise RuntimeError("out of step")


@retried(0.1)
class Settings:
    locals().update({name: value for name, value in vars(WorkerSettings).items() if not name.startswith("__")})
    functions = (nap, stumble, kill)
    cron_jobs = (cron(tick, second=set(range(60))),) if os.environ.get("TICK") else ()
    poll_delay = 0.1
    job_completion_wait = int(os.environ.get("COMPLETION_WAIT", "20"))
"""


class Workers:
    """Helpers that start workers, enqueue naps, and query the queue."""

    def __init__(self, run_worker: RunWorker, folder: Path, redis: ArqRedis) -> None:
        self.run_worker = run_worker
        self.folder = folder
        self.redis = redis

    async def start(self, **environment: str) -> Program:
        environment = {"PYTHONPATH": f"{SRC}{os.pathsep}{self.folder}", "COMPLETION_WAIT": "1", **environment}
        return await self.run_worker("own_worker.Settings", environment=environment)

    async def nap(self, name: str, seconds: float) -> ArqJob:
        job = await self.redis.enqueue_job("nap", name, seconds, _job_id=name)
        assert job
        return ArqJob(name, self.redis)

    async def count(self, what: str, name: str) -> int:
        return int(await self.redis.execute_command("LLEN", f"{what}:{name}"))  # type: ignore[no-untyped-call]

    async def wait_for(self, what: str, name: str, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while await self.count(what, name) < times:  # noqa: ASYNC110  (another process does it)
                await asyncio.sleep(0.02)

    async def wait_for_failed(self, number: int) -> None:
        async def are_there() -> bool:
            return (await queue.failed_jobs(the_app.state.resources.queue.server, 0, 1))[1] >= number

        await wait_until(are_there, 30)


@pytest.fixture
def workers(run_worker: RunWorker, tmp_path: Path) -> Workers:
    (tmp_path / "own_worker.py").write_text(MODULE)
    return Workers(run_worker, tmp_path, queue.pool)


class TestStopped:
    async def test_returns_slow_jobs_to_the_queue(self, workers: Workers, redis: RedisRoles) -> None:
        first = await workers.start()
        job = await workers.nap("long", 60)
        await workers.wait_for("started", "long")
        os.kill(first.pid, signal.SIGTERM)
        assert await first.wait() == 0
        assert await job.status() is JobStatus.queued
        assert await redis.queue.exists("arq:in-progress:long") == 0
        await workers.start()
        await workers.wait_for("started", "long", 2)

    async def test_takes_nothing_new_while_it_finishes(self, workers: Workers) -> None:
        worker = await workers.start(COMPLETION_WAIT="20")
        await workers.nap("first", 1.5)
        await workers.wait_for("started", "first")
        os.kill(worker.pid, signal.SIGTERM)
        await worker.wait_for_output("shutdown on SIGTERM")
        second = await workers.nap("second", 0)
        assert await worker.wait() == 0
        assert await workers.count("finished", "first") == 1
        assert await second.status() is JobStatus.queued


class TestKilled:
    async def test_job_runs_again_elsewhere(self, workers: Workers, redis: RedisRoles) -> None:
        killed = await workers.start(LEASE_SECONDS="1")
        job = await workers.nap("precious", 0.3)
        long = await workers.nap("long", 60)
        await workers.wait_for("started", "long")
        os.kill(killed.pid, signal.SIGKILL)
        await killed.wait()
        assert await long.status() is JobStatus.in_progress
        assert 0 < await redis.queue.pttl("arq:in-progress:long") <= 1000
        await workers.start(LEASE_SECONDS="1")
        await workers.wait_for("started", "long", 2)
        assert await job.result(timeout=20) == "precious slept"

    async def test_mark_of_a_killed_worker_expires_within_half_a_minute(
        self, workers: Workers, redis: RedisRoles
    ) -> None:
        assert LEASE_SECONDS <= 30
        killed = await workers.start()
        await workers.nap("long", 60)
        await workers.wait_for("started", "long")
        os.kill(killed.pid, signal.SIGKILL)
        await killed.wait()
        assert 0 < await redis.queue.ttl("arq:in-progress:long") <= 30

    async def test_none_of_many_is_lost(self, workers: Workers) -> None:
        """Kill two workers one after the other while each runs up to ten jobs; a third worker finishes all."""
        names = [f"job{number}" for number in range(40)]
        jobs = [await workers.nap(name, 0.2) for name in names]
        for _ in range(2):
            worker = await workers.start(LEASE_SECONDS="1")
            await worker.wait_for_output(":nap ●")
            os.kill(worker.pid, signal.SIGKILL)
            await worker.wait()
        await workers.start(LEASE_SECONDS="1")
        assert [await job.result(timeout=30) for job in jobs] == [f"{name} slept" for name in names]

    async def test_mark_is_short_from_the_start(self, workers: Workers, redis: RedisRoles) -> None:
        """A worker that is killed right after it has taken a job leaves no long mark: arq's would last for minutes."""
        async with workers.redis.pipeline(transaction=True) as pipe:
            pipe.psetex("arq:in-progress:orphan", 310_000, b"1")
            pipe.psetex("other", 310_000, b"1")
            await pipe.execute()
        assert 0 < await redis.queue.ttl("arq:in-progress:orphan") <= 30
        assert await redis.queue.ttl("other") > 30

    async def test_job_that_kills_its_workers_ends_among_the_failed(self, workers: Workers) -> None:
        job = await workers.redis.enqueue_job("kill")
        assert job
        environment = {"LEASE_SECONDS": "1", "JOB_MAX_TRIES": "2"}
        for _ in range(2):
            worker = await workers.start(**environment)
            assert await worker.wait() == -signal.SIGKILL
        await workers.start(**environment)
        await workers.wait_for_failed(1)
        (failed,), _ = await queue.failed_jobs(the_app.state.resources.queue.server, 0, 10)
        assert (failed.job_id, failed.function) == (job.job_id, "kill")
        assert failed.result == "JobExecutionFailed: max 2 retries exceeded"
        assert await workers.count("started", "kill") == 2


class TestTries:
    async def test_job_that_fails_runs_again(self, workers: Workers) -> None:
        worker = await workers.start()
        job = await workers.redis.enqueue_job("stumble", 2)
        assert job
        assert await job.result(timeout=20) == "arrived at try 3"
        assert worker.output.count("job failed, it will be tried again") == 2
        assert worker.output.count("RuntimeError: stumbled") == 2

    async def test_cron_job_that_keeps_failing_is_kept_once(self, workers: Workers) -> None:
        await asyncio.gather(*(workers.start(TICK="1") for _ in range(2)))
        await workers.wait_for("started", "tick", 3)
        [failed], total = await queue.failed_jobs(the_app.state.resources.queue.server, 0, 100)
        assert (failed.job_id, failed.function, total) == ("cron:tick", "cron:tick", 1)
        assert failed.result == "RuntimeError: out of step"


async def test_two_workers_run_each_job_once(workers: Workers) -> None:
    """Neither worker repeats a job that outlasts its in-progress mark."""
    await asyncio.gather(*(workers.start(LEASE_SECONDS="1") for _ in range(2)))
    jobs = {"long": await workers.nap("long", 2.5)}
    jobs |= {f"job{number}": await workers.nap(f"job{number}", 0) for number in range(30)}
    for name, job in jobs.items():
        assert await job.result(timeout=20) == f"{name} slept"
    assert [await workers.count("started", name) for name in jobs] == [1] * len(jobs)


class TestQueueServer:
    @pytest.fixture
    async def server(self, tmp_path: Path) -> Any:
        with Valkey(tmp_path / "valkey", settings={"appendonly": "yes", "appendfsync": "always"}) as server:
            yield server

    @pytest.fixture
    async def own(self, server: Valkey, run_worker: RunWorker, tmp_path: Path) -> Any:
        (tmp_path / "own_worker.py").write_text(MODULE)
        async with Redis(host=HOST, port=server.port, db=int(os.environ["REDIS_QUEUE_DB"])) as connection:
            yield Workers(run_worker, tmp_path, JobQueue(connection.connection_pool))

    async def test_worker_survives_a_pause_and_a_restart(self, server: Valkey, own: Workers) -> None:
        worker = await own.start(**server.environment("QUEUE"))
        running = await own.nap("running", 2)
        await own.wait_for("started", "running")
        os.kill(server.process.pid, signal.SIGSTOP)
        await asyncio.sleep(0.5)  # time for some polls of the queue
        os.kill(server.process.pid, signal.SIGCONT)
        await asyncio.to_thread(server.stop)
        await worker.wait_for_output("the worker waits for its queue")
        await asyncio.to_thread(server.start)
        assert await running.result(timeout=20) == "running slept"
        later = await own.nap("later", 0)
        assert await later.result(timeout=20) == "later slept"
        assert worker.process.returncode is None

    async def test_job_outlasts_a_pause_and_runs_once(self, server: Valkey, own: Workers) -> None:
        """The pause is longer than the worker's timeout and the lifetime of the job's mark."""
        environment = {**server.environment("QUEUE"), "REDIS_QUEUE_TIMEOUT": "0.2", "LEASE_SECONDS": "1"}
        worker = await own.start(**environment)
        running = await own.nap("running", 4)
        await own.wait_for("started", "running")
        os.kill(server.process.pid, signal.SIGSTOP)
        await worker.wait_for_output("the worker waits for its queue")
        await asyncio.sleep(2.5)
        os.kill(server.process.pid, signal.SIGCONT)
        later = await own.nap("later", 0)
        assert await later.result(timeout=20) == "later slept"
        assert await running.result(timeout=20) == "running slept"
        assert await own.count("started", "running") == 1
        assert worker.process.returncode is None

    @pytest.mark.parametrize("fault", ["paused", "stopped"])
    async def test_jobs_of_a_busy_worker_outlast_many_faults(self, server: Valkey, own: Workers, fault: str) -> None:
        """Faults strike at random points of the worker's loop, for example between two checks of marks."""
        environment = {**server.environment("QUEUE"), "REDIS_QUEUE_TIMEOUT": "0.2", "LEASE_SECONDS": "1"}
        worker = await own.start(**environment)
        jobs = {f"job{number}": await own.nap(f"job{number}", 0.3) for number in range(60)}
        for _ in range(6):
            await asyncio.sleep(0.2)
            if fault == "paused":
                os.kill(server.process.pid, signal.SIGSTOP)
                await asyncio.sleep(0.5)
                os.kill(server.process.pid, signal.SIGCONT)
            else:
                os.kill(server.process.pid, signal.SIGKILL)
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
        for name, job in jobs.items():
            assert await job.result(timeout=30) == f"{name} slept"
        assert worker.process.returncode is None

    async def test_worker_can_be_stopped_before_its_queue_is_there(
        self, server: Valkey, own: Workers, run_program: RunProgram
    ) -> None:
        await asyncio.to_thread(server.stop)
        environment = {"PYTHONPATH": f"{SRC}{os.pathsep}{own.folder}", **server.environment("QUEUE")}
        worker = await run_program("arq", "own_worker.Settings", environment=environment)
        await worker.wait_for_output("the worker waits for its queue")
        os.kill(worker.pid, signal.SIGTERM)
        await worker.wait(30)

    @pytest.mark.parametrize("fault", ["paused", "stopped"])
    async def test_worker_starts_before_its_queue(
        self, server: Valkey, own: Workers, run_program: RunProgram, fault: str
    ) -> None:
        if fault == "paused":
            os.kill(server.process.pid, signal.SIGSTOP)
        else:
            await asyncio.to_thread(server.stop)
        environment = {"PYTHONPATH": f"{SRC}{os.pathsep}{own.folder}", "REDIS_QUEUE_TIMEOUT": "0.2"}
        worker = await run_program(
            "arq", "own_worker.Settings", environment={**environment, **server.environment("QUEUE")}
        )
        await worker.wait_for_output("the worker waits for its queue")
        await asyncio.sleep(1)
        if fault == "paused":
            os.kill(server.process.pid, signal.SIGCONT)
        else:
            await asyncio.to_thread(server.start)
        job = await own.nap("first", 0)
        assert await job.result(timeout=20) == "first slept"

    @pytest.mark.parametrize("fault", ["paused", "stopped"])
    async def test_worker_can_be_stopped_while_its_queue_is_away(
        self, server: Valkey, own: Workers, fault: str
    ) -> None:
        worker = await own.start(**server.environment("QUEUE"), REDIS_QUEUE_TIMEOUT="0.2")
        await own.nap("running", 60)
        await own.wait_for("started", "running")
        if fault == "paused":
            os.kill(server.process.pid, signal.SIGSTOP)
        else:
            await asyncio.to_thread(server.stop)
        await worker.wait_for_output("the worker waits for its queue")
        os.kill(worker.pid, signal.SIGTERM)
        await worker.wait(15)
        if fault == "paused":
            os.kill(server.process.pid, signal.SIGCONT)


@asynccontextmanager
async def meddle(command: str, how: str) -> AsyncIterator[tuple[int, list[str]]]:
    """Open a proxy to the queue server that loses a command twice: by a closed connection or without an answer."""
    lost: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, meddles: bool) -> None:
        try:
            while data := await reader.read(65536):
                if meddles and len(lost) < 2 and f"\r\n{command}\r\n".encode() in data:
                    lost.append(command)
                    if how == "cut":
                        break
                else:
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, there = await asyncio.open_connection(HOST, int(os.environ["REDIS_QUEUE_PORT"]))
        tasks.add(asyncio.create_task(relay(answers, writer, meddles=False)))
        await relay(reader, there, meddles=True)

    server = await asyncio.start_server(connected, HOST, 0)
    try:
        async with server:
            yield server.sockets[0].getsockname()[1], lost
    finally:
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("how", ["cut", "unanswered"])
class TestLostCommand:
    @pytest.mark.parametrize("command", ["WATCH", "EXISTS", "ZSCORE", "UNWATCH", "EXEC"])
    async def test_worker_goes_on(self, workers: Workers, how: str, command: str) -> None:
        async with meddle(command, how) as (port, lost):
            environment = {"REDIS_QUEUE_PORT": str(port), "REDIS_QUEUE_TIMEOUT": "0.2", "LEASE_SECONDS": "1"}
            worker = await workers.start(**environment)
            for number in range(3):
                job = await workers.nap(f"job{number}", 0.3)
                assert await job.result(timeout=20) == f"job{number} slept"
            assert len(lost) == 2
            assert worker.process.returncode is None
            await worker.stop()

    async def test_job_that_is_not_queued_is_an_error(self, redis: RedisRoles, how: str) -> None:
        async with meddle("EVALSHA", how) as (port, lost):
            own_queue = Redis(host=HOST, port=port, db=int(os.environ["REDIS_QUEUE_DB"]), socket_timeout=0.2)
            async with own_queue as client:
                with pytest.raises(RedisError):
                    await JobQueue(client.connection_pool).enqueue_job("nap", "x", 0)
        assert lost
        assert await redis.queue.exists("arq:queue") == 0


async def test_check_of_one_worker_survives_the_stop_of_another(workers: Workers, run_program: RunProgram) -> None:
    """All workers of a queue share the key that `arq --check` looks for, and one that stops removes it."""

    async def is_healthy() -> bool:
        return await (await run_program("arq", "--check", "app.worker.WorkerSettings")).wait() == 0

    await workers.start()
    other = await workers.start()
    await wait_until(is_healthy, 30)
    await other.stop()
    await wait_until(is_healthy, 30)

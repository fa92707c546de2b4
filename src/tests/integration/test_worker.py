"""The worker as a process: what it runs, and what it leaves behind however it ends."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from arq.connections import ArqRedis
from arq.jobs import JobStatus
from redis.asyncio import Redis

from app.core import queue
from app.core.queue import ArqJob, JobLeases, deserialize, serialize
from scripts.servers import HOST, Valkey
from tests.environment import SRC
from tests.fixtures import Program, RedisRoles, RunProgram, RunWorker

pytestmark = pytest.mark.usefixtures("app")

TASK = "/api/v1/tasks/task"

# A worker with jobs of the test's own: `arq own_worker.Settings`.
MODULE = """
import asyncio
import os

from app.core.queue import JobLeases
from app.worker import WorkerSettings

JobLeases.SECONDS = int(os.environ.get("LEASE_SECONDS", "30"))


async def nap(ctx, name, seconds):
    await ctx["redis"].rpush(f"started:{name}", os.getpid())
    await asyncio.sleep(seconds)
    await ctx["redis"].rpush(f"finished:{name}", os.getpid())
    return f"{name} slept"


class Settings:
    locals().update({name: value for name, value in vars(WorkerSettings).items() if not name.startswith("__")})
    functions = [nap]
    poll_delay = 0.1
    job_completion_wait = int(os.environ.get("COMPLETION_WAIT", "20"))
"""


class Workers:
    """Starts workers that take naps, and asks the queue about them."""

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


@pytest.fixture
def workers(run_worker: RunWorker, tmp_path: Path) -> Workers:
    (tmp_path / "own_worker.py").write_text(MODULE)
    return Workers(run_worker, tmp_path, queue.pool)


class TestTheWorkerOfTheService:
    async def test_runs_what_the_api_queued_and_finishes_it_when_stopped(
        self, client: httpx.AsyncClient, run_worker: RunWorker
    ) -> None:
        worker = await run_worker()
        job_id = (await client.post(TASK, params={"message": "nightly"})).json()["id"]
        await worker.wait_for_output(f"{job_id}:sample_background_task('nightly')")
        assert (await client.get(f"{TASK}/{job_id}")).json()["status"] == "in_progress"
        os.kill(worker.pid, signal.SIGTERM)
        assert await worker.wait() == 0
        body = (await client.get(f"{TASK}/{job_id}")).json()
        assert (body["status"], body["success"]) == ("complete", True)
        assert body["result"] == "Task nightly is complete!"


class TestStopped:
    async def test_hands_back_what_takes_too_long(self, workers: Workers, redis: RedisRoles) -> None:
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

    async def test_nobody_waits_longer_than_half_a_minute(self, workers: Workers, redis: RedisRoles) -> None:
        assert JobLeases.SECONDS <= 30
        killed = await workers.start()
        await workers.nap("long", 60)
        await workers.wait_for("started", "long")
        os.kill(killed.pid, signal.SIGKILL)
        await killed.wait()
        assert 0 < await redis.queue.ttl("arq:in-progress:long") <= 30

    async def test_none_of_many_is_lost(self, workers: Workers) -> None:
        """Two workers are killed one after the other, with up to ten jobs in hand each; a third finishes all."""
        names = [f"job{number}" for number in range(40)]
        jobs = [await workers.nap(name, 0.2) for name in names]
        for _ in range(2):
            worker = await workers.start(LEASE_SECONDS="1")
            await worker.wait_for_output("slept")
            os.kill(worker.pid, signal.SIGKILL)
            await worker.wait()
        await workers.start(LEASE_SECONDS="1")
        assert [await job.result(timeout=30) for job in jobs] == [f"{name} slept" for name in names]


async def test_two_workers_run_each_job_once(workers: Workers) -> None:
    """Also one that takes longer than the mark lasts which says that it is running."""
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
        connection = Redis(host=HOST, port=server.port, db=int(os.environ["REDIS_QUEUE_DB"]))
        pool = ArqRedis(connection.connection_pool, job_serializer=serialize, job_deserializer=deserialize)
        yield Workers(run_worker, tmp_path, pool)
        await connection.aclose()

    async def test_worker_survives_a_pause_and_a_restart(self, server: Valkey, own: Workers) -> None:
        worker = await own.start(**server.environment("QUEUE"))
        running = await own.nap("running", 2)
        await own.wait_for("started", "running")
        os.kill(server.process.pid, signal.SIGSTOP)
        await asyncio.sleep(0.5)  # some looks into the queue
        os.kill(server.process.pid, signal.SIGCONT)
        await asyncio.to_thread(server.stop)
        await worker.wait_for_output("the worker waits for its queue")
        await asyncio.to_thread(server.start)
        assert await running.result(timeout=20) == "running slept"
        later = await own.nap("later", 0)
        assert await later.result(timeout=20) == "later slept"
        assert worker.process.returncode is None

    async def test_worker_starts_before_its_queue(self, server: Valkey, own: Workers, run_program: RunProgram) -> None:
        await asyncio.to_thread(server.stop)
        environment = {"PYTHONPATH": f"{SRC}{os.pathsep}{own.folder}", **server.environment("QUEUE")}
        worker = await run_program("arq", "own_worker.Settings", environment=environment)
        await worker.wait_for_output("the worker waits for its queue")
        await asyncio.to_thread(server.start)
        job = await own.nap("first", 0)
        assert await job.result(timeout=20) == "first slept"

    async def test_worker_can_be_stopped_while_its_queue_is_away(self, server: Valkey, own: Workers) -> None:
        worker = await own.start(**server.environment("QUEUE"))
        await asyncio.to_thread(server.stop)
        await worker.wait_for_output("the worker waits for its queue")
        os.kill(worker.pid, signal.SIGTERM)
        await worker.wait(15)

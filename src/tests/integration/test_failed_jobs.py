"""Failed jobs: after every kind of failure, the job is in the list and can be queued again."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq import Retry, cron
from arq.cron import CronJob
from arq.jobs import JobStatus
from arq.worker import func

from app.core import queue
from app.core.exceptions import ConflictError, NotFoundError
from app.core.models import now
from app.core.queue import ArqJob
from app.core.queue.worker import retried
from app.main import app as the_app
from tests.fixtures import RedisRoles
from tests.integration.own_worker import crash, fail, failures, run_jobs

pytestmark = pytest.mark.usefixtures("app")


async def work(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


def at_start(job: Callable[..., Any]) -> CronJob:
    """Make a cron job that runs at the worker's start, and next in about half a year."""
    return cron(job, run_at_startup=True, month=(datetime.now(UTC).month + 5) % 12 + 1)


async def retry(job_id: str) -> None:
    await queue.retry_failed_job(the_app.state.resources.queue.server, job_id)


class TestHowJobsEnd:
    """Exactly the jobs that end without success appear in the list."""

    async def test_well(self) -> None:
        await queue.pool.enqueue_job("work")
        await run_jobs(work)
        assert await failures() == []

    async def test_exception_at_the_last_try(self, capsys: pytest.CaptureFixture[str]) -> None:
        await queue.pool.enqueue_job("crash", "book", _job_id="x")
        worker = await run_jobs(crash, tries=3)
        assert (worker.jobs_retried, worker.jobs_failed) == (2, 1)
        assert await failures() == [("x", "crash", "ValueError: no such book", 3)]
        log = capsys.readouterr().err
        for number in (1, 2):
            assert f'job failed, it will be tried again job_id="x" job_try={number} tries=3 seconds=' in log
        assert log.count("raise ValueError") == 3

    async def test_delay_doubles(self, capsys: pytest.CaptureFixture[str]) -> None:
        await queue.pool.enqueue_job("crash")
        await run_jobs(crash, tries=4, delay=0.02)
        delays = map(float, re.findall(r"tried again .* seconds=(\S+)", capsys.readouterr().err))
        for delay, least in zip(delays, (0.02, 0.04, 0.08), strict=True):
            assert least <= delay + 0.001 <= least * 1.2 + 0.002

    async def test_time_out_at_the_last_try(self) -> None:
        async def sleep(ctx: dict[str, Any]) -> None:
            await asyncio.sleep(60)

        await queue.pool.enqueue_job("sleep", _job_id="x")
        await run_jobs(sleep, tries=2, seconds=0.01)
        assert await failures() == [("x", "sleep", "TimeoutError: not done after 0.01 seconds", 2)]

    async def test_time_out_of_its_own(self) -> None:
        async def wait(ctx: dict[str, Any]) -> None:
            raise TimeoutError("nobody answers")

        await queue.pool.enqueue_job("wait", _job_id="x")
        await run_jobs(wait, tries=1)
        assert await failures() == [("x", "wait", "TimeoutError: nobody answers", 1)]

    async def test_retry_after_the_last_try(self) -> None:
        async def again(ctx: dict[str, Any]) -> None:
            raise Retry

        await queue.pool.enqueue_job("again", _job_id="x")
        await run_jobs(again, tries=2)
        assert await failures() == [("x", "again", "JobExecutionFailed: wants to run again, but has no try left", 2)]

    async def test_workers_that_ended_during_the_job(self, redis: RedisRoles) -> None:
        await queue.pool.enqueue_job("work", _job_id="x")
        await redis.queue.set("arq:retry:x", 5)
        await run_jobs(work)
        assert await failures() == [("x", "work", "JobExecutionFailed: max 5 retries exceeded", 6)]

    async def test_unknown_function(self) -> None:
        await queue.pool.enqueue_job("from_a_newer_release", 1, two=2, _job_id="x")
        await run_jobs(work)
        (job,), _ = await queue.failed_jobs(the_app.state.resources.queue.server, 0, 1)
        assert job.function == "from_a_newer_release"
        assert (list(job.args), job.kwargs) == ([1], {"two": 2})

    async def test_expired(self, redis: RedisRoles) -> None:
        await queue.pool.enqueue_job("work", _job_id="x")
        await redis.queue.delete("arq:job:x")
        await run_jobs(work)
        assert await failures() == [("x", "<unknown>", "JobExecutionFailed: job expired", 1)]

    async def test_unreadable(self, redis: RedisRoles) -> None:
        await queue.pool.enqueue_job("work", _job_id="x")
        await redis.queue.set("arq:job:x", b"\x80pickle", keepttl=True)
        await run_jobs(work)
        assert await failures() == [("x", "<unknown>", "DeserializationError: unable to deserialize job", 1)]

    async def test_result_that_json_does_not_know(self) -> None:
        async def make(ctx: dict[str, Any]) -> object:
            return object()

        await queue.pool.enqueue_job("make", _job_id="x")
        await run_jobs(make)
        assert await failures() == [("x", "make", "unable to serialize result", 1)]

    async def test_job_with_a_policy_of_its_own(self) -> None:
        """The list has failures of jobs without a stored result, too."""
        await queue.pool.enqueue_job("crash", _job_id="x")
        await run_jobs(func(crash, max_tries=2, keep_result=0))
        assert await failures() == [("x", "crash", "ValueError: no such thing", 2)]

    async def test_cancelled_by_a_stop(self) -> None:
        """The worker returns the job to the queue; this does not count as a failure."""
        runs = []

        async def stop(ctx: dict[str, Any]) -> None:
            runs.append(ctx["job_try"])
            if len(runs) == 1:
                raise asyncio.CancelledError

        await queue.pool.enqueue_job("stop")
        await run_jobs(stop)
        assert runs == [1, 2]
        assert await failures() == []


class TestCronJobs:
    async def test_that_fails(self) -> None:
        """A cron job gets one try and one entry in total. More entries would displace those of other jobs."""
        for _ in range(2):
            worker = await run_jobs(cron_jobs=[at_start(crash)])
            assert (worker.jobs_retried, worker.jobs_failed) == (0, 1)
        assert await failures() == [("cron:crash", "cron:crash", "ValueError: no such thing", 1)]

    async def test_of_settings_that_are_copied(self) -> None:
        """Decorated settings that copy decorated cron jobs do not multiply the tries."""

        @retried(0.001)
        class First:
            cron_jobs = (at_start(crash),)

        worker = await run_jobs(cron_jobs=First.cron_jobs)
        assert (worker.jobs_retried, worker.jobs_failed) == (0, 1)

    async def test_that_runs_well(self, redis: RedisRoles) -> None:
        worker = await run_jobs(cron_jobs=[at_start(work)])
        assert worker.jobs_complete == 1
        assert await failures() == []

    async def test_after_a_worker_was_killed(self, redis: RedisRoles) -> None:
        await queue.pool.enqueue_job("cron:work", _job_id="x")
        await redis.queue.set("arq:retry:x", 1)
        far = now() + timedelta(days=60)  # far enough that its own schedule does not start it
        worker = await run_jobs(cron_jobs=[cron(work, month=far.month, day=far.day, hour=0, minute=0)])
        assert worker.jobs_complete == 1


async def test_newest_are_kept(monkeypatch: pytest.MonkeyPatch, redis: RedisRoles) -> None:
    monkeypatch.setattr("app.core.queue.client.FAILED_JOBS_KEPT", 3)
    for number in range(5):
        await fail(f"job{number}")
    assert [job_id for job_id, *_ in await failures()] == ["job4", "job3", "job2"]
    assert await redis.queue.execute_command("HLEN", "failed_jobs") == 3  # type: ignore[no-untyped-call]


class TestRetry:
    async def test_runs_as_it_was_queued_first(self, redis: RedisRoles) -> None:
        await fail("x", "a", [], b={})
        await retry("x")
        assert await failures() == []
        job = ArqJob("x", queue.pool)
        assert await job.status() is JobStatus.queued
        assert json.loads(await redis.queue.get("arq:job:x") or b"").keys() == {"t", "f", "a", "k", "et"}

        async def crash(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
            return [ctx["job_try"], args, kwargs]

        await run_jobs(crash)
        assert await job.result(timeout=5) == [1, ["a", []], {"b": {}}]

    async def test_fails_again(self) -> None:
        await fail("x", "book")
        await retry("x")
        await run_jobs(crash, tries=2)
        assert await failures() == [("x", "crash", "ValueError: no such book", 2)]

    async def test_two_at_once(self) -> None:
        await fail("x")
        results = await asyncio.gather(*(retry("x") for _ in range(10)), return_exceptions=True)
        assert sorted(map(type, results), key=str) == sorted([type(None), *[NotFoundError] * 9], key=str)
        assert [job.job_id for job in await queue.pool.queued_jobs()] == ["x"]
        worker = await run_jobs(crash, tries=1)
        assert worker.jobs_failed == 1

    @pytest.mark.parametrize("job_id", ["x", "failed_jobs", "arq:queue", "grün", "1" * 200])
    async def test_not_found(self, job_id: str) -> None:
        with pytest.raises(NotFoundError, match="There is no failed task of this id"):
            await retry(job_id)

    async def test_id_is_in_use(self) -> None:
        """After the expiry of its result, a job with a fixed id may have been queued again."""
        await fail("x", "old")
        await queue.pool.delete("arq:result:x")
        await queue.pool.enqueue_job("work", "new", _job_id="x")
        with pytest.raises(ConflictError, match="A task of this id is in the queue"):
            await retry("x")
        assert [job_id for job_id, *_ in await failures()] == ["x"]
        assert [job.function for job in await queue.pool.queued_jobs()] == ["work"]


async def test_arguments_are_in_no_message_of_the_server(redis: RedisRoles) -> None:
    """An error contains the name of the command only, because it is logged."""
    await redis.queue.set("text", "x")
    async with queue.pool.pipeline() as pipe:
        pipe.hset("text", "name", "s3cret")
        with pytest.raises(Exception, match="WRONGTYPE") as caught:
            await pipe.execute()
    assert "HSET" in str(caught.value)
    assert "s3cret" not in str(caught.value)

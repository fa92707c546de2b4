"""A worker in the test's own process, and jobs that fail in it."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from arq.cron import CronJob
from arq.worker import Function, Worker, create_worker, func

from app.core import queue
from app.core.queue.worker import retried
from app.main import app as the_app
from app.worker import WorkerSettings

JobFunction = Callable[..., Coroutine[Any, Any, Any]]


async def run_jobs(
    *functions: JobFunction | Function,
    cron_jobs: Sequence[CronJob] = (),
    tries: int = 5,
    seconds: float = 300,
    delay: float = 0.001,
) -> Worker:
    """Run all queued jobs with these functions as the worker process does, but with minimal delays between retries."""

    class Policy:
        max_tries = tries
        job_timeout = seconds

    Policy.functions = tuple(  # type: ignore[attr-defined]
        function if isinstance(function, Function) else func(function, name=function.__name__) for function in functions
    )
    Policy.cron_jobs = tuple(cron_jobs)  # type: ignore[attr-defined]
    settings = {**vars(WorkerSettings), **vars(retried(delay)(Policy))}
    worker = create_worker(settings, redis_pool=queue.pool, burst=True, poll_delay=0, handle_signals=False)
    try:
        await worker.async_run()
    finally:
        worker.ctx["renewal"].cancel()
    return worker


async def crash(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    raise ValueError(f"no such {args[0] if args else 'thing'}")


async def fail(job_id: str, *args: Any, **kwargs: Any) -> None:
    """Queue a job and let it fail."""
    assert await queue.pool.enqueue_job("crash", *args, _job_id=job_id, **kwargs)
    await run_jobs(crash, tries=1)


async def failures() -> list[tuple[str, str, str, int]]:
    """Return id, function, error and number of tries of each failed job, the newest first."""
    jobs, total = await queue.failed_jobs(the_app.state.resources.queue.server, 0, 100)
    assert total == len(jobs)
    return [(str(job.job_id), job.function, job.result, job.job_try) for job in jobs]

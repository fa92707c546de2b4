"""A worker in the test's own process."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from arq.cron import CronJob
from arq.worker import Function, Worker, create_worker, func

from app.core import queue
from app.core.queue.worker import retried
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

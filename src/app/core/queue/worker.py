"""Additions to arq's worker: retries with back-off, waiting for the queue, leases on running jobs."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any, ClassVar, TypeVar

from arq import Retry
from arq.connections import RedisSettings
from arq.constants import in_progress_key_prefix
from arq.cron import CronJob
from arq.typing import WorkerCoroutine
from arq.worker import Function, JobExecutionFailed, func
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry as CommandRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.core.config import RedisQueueSettings
from app.core.queue import client
from app.core.queue.client import JobQueue
from app.core.redis import connection_options

logger = logging.getLogger(__name__)

T = TypeVar("T")
JobT = TypeVar("JobT", Function, CronJob)


# -------- retries --------
LONGEST_DELAY = 3600
_IS_RETRIED = "is_retried"
TIME_TO_STOP = 10  # seconds between a job's timeout and the moment when arq interrupts it once more
SHORTEST_RESULT = 0.001  # seconds to keep a result in place of 0: a failed job is recognised when its result is stored


def retried(delay: float) -> Callable[[T], T]:
    """Retry the jobs of a `WorkerSettings` up to `max_tries` times, each for `job_timeout` seconds at most.

    The first pause is `delay` seconds; each further one is twice as long. `arq.func` and `arq.cron` give a job tries
    and a timeout of its own; cron jobs have one try by default.
    """

    def decorate(settings: T) -> T:
        changed: Any = settings
        given = vars(settings)
        timeout, tries = given.get("job_timeout", 300), given.get("max_tries", 5)
        policy = partial(_with_policy, timeout=timeout, tries=tries, delay=delay)
        changed.functions = tuple(policy(func(function)) for function in given.get("functions", ()))
        changed.cron_jobs = tuple(map(policy, given.get("cron_jobs") or ()))
        changed.keep_result = given.get("keep_result", 3600) or SHORTEST_RESULT
        return settings

    return decorate


def _with_policy(job: JobT, *, timeout: float, tries: int, delay: float) -> JobT:
    if _IS_RETRIED in vars(job.coroutine):  # inherited from the settings of another worker
        return job
    own_timeout = timeout if job.timeout_s is None else job.timeout_s
    own_tries = tries if job.max_tries is None else job.max_tries
    return replace(
        job,
        coroutine=_tried(job.coroutine, own_timeout, own_tries, delay),
        timeout_s=own_timeout + TIME_TO_STOP,
        # arq counts runs that were lost with their worker, too: leave room for them above the tries of the job.
        max_tries=max(own_tries, tries),
        keep_result_s=None if job.keep_result_s is None else job.keep_result_s or SHORTEST_RESULT,
    )


def _tried(job: WorkerCoroutine, timeout: float, tries: int, delay: float) -> WorkerCoroutine:
    @wraps(job)
    async def run(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await _in_time(job(ctx, *args, **kwargs), timeout)
        except Retry as error:
            if ctx["job_try"] >= tries:
                raise JobExecutionFailed("wants to run again, but has no try left") from error
            raise
        except Exception as error:
            number = ctx["job_try"]
            if number >= tries:
                raise
            seconds = min(delay * 2.0 ** min(number - 1, 20), LONGEST_DELAY) * random.uniform(1, 1.2)  # noqa: S311
            values = {"job_id": ctx["job_id"], "job_try": number, "tries": tries, "seconds": round(seconds, 3)}
            logger.warning("job failed, it will be tried again", extra=values, exc_info=True)
            raise Retry(seconds) from error

    vars(run)[_IS_RETRIED] = True
    return run


async def _in_time(run: Awaitable[T], timeout: float) -> T:  # noqa: ASYNC109
    try:
        async with asyncio.timeout(timeout) as limit:
            return await run
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"not done after {timeout} seconds") from error
        raise


# -------- waiting for the queue --------
class _PatientRetry(CommandRetry):
    """Repeat a command while its server is away and the worker is not stopped; log each outage once."""

    worker: ClassVar[asyncio.Task[Any] | None] = None

    async def call_with_retry(self, do: Callable[[], Awaitable[T]], fail: Callable[[RedisError], Any]) -> T:
        logged = False
        if self.worker is None:  # the first command comes from arq's main task
            _PatientRetry.worker = asyncio.current_task()

        async def log_and_fail(error: RedisError) -> None:
            nonlocal logged
            if self.worker is not None and self.worker.done():
                raise error
            if not logged:
                logged = True
                logger.warning("the worker waits for its queue", extra={"error": f"{type(error).__name__}: {error}"})
            await fail(error)

        return await super().call_with_retry(do, log_and_fail)


class _PatientPool(ConnectionPool):
    """A pool that also waits for a server that accepts connections but does not answer."""

    async def ensure_connection(self, connection: Any) -> None:
        attempt = partial(super().ensure_connection, connection)
        await connection.retry.call_with_retry(attempt, lambda _: connection.disconnect())


def patient_queue(settings: RedisQueueSettings) -> JobQueue:
    """The queue for a worker: it waits for its server as long as needed, but for each answer only the timeout."""
    options = connection_options(settings, "REDIS_QUEUE", settings.REDIS_QUEUE_TIMEOUT)
    retry = _PatientRetry(ExponentialBackoff(cap=1.0, base=0.1), retries=-1)
    errors = [RedisConnectionError, RedisTimeoutError, OSError]
    return JobQueue(_PatientPool(**options, retry=retry, retry_on_error=errors))


def queue_address(settings: RedisQueueSettings) -> RedisSettings:
    """The queue for `arq --check`, which does not wait."""
    timeout = math.ceil(settings.REDIS_QUEUE_TIMEOUT)
    options = connection_options(settings, "REDIS_QUEUE", timeout)
    address = {"database": options["db"], **{name: options[name] for name in ("host", "port", "password")}}
    return RedisSettings(**address, conn_timeout=timeout, conn_retries=0)


# -------- leases --------
async def take_lease(ctx: dict[str, Any]) -> None:
    """Remember a job that starts (`on_job_start`)."""
    ctx["redis"].running.add(in_progress_key_prefix + ctx["job_id"])


async def give_up_lease(ctx: dict[str, Any]) -> None:
    """Forget a job that has ended (`after_job_end`)."""
    ctx["redis"].running.discard(in_progress_key_prefix + ctx["job_id"])


async def renew_leases(queue: JobQueue) -> None:
    """Renew the marks of the jobs that run here until cancelled."""
    while True:
        await asyncio.sleep(client.LEASE_SECONDS / 3)
        try:
            async with queue.pipeline(transaction=False) as pipe:
                for mark in queue.running:
                    pipe.expire(mark, client.LEASE_SECONDS)
                await pipe.execute()
        except RedisError:
            logger.exception("leases of running jobs not renewed")


# -------- log --------
def hide_arguments(record: logging.LogRecord) -> bool:
    """Remove the arguments from the log line of a job that starts (a logging filter): they may be secrets."""
    if "→" in str(record.msg) and isinstance(record.args, tuple):
        seconds, job, _, *rest = record.args
        record.args = (seconds, job, "…", *rest)
    return True

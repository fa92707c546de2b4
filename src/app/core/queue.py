"""The job queue: `pool` enqueues, `ArqJob` looks a job up. Jobs and results travel as JSON, never as pickle."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

from arq.connections import ArqRedis, RedisSettings
from arq.constants import in_progress_key_prefix
from arq.jobs import Job as _ArqJob
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.core.config import RedisQueueSettings
from app.core.redis import RedisServer

logger = logging.getLogger(__name__)

T = TypeVar("T")

server = RedisServer("queue")
pool: ArqRedis  # there once the lifespan has called `open_pool`


def __getattr__(name: str) -> Any:
    if name == "pool":
        raise AttributeError("The queue is not open: the application has not started, or has no queue settings")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def serialize(value: Any) -> bytes:
    """Encode a job or a result; an exception becomes its class and message."""
    return json.dumps(value, default=_encode).encode()


def _encode(value: Any) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"{type(value).__name__} cannot travel through the queue: pass what JSON knows")


def deserialize(data: bytes) -> Any:
    return json.loads(data)


class ArqJob(_ArqJob):
    """arq's job, reading JSON as the pool that it is given."""

    def __init__(self, job_id: str, redis: ArqRedis) -> None:
        super().__init__(job_id, redis, redis.default_queue_name, redis.job_deserializer)


def open_pool(settings: RedisQueueSettings) -> None:
    """Prepare `pool`; unlike arq's own `create_pool` this works before the server is up."""
    global pool  # noqa: PLW0603  (`queue.pool` is the documented name)
    server.open(
        settings.REDIS_QUEUE_HOST,
        settings.REDIS_QUEUE_PORT,
        settings.REDIS_QUEUE_DB,
        settings.REDIS_QUEUE_PASSWORD,
        settings.REDIS_QUEUE_TIMEOUT,
    )
    pool = ArqRedis(server.client.connection_pool, job_serializer=serialize, job_deserializer=deserialize)


async def close_pool() -> None:
    global pool  # noqa: PLW0603
    del pool
    await server.close()


class _PatientRetry(Retry):
    """Repeats a command for as long as its server is away and the worker is not stopped, and says so."""

    worker: ClassVar[asyncio.Task[Any] | None] = None

    def __init__(self) -> None:
        super().__init__(ExponentialBackoff(cap=1.0, base=0.1), retries=-1)

    async def call_with_retry(self, do: Callable[[], Awaitable[T]], fail: Callable[[RedisError], Any]) -> T:
        told = False

        async def fail_and_tell(error: RedisError) -> None:
            nonlocal told
            if self.worker is not None and self.worker.done():
                raise error
            if not told:
                told = True
                logger.warning("the worker waits for its queue", extra={"error": f"{type(error).__name__}: {error}"})
            await fail(error)

        return await super().call_with_retry(do, fail_and_tell)


def worker_redis_settings(settings: RedisQueueSettings) -> RedisSettings:
    """The queue's address for a worker, which waits for its server for as long as it takes."""
    return RedisSettings(
        host=settings.REDIS_QUEUE_HOST,
        port=settings.REDIS_QUEUE_PORT,
        database=settings.REDIS_QUEUE_DB,
        password=settings.REDIS_QUEUE_PASSWORD.get_secret_value() if settings.REDIS_QUEUE_PASSWORD else None,
        retry=_PatientRetry(),
        retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],
    )


def worker_has_started() -> None:
    """Call it in the worker's main task: once that has ended, its server is no longer waited for."""
    _PatientRetry.worker = asyncio.current_task()


class JobLeases:
    """Lets the job of a killed worker run again after `SECONDS`, however long jobs may take.

    arq marks a running job for as long as the longest may run; here the mark is short and renewed while we are alive.
    """

    SECONDS = 30

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._job_ids: set[str] = set()
        self._renewal = asyncio.create_task(self._renew_for_ever())

    async def take(self, job_id: str) -> None:
        self._job_ids.add(job_id)
        await self._redis.expire(in_progress_key_prefix + job_id, self.SECONDS)

    def give_up(self, job_id: str) -> None:
        self._job_ids.discard(job_id)

    def close(self) -> None:
        self._renewal.cancel()

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.SECONDS / 3)
            for job_id in list(self._job_ids):
                try:
                    await self._redis.expire(in_progress_key_prefix + job_id, self.SECONDS)
                except RedisError:
                    logger.exception("the mark of a running job was not renewed", extra={"job_id": job_id})

"""The job queue: `pool` enqueues, `ArqJob` looks a job up. Jobs and results travel as JSON, never as pickle."""

import json
from typing import Any

from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job as _ArqJob
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.core.config import RedisQueueSettings
from app.core.exceptions import RedisUnavailableError
from app.core.redis import RedisServer

server = RedisServer("queue")
pool: ArqRedis  # there once the lifespan has called `open_pool`


def __getattr__(name: str) -> Any:
    if name == "pool":
        raise RedisUnavailableError("The queue is not open: the application has not started or has no queue settings")
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


def worker_redis_settings(settings: RedisQueueSettings) -> RedisSettings:
    """The queue's address for a worker, which waits for its server for as long as it takes."""
    return RedisSettings(
        host=settings.REDIS_QUEUE_HOST,
        port=settings.REDIS_QUEUE_PORT,
        database=settings.REDIS_QUEUE_DB,
        password=settings.REDIS_QUEUE_PASSWORD.get_secret_value() if settings.REDIS_QUEUE_PASSWORD else None,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.1), retries=-1),
        retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],
    )

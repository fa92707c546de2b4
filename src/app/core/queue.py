"""The job queue: `pool` enqueues, `ArqJob` looks a job up. Jobs and results travel as JSON, never as pickle.

A job that ends badly, in whichever way, leaves the queue for the list of failed jobs in one and the same transaction.
"""

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, result_key_prefix, retry_key_prefix
from arq.jobs import Job as _ArqJob
from arq.jobs import JobResult, deserialize_result, serialize_job
from arq.utils import timestamp_ms, to_ms, to_unix_ms
from redis.asyncio.client import Pipeline
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError

from app.core.config import RedisQueueSettings
from app.core.exceptions import ConflictError, NotFoundError
from app.core.redis import RedisServer

FAILED_JOBS_KEPT = 1000
JOB_LIFETIME = 7 * 24 * 3600
"""Seconds that a job waits for a worker, or for its next try, before it counts as failed."""

# Failed jobs as arq encodes their results, by id; and the ids in the order in which they failed.
_FAILED = "failed_jobs"
_FAILED_AT = "failed_jobs:at"

# KEYS: job, result, queue. ARGV: definition, its milliseconds, when to start it, id.
_ENQUEUE = """
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[4])
return 1
"""

_KEEP_FAILED = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
local oldest = redis.call('ZRANGE', KEYS[2], 0, -1 - ARGV[4])
for _, id in ipairs(oldest) do
    redis.call('HDEL', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
end
"""

_PAGE_OF_FAILED = """
local ids = redis.call('ZREVRANGE', KEYS[2], ARGV[1], ARGV[2])
return {#ids > 0 and redis.call('HMGET', KEYS[1], unpack(ids)) or {}, redis.call('ZCARD', KEYS[2])}
"""

_RETRY_FAILED = """
local failed, failed_at, queue, job, result, tries, mark = unpack(KEYS)
local id, seen, definition, lifetime, now = unpack(ARGV)
if redis.call('HGET', failed, id) ~= seen then return 'gone' end
if redis.call('EXISTS', job) == 1 then return 'queued' end
redis.call('HDEL', failed, id)
redis.call('ZREM', failed_at, id)
redis.call('DEL', result, tries, mark)
redis.call('SET', job, definition, 'PX', lifetime)
redis.call('ZADD', queue, now, id)
return 'done'
"""

server = RedisServer("queue", sends_many=True)
pool: "JobQueue"  # there once the lifespan has called `open_pool`


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


class JobQueue(ArqRedis):
    """arq's client of the queue, for the API and the workers, without the ways in which arq's own loses a job."""

    def __init__(self, connection_pool: Any) -> None:
        super().__init__(
            connection_pool,
            job_serializer=serialize,
            job_deserializer=deserialize,
            expires_extra_ms=JOB_LIFETIME * 1000,
        )
        self._enqueue = self.register_script(_ENQUEUE)
        self.running: set[str] = set()
        """The marks of the jobs that run in this process."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "_Pipeline":
        return _Pipeline(self, transaction, shard_hint)

    async def enqueue_job(
        self,
        function: str,
        *args: Any,
        _job_id: str | None = None,
        _queue_name: str | None = None,
        _defer_until: datetime | None = None,
        _defer_by: float | timedelta | None = None,
        _expires: float | timedelta | None = None,
        _job_try: int | None = None,
        **kwargs: Any,
    ) -> _ArqJob | None:
        """As arq has it, but in one step: None means that a job of this id is there, and nothing else."""
        if _defer_until and _defer_by:
            raise ValueError("name the moment or the delay, not both")
        job_id = _job_id or uuid4().hex
        queue = _queue_name or self.default_queue_name
        now = timestamp_ms()
        start = to_unix_ms(_defer_until) if _defer_until else now + (to_ms(_defer_by) or 0)
        lifetime = to_ms(_expires) or start - now + self.expires_extra_ms
        job = serialize_job(function, args, kwargs, _job_try, now, serializer=serialize)
        keys = [job_key_prefix + job_id, result_key_prefix + job_id, queue]
        if not await self._enqueue(keys, [job, lifetime, start, job_id]):
            return None
        return _ArqJob(job_id, self, queue, deserialize)


class _Pipeline(Pipeline):
    def __init__(self, queue: JobQueue, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(queue.connection_pool, queue.response_callbacks, transaction, shard_hint)
        self._running = queue.running
        self._looks: list[tuple[tuple[Any, ...], Any]] = []

    def set(self, name: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a job is set in the transaction that takes it from the queue: there a failed one is kept."""
        if str(name).startswith(result_key_prefix):
            result = deserialize(value)
            if not result["s"]:
                if result["id"].startswith("cron:"):
                    # Its runs are named after their time: of each job the last one that failed is kept.
                    result["id"] = result["f"]
                values = (result["id"], serialize(result).decode(), str(result["ft"]), str(FAILED_JOBS_KEPT))
                self.eval(_KEEP_FAILED, 2, _FAILED, _FAILED_AT, *values)
        return super().set(name, value, *args, **kwargs)

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Begin a look at watched keys anew if the connection is lost: arq's worker would end over it.

        If things have changed meanwhile there is nothing to be seen, and arq leaves the job to whoever has it.
        """
        if args[0] == "WATCH":
            self._looks.clear()
        while True:
            try:
                answer = await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
                break
            except WatchError:
                for earlier, known in self._looks.copy():
                    if await self.immediate_execute_command(*earlier) != known:
                        return None
        self._looks.append((args, answer))
        # A pause of the server outlasts the mark of a job that runs here; arq would start it beside itself.
        return 1 if args[0] == "EXISTS" and args[1] in self._running else answer

    async def reset(self) -> None:
        try:
            await super().reset()  # type: ignore[no-untyped-call]
        except RedisTimeoutError:  # no answer to UNWATCH: the connection is closed, and with it the watch
            self.watching = False
            await super().reset()  # type: ignore[no-untyped-call]

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        """Name the command without its arguments: those of a job may be secrets, and this goes to the log."""
        super().annotate_exception(exception, number, [*command][:1])


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
    pool = JobQueue(server.client.connection_pool)


async def close_pool() -> None:
    global pool  # noqa: PLW0603
    del pool
    await server.close()


# -------- failed jobs --------
async def failed_jobs(offset: int, limit: int) -> tuple[list[JobResult], int]:
    """The jobs that ended badly, newest first, and how many there are; the newest `FAILED_JOBS_KEPT` are kept."""
    found, total = await server.script(_PAGE_OF_FAILED)([_FAILED, _FAILED_AT], [offset, offset + limit - 1])
    return [deserialize_result(data, deserializer=deserialize) for data in found], total


async def retry_failed_job(job_id: str) -> None:
    """Put a failed job back into the queue as it was first put there, with all its tries before it."""
    async with pool.pipeline() as pipe:
        pipe.hget(_FAILED, job_id)
        (data,) = await pipe.execute()
    if data is None:
        raise NotFoundError("There is no failed task of this id")
    failed = deserialize(data)
    now = timestamp_ms()
    definition = serialize_job(failed["f"], failed["a"], failed["k"], None, now, serializer=serialize)
    prefixes = (job_key_prefix, result_key_prefix, retry_key_prefix, in_progress_key_prefix)
    keys = [_FAILED, _FAILED_AT, failed["q"], *(prefix + job_id for prefix in prefixes)]
    values = [job_id, data, definition, JOB_LIFETIME * 1000, now]
    outcome = await server.script(_RETRY_FAILED)(keys, values)
    if outcome == b"gone":  # somebody else was faster
        raise NotFoundError("There is no failed task of this id")
    if outcome == b"queued":
        raise ConflictError("A task of this id is in the queue")

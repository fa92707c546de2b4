"""The client of the job queue: enqueues jobs, and looks them up as `ArqJob`."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from arq.connections import ArqRedis
from arq.constants import job_key_prefix, result_key_prefix
from arq.jobs import Job, serialize_job
from arq.utils import timestamp_ms, to_ms, to_unix_ms

from app.core.config import RedisQueueSettings
from app.core.queue.failed_jobs import JOB_LIFETIME
from app.core.queue.pipeline import JobPipeline
from app.core.queue.serialization import deserialize, serialize
from app.core.redis import RedisServer
from app.core.resources import getter

# KEYS: job, result, queue. ARGV: definition, its milliseconds, when to start it, id.
_ENQUEUE = """
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[4])
return 1
"""


class JobQueue(ArqRedis):
    """arq's client, for the API and the workers, without the ways in which arq's own loses a job."""

    def __init__(self, connection_pool: Any) -> None:
        super().__init__(
            connection_pool,
            job_serializer=serialize,
            job_deserializer=deserialize,
            expires_extra_ms=JOB_LIFETIME * 1000,
        )
        self._enqueue = self.register_script(_ENQUEUE)
        self.running: set[str] = set()
        """The keys that mark the jobs of this process as in progress."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> JobPipeline:
        pipe = JobPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.running = self.running
        return pipe

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
    ) -> Job | None:
        """Enqueue as arq does, but in one step: None means that a job of this id exists, and nothing else."""
        if _defer_until and _defer_by:
            raise ValueError("give _defer_until or _defer_by, not both")
        job_id = _job_id or uuid4().hex
        queue = _queue_name or self.default_queue_name
        now = timestamp_ms()
        start = to_unix_ms(_defer_until) if _defer_until else now + (to_ms(_defer_by) or 0)
        lifetime = to_ms(_expires) or start - now + self.expires_extra_ms
        job = serialize_job(function, args, kwargs, _job_try, now, serializer=serialize)
        keys = [job_key_prefix + job_id, result_key_prefix + job_id, queue]
        if not await self._enqueue(keys, [job, lifetime, start, job_id]):
            return None
        return Job(job_id, self, queue, deserialize)


class ArqJob(Job):
    """arq's job, reading JSON as the pool that it is given."""

    def __init__(self, job_id: str, redis: ArqRedis) -> None:
        super().__init__(job_id, redis, redis.default_queue_name, redis.job_deserializer)


class QueueClient:
    """The queue of one application: `pool` inside `async with server.guard():`."""

    pool: JobQueue

    def __init__(self) -> None:
        self.server = RedisServer("queue", sends_many=True)

    def open(self, settings: RedisQueueSettings) -> None:
        """Prepare `pool`; unlike arq's `create_pool` this works before the server is up."""
        self.server.open(settings, "REDIS_QUEUE", settings.REDIS_QUEUE_TIMEOUT)
        self.pool = JobQueue(self.server.client.connection_pool)
        _open_clients.append(self)

    async def close(self) -> None:
        _open_clients.remove(self)
        await self.server.close()


_open_clients: list[QueueClient] = []


queue_of = getter(QueueClient)


def default_pool() -> JobQueue:
    """The pool of the application that was started first in this process: `queue.pool`."""
    if not _open_clients:
        raise AttributeError("The queue is not open: the application has not started, or has no queue settings")
    return _open_clients[0].pool

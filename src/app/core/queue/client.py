"""The clients of the job queue: `JobQueue` in place of arq's, and `QueueClient`, which opens one for an application."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, result_key_prefix
from arq.jobs import Job, serialize_job
from arq.utils import timestamp_ms, to_ms, to_unix_ms
from redis.asyncio.client import Pipeline
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError

from app.core.config import RedisQueueSettings
from app.core.queue.failed_jobs import FAILED, FAILED_AT, FAILED_JOBS_KEPT, JOB_LIFETIME, KEEP_FAILED
from app.core.queue.serialization import deserialize, serialize
from app.core.redis import RedisServer
from app.core.resources import getter

LEASE_SECONDS = 30
"""How long after a worker was killed its jobs run again, however long jobs may take.

arq marks a running job until the longest timeout is over. Here the mark is short, and renewed while the worker runs.
"""

# KEYS: job, result, queue. ARGV: definition, its milliseconds, when to start it, id.
_ENQUEUE = """
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[4])
return 1
"""


class JobPipeline(Pipeline):
    """A redis-py pipeline that changes how arq's worker takes and finishes a job; arq has no hook for this.

    It overrides methods of redis-py, two of which are undocumented: `pyproject.toml` holds redis and arq below their
    next breaking versions.
    """

    running: set[str]  # that of its `JobQueue`

    def set(self, name: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep a failed job in the transaction in which arq stores its result and takes it off the queue."""
        if str(name).startswith(result_key_prefix):
            result = deserialize(value)
            if not result["s"]:
                if result["id"].startswith("cron:"):
                    # Runs of a cron job are named by their time: keep the last failed one of each job.
                    result["id"] = result["f"]
                values = (result["id"], serialize(result).decode(), str(result["ft"]), str(FAILED_JOBS_KEPT))
                self.eval(KEEP_FAILED, 2, FAILED, FAILED_AT, *values)
        return super().set(name, value, *args, **kwargs)

    def psetex(self, name: Any, time_ms: Any, value: Any) -> Any:
        """Shorten arq's mark on a job that starts."""
        is_mark = str(name).startswith(in_progress_key_prefix)
        return super().psetex(name, LEASE_SECONDS * 1000 if is_mark else time_ms, value)

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Repeat the reads of a watched key when the connection is lost; arq's worker would end.

        If a repeated read has another result, return None: arq then leaves the job to another worker.
        """
        if args[0] == "WATCH":
            self._reads: list[tuple[tuple[Any, ...], Any]] = []
        while True:
            try:
                answer = await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
                break
            except WatchError:
                for earlier, known in self._reads.copy():
                    if await self.immediate_execute_command(*earlier) != known:
                        return None
        self._reads.append((args, answer))
        # A pause of the server outlasts the mark of a job that runs here; arq would start the job a second time.
        return 1 if args[0] == "EXISTS" and args[1] in self.running else answer

    async def reset(self) -> None:
        """Close the connection when UNWATCH gets no answer, which ends the watch as well."""
        try:
            await super().reset()  # type: ignore[no-untyped-call]
        except RedisTimeoutError:
            self.watching = False
            await super().reset()  # type: ignore[no-untyped-call]

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        """Name the command without its arguments: a job's arguments may be secrets, and errors are logged."""
        super().annotate_exception(exception, number, [*command][:1])


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
        self.running: set[str] = set()  # the keys that mark the jobs of this process as in progress

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
        open_clients.append(self)

    async def close(self) -> None:
        open_clients.remove(self)
        await self.server.close()


open_clients: list[QueueClient] = []
queue_of = getter(QueueClient)

"""The list of jobs that failed for good, which superusers can read and put back into the queue."""

from typing import cast

from arq.constants import in_progress_key_prefix, job_key_prefix, result_key_prefix, retry_key_prefix
from arq.jobs import JobResult, deserialize_result, serialize_job
from arq.utils import timestamp_ms

from app.core.exceptions import ConflictError, NotFoundError
from app.core.queue.serialization import deserialize, serialize
from app.core.redis import RedisServer

JOB_LIFETIME = 7 * 24 * 3600  # seconds that a job waits for a worker, or for its next try, before it counts as failed
FAILED_JOBS_KEPT = 1000
FAILED = "failed_jobs"  # a hash: failed jobs as arq encodes their results, by id
FAILED_AT = "failed_jobs:at"  # a sorted set: the ids by the time of the failure

# KEYS: FAILED, FAILED_AT. ARGV: id, result, time of the failure, how many to keep.
KEEP_FAILED = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
local oldest = redis.call('ZRANGE', KEYS[2], 0, -1 - ARGV[4])
for _, id in ipairs(oldest) do
    redis.call('HDEL', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
end
"""

# KEYS: FAILED, FAILED_AT. ARGV: the first and the last position.
_PAGE = """
local ids = redis.call('ZREVRANGE', KEYS[2], ARGV[1], ARGV[2])
return {#ids > 0 and redis.call('HMGET', KEYS[1], unpack(ids)) or {}, redis.call('ZCARD', KEYS[2])}
"""

_RETRY = """
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


async def failed_jobs(server: RedisServer, offset: int, limit: int) -> tuple[list[JobResult], int]:
    """Return failed jobs, newest first, and how many there are; the newest `FAILED_JOBS_KEPT` are kept."""
    found, total = await server.script(_PAGE)([FAILED, FAILED_AT], [offset, offset + limit - 1])
    return [deserialize_result(data, deserializer=deserialize) for data in found], total


async def retry_failed_job(server: RedisServer, job_id: str) -> None:
    """Put a failed job back into the queue with its first arguments and all its tries; raises NotFoundError."""
    data = cast(bytes | None, await server.client.execute_command("HGET", FAILED, job_id))  # type: ignore[no-untyped-call]
    if data is None:
        raise NotFoundError("There is no failed task of this id")
    failed = deserialize(data)
    now = timestamp_ms()
    definition = serialize_job(failed["f"], failed["a"], failed["k"], None, now, serializer=serialize)
    prefixes = (job_key_prefix, result_key_prefix, retry_key_prefix, in_progress_key_prefix)
    keys = [FAILED, FAILED_AT, failed["q"], *(prefix + job_id for prefix in prefixes)]
    outcome = await server.script(_RETRY)(keys, [job_id, data, definition, JOB_LIFETIME * 1000, now])
    if outcome == b"gone":  # another request was faster
        raise NotFoundError("There is no failed task of this id")
    if outcome == b"queued":
        raise ConflictError("A task of this id is in the queue")

"""A redis-py pipeline that changes four things in how arq's worker takes and finishes a job.

arq has no hook for them. The class overrides methods of redis-py, two of which are undocumented, so `pyproject.toml`
holds redis and arq below their next breaking versions.
"""

from collections.abc import Iterable
from typing import Any

from arq.constants import result_key_prefix
from redis.asyncio.client import Pipeline
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError

from app.core.queue.failed_jobs import FAILED, FAILED_AT, FAILED_JOBS_KEPT, KEEP_FAILED
from app.core.queue.serialization import deserialize, serialize


class JobPipeline(Pipeline):
    running: set[str]
    """The keys that mark the jobs of this process as in progress."""

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

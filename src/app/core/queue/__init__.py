"""The job queue: `client` (enqueue, take, finish and look up jobs), `failed_jobs`, `serialization`, and `worker`
(additions to arq's worker). `pool` is the documented global: the queue of the application started first.
"""

from typing import Any

from app.core.queue.client import ArqJob, JobQueue, QueueClient, open_clients, queue_of
from app.core.queue.failed_jobs import failed_jobs, retry_failed_job
from app.core.queue.serialization import deserialize, serialize

__all__ = [
    "ArqJob", "JobQueue", "QueueClient", "deserialize", "failed_jobs", "pool", "queue_of", "retry_failed_job",
    "serialize",
]  # fmt: skip

pool: JobQueue


def __getattr__(name: str) -> Any:
    if name != "pool":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not open_clients:
        raise AttributeError("The queue is not open: the application has not started, or has no queue settings")
    return open_clients[0].pool

"""The worker process: `arq app.worker.WorkerSettings`.

The first argument of a job is its context; `async with ctx["transaction"]() as db:` opens a unit of work. A job runs
at least once: the one that a worker was killed over runs again, so a job should do no harm when repeated.
"""

import asyncio
from typing import Any

from app.core.config import settings
from app.core.database import engine, transaction
from app.core.logger import setup_logging
from app.core.queue import JobLeases, deserialize, serialize, worker_has_started, worker_redis_settings


# -------- background tasks --------
async def sample_background_task(ctx: dict[str, Any], name: str) -> str:
    await asyncio.sleep(5)
    return f"Task {name} is complete!"


# -------- what happens around them --------
async def startup(ctx: dict[str, Any]) -> None:
    setup_logging()
    worker_has_started()
    ctx["transaction"] = transaction
    ctx["leases"] = JobLeases(ctx["redis"])


async def job_start(ctx: dict[str, Any]) -> None:
    await ctx["leases"].take(ctx["job_id"])


async def job_end(ctx: dict[str, Any]) -> None:
    ctx["leases"].give_up(ctx["job_id"])


async def shutdown(ctx: dict[str, Any]) -> None:
    ctx["leases"].close()
    await engine.dispose()


# -------- class --------
class WorkerSettings:
    functions = (sample_background_task,)
    on_startup = startup
    on_job_start = job_start
    on_job_end = job_end
    on_shutdown = shutdown
    redis_settings = worker_redis_settings(settings)
    job_serializer = serialize
    job_deserializer = deserialize
    job_completion_wait = 20  # seconds that a stopped worker gives its jobs before it hands them back

"""The worker process: `arq app.worker.WorkerSettings`.

The first argument of a job is its context; `async with ctx["transaction"]() as db:` opens a unit of work.
"""

import asyncio
from typing import Any

from app.core.config import settings
from app.core.database import engine, transaction
from app.core.logger import setup_logging
from app.core.queue import deserialize, serialize, worker_redis_settings


# -------- background tasks --------
async def sample_background_task(ctx: dict[str, Any], name: str) -> str:
    await asyncio.sleep(5)
    return f"Task {name} is complete!"


# -------- what happens around them --------
async def startup(ctx: dict[str, Any]) -> None:
    setup_logging()
    ctx["transaction"] = transaction


async def shutdown(_: dict[str, Any]) -> None:
    await engine.dispose()


# -------- class --------
class WorkerSettings:
    functions = (sample_background_task,)
    on_startup = startup
    on_shutdown = shutdown
    redis_settings = worker_redis_settings(settings)
    job_serializer = serialize
    job_deserializer = deserialize

"""The worker under test: the service's own settings with a short job, which counts how often it finishes."""

import asyncio
import random
from typing import Any

from sqlalchemy import text

from app.core.config import settings
from app.core.queue.worker import retried
from app.worker import WorkerSettings as ServiceSettings
from soak.service import FINISHED

LONGEST_SECONDS = 1.0


async def sample_background_task(ctx: dict[str, Any], name: str) -> str:
    """Replace the service's job of this name, which takes five seconds; fail while PostgreSQL is unavailable."""
    await asyncio.sleep(random.uniform(0, LONGEST_SECONDS))
    async with ctx["transaction"]() as db:
        await db.execute(text("SELECT 1"))
    await ctx["redis"].hincrby(FINISHED, ctx["job_id"], 1)
    return f"Task {name} is complete!"


@retried(settings.JOB_RETRY_DELAY)
class WorkerSettings:
    locals().update({name: value for name, value in vars(ServiceSettings).items() if not name.startswith("__")})
    functions = (sample_background_task,)
    max_jobs = 50

"""The worker process: `arq app.worker.WorkerSettings`.

The first argument of a job is its context; `async with ctx["transaction"]() as db:` opens a unit of work, and
`await ctx["mailer"].send(Mail(…))` sends mail. A job runs at least once: one that failed, or that a worker was killed
over, runs again, so a job should do no harm when repeated.
"""

import asyncio
import logging
from typing import Any

from app.core.config import settings
from app.core.database import engine, transaction
from app.core.jobs import JobLeases, hide_arguments, patient_queue, queue_address, retried
from app.core.logger import setup_logging
from app.core.mail import mailer_for
from app.core.queue import deserialize, serialize


# -------- background tasks --------
async def sample_background_task(ctx: dict[str, Any], name: str) -> str:
    await asyncio.sleep(5)
    return f"Task {name} is complete!"


# -------- what happens around them --------
async def startup(ctx: dict[str, Any]) -> None:
    setup_logging()
    logging.getLogger("arq.worker").addFilter(hide_arguments)
    ctx["transaction"] = transaction
    ctx["mailer"] = mailer_for(settings)
    ctx["leases"] = JobLeases(ctx["redis"])


async def job_start(ctx: dict[str, Any]) -> None:
    await ctx["leases"].take(ctx["job_id"])


async def after_job_end(ctx: dict[str, Any]) -> None:
    ctx["leases"].give_up(ctx["job_id"])


async def shutdown(ctx: dict[str, Any]) -> None:
    ctx["leases"].close()
    await engine.dispose()


# -------- class --------
@retried(settings.JOB_RETRY_DELAY)
class WorkerSettings:
    functions = (sample_background_task,)
    on_startup = startup
    on_job_start = job_start
    after_job_end = after_job_end
    on_shutdown = shutdown
    redis_pool = patient_queue(settings)
    redis_settings = queue_address(settings)  # for `arq --check`
    job_serializer = serialize
    job_deserializer = deserialize
    job_timeout = settings.JOB_TIMEOUT
    job_completion_wait = 20  # seconds that a stopped worker gives its jobs before it hands them back
    max_tries = settings.JOB_MAX_TRIES
    log_results = False  # nor arguments, see `hide_arguments`: there may be secrets among them

"""The worker process: `arq app.worker.WorkerSettings`.

The first argument of a job is its context: `async with ctx["transaction"]() as db:` opens a unit of work, and
`await ctx["mailer"].send(Mail(…))` sends mail. A job runs again if it fails or its worker is killed, so a repetition
should do no harm.
"""

import asyncio
import logging
from datetime import timedelta
from functools import partial
from typing import Any

from arq import cron

from app.core.config import DEFAULT_ADMIN_EMAIL, EnvironmentOption, RedisQueueSettings, settings
from app.core.database import default_engines, transaction
from app.core.logger import setup_logging
from app.core.mail import Mail, mailer_for
from app.core.models import now
from app.core.queue import deserialize, serialize, worker
from app.core.security import hash_of, new_secret
from app.core.settings_group import require
from app.crud.crud_password_resets import crud_password_resets
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_users import crud_users

require(settings, RedisQueueSettings)

PURGE_BATCH = 5000


# -------- background tasks --------
async def sample_background_task(ctx: dict[str, Any], name: str) -> str:
    await asyncio.sleep(5)
    return f"Task {name} is complete!"


async def send_password_reset(ctx: dict[str, Any], email: str) -> None:
    """Mail a token for a new password, if a user has this address."""
    token = new_secret()
    expires_at = now() + timedelta(minutes=settings.PASSWORD_RESET_MINUTES)
    async with ctx["transaction"]() as db:
        user = await crud_users.get(db, ["id"], email=email, is_deleted=False)
        # Such mail would go to a stranger: the owner of the domain in the first superuser's default address.
        is_default = email == DEFAULT_ADMIN_EMAIL and settings.ENVIRONMENT is not EnvironmentOption.LOCAL
        if user is None or is_default:
            return
        await crud_password_resets.issue(db, user["id"], email, hash_of(token), expires_at)
    url = settings.PASSWORD_RESET_URL
    way = f"{url}{'&' if '?' in url else '?'}token={token}" if url else f"Your token: {token}"
    text = (
        f"Somebody asked for a new password for your account at {settings.APP_NAME}.\n\n{way}\n\n"
        f"It works once, within {settings.PASSWORD_RESET_MINUTES} minutes. If it was not you, do nothing.\n"
    )
    await ctx["mailer"].send(Mail(to=email, subject=f"Your password at {settings.APP_NAME}", text=text))


async def purge_expired(ctx: dict[str, Any]) -> None:
    """Remove expired sessions and password resets, in batches that fit into the statement timeout."""
    for purge in (crud_sessions.purge, crud_password_resets.purge):
        removed = PURGE_BATCH
        while removed == PURGE_BATCH:
            async with ctx["transaction"]() as db:
                removed = await purge(db, PURGE_BATCH)


# -------- hooks --------
async def startup(ctx: dict[str, Any]) -> None:
    setup_logging()
    logging.getLogger("arq.worker").addFilter(worker.hide_arguments)
    ctx["transaction"] = partial(transaction, statement_timeout=settings.JOB_STATEMENT_TIMEOUT)
    ctx["mailer"] = mailer_for(settings)
    ctx["renewal"] = asyncio.create_task(worker.renew_leases(ctx["redis"]))


async def shutdown(ctx: dict[str, Any]) -> None:
    ctx["renewal"].cancel()
    await default_engines.close()


# -------- settings of arq --------
@worker.retried(settings.JOB_RETRY_DELAY)
class WorkerSettings:
    functions = (sample_background_task, send_password_reset)
    cron_jobs = (cron(purge_expired, minute={*range(0, 60, 10)}),)
    on_startup = startup
    on_job_start = worker.take_lease
    after_job_end = worker.give_up_lease
    on_shutdown = shutdown
    redis_pool = worker.patient_queue(settings)
    redis_settings = worker.queue_address(settings)  # for `arq --check`
    job_serializer = serialize
    job_deserializer = deserialize
    health_check_interval = 10  # for `arq --check`: a worker that stops removes what it finds, which all of them share
    job_timeout = settings.JOB_TIMEOUT
    job_completion_wait = 20  # seconds that a stopped worker gives its jobs before it hands them back
    max_tries = settings.JOB_MAX_TRIES
    log_results = False  # they may be secrets, and so may arguments (`worker.hide_arguments`)

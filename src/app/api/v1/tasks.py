import re
from typing import Annotated
from uuid import uuid4

from arq.jobs import JobResult, JobStatus
from fastapi import APIRouter, Depends, Path, Query, Response

from app.api.dependencies import TOKEN_OPTIONAL, OptionalUser, rate_limiter
from app.api.exceptions import responses
from app.core import queue
from app.core.exceptions import NotFoundError, RateLimitExceededError, UnauthorizedError
from app.core.models import Text
from app.core.queue import ArqJob
from app.schemas.job import Job, JobRead
from app.schemas.user import Caller

router = APIRouter(prefix="/tasks", tags=["tasks"])

TaskMessage = Annotated[Text, Query(max_length=1000, examples=["test"])]
TaskId = Annotated[Text, Path(max_length=200)]
# The id of a task that was made with a token begins with its maker's.
_MAKER = re.compile(r"([0-9]+)-[0-9a-f]{32}")


@router.post(
    "/task",
    status_code=201,
    dependencies=[Depends(rate_limiter)],
    responses=responses(UnauthorizedError, RateLimitExceededError),
    openapi_extra=TOKEN_OPTIONAL,
)
async def create_task(message: TaskMessage, user: OptionalUser) -> Job:
    """Queue a task that takes five seconds; with a token, only its maker and superusers can read it."""
    job_id = f"{user['id']}-{uuid4().hex}" if user else uuid4().hex
    async with queue.server.guard():
        await queue.pool.enqueue_job("sample_background_task", message, _job_id=job_id)
    return Job(id=job_id)


@router.get("/task/{task_id}", responses=responses(UnauthorizedError, NotFoundError), openapi_extra=TOKEN_OPTIONAL)
async def get_task(task_id: TaskId, user: OptionalUser, response: Response) -> JobRead:
    """Read what the queue knows of a task, for an hour after it has run."""
    response.headers["Cache-Control"] = "private, no-store"
    job = ArqJob(task_id, queue.pool)
    if _may_read(task_id, user):
        async with queue.server.guard():
            status = await job.status()
            # It looks in two places; a job that ends in between has left the second one.
            info = await job.info() or await job.info()
        if isinstance(info, JobResult):
            status = JobStatus.complete
        if info is not None:
            return JobRead.model_validate({**vars(info), "id": task_id, "status": status})
    raise NotFoundError("Task not found")


def _may_read(task_id: str, user: Caller | None) -> bool:
    made = _MAKER.fullmatch(task_id)
    return made is None or (user is not None and (user["is_superuser"] or str(user["id"]) == made[1]))

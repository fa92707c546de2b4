import re
from typing import Annotated, Any
from uuid import uuid4

from arq.jobs import JobResult, JobStatus
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.api.dependencies import TOKEN_OPTIONAL, CurrentSuperuser, OptionalUser, rate_limiter
from app.api.exceptions import responses
from app.api.paginated import PageDep, PaginatedListResponse, paginated_response
from app.core.exceptions import ConflictError, ForbiddenError, NotFoundError, RateLimitExceededError, UnauthorizedError
from app.core.models import Text
from app.core.queue import ArqJob, failed_jobs, queue_of, retry_failed_job
from app.schemas.job import FailedJobRead, Job, JobRead
from app.schemas.user import Caller

router = APIRouter(prefix="/tasks", tags=["tasks"], responses=responses(UnauthorizedError))

TaskMessage = Annotated[Text, Query(max_length=1000, examples=["test"])]
TaskId = Annotated[Text, Path(max_length=200)]
# An id begins with the id of the user who made the task, if any. Ids of other forms can be guessed.
_ID = re.compile(r"(?:(?P<maker>[0-9]+)-)?[0-9a-f]{32}")


@router.post(
    "/task",
    status_code=201,
    dependencies=[Depends(rate_limiter)],
    responses=responses(RateLimitExceededError),
    openapi_extra=TOKEN_OPTIONAL,
)
async def create_task(request: Request, message: TaskMessage, user: OptionalUser) -> Job:
    """Queue a task that takes five seconds; with a token, only its maker and superusers can read it."""
    job_id = f"{user['id']}-{uuid4().hex}" if user else uuid4().hex
    queue = queue_of(request)
    async with queue.server.guard():
        await queue.pool.enqueue_job("sample_background_task", message, _job_id=job_id)
    return Job(id=job_id)


@router.get("/task/{task_id}", responses=responses(NotFoundError), openapi_extra=TOKEN_OPTIONAL)
async def get_task(request: Request, task_id: TaskId, user: OptionalUser, response: Response) -> JobRead:
    """Read the state of a task; its result is kept for an hour."""
    response.headers["Cache-Control"] = "private, no-store"
    queue = queue_of(request)
    job = ArqJob(task_id, queue.pool)
    if _may_read(task_id, user):
        async with queue.server.guard():
            status = await job.status()
            # arq looks in two places; a job that ends in between is found at the second try.
            info = await job.info() or await job.info()
        if isinstance(info, JobResult):
            status = JobStatus.complete
        elif status is JobStatus.complete:  # it was retried between the two calls
            status = JobStatus.queued
        if info is not None:
            return JobRead.model_validate({**vars(info), "id": task_id, "status": status})
    raise NotFoundError("Task not found")


@router.get("/failed", response_model=PaginatedListResponse[FailedJobRead], responses=responses(ForbiddenError))
async def read_failed_tasks(request: Request, page: PageDep, _: CurrentSuperuser) -> dict[str, Any]:
    """List the tasks that failed for good, newest first; the newest 1,000 are kept."""
    queue = queue_of(request)
    async with queue.server.guard():
        jobs, total_count = await failed_jobs(queue.server, page.offset, page.items_per_page)
    data = [{**vars(job), "id": job.job_id, "error": job.result, "failed_at": job.finish_time} for job in jobs]
    return paginated_response({"data": data, "total_count": total_count}, page.page, page.items_per_page)


@router.post("/failed/{task_id}/retry", responses=responses(ForbiddenError, NotFoundError, ConflictError))
async def retry_failed_task(request: Request, task_id: TaskId, _: CurrentSuperuser) -> Job:
    """Queue a failed task again, with the same arguments and all its tries."""
    queue = queue_of(request)
    async with queue.server.guard():
        await retry_failed_job(queue.server, task_id)
    return Job(id=task_id)


def _may_read(task_id: str, user: Caller | None) -> bool:
    if user is not None and user["is_superuser"]:
        return True
    id_ = _ID.fullmatch(task_id)
    return id_ is not None and (id_["maker"] is None or (user is not None and str(user["id"]) == id_["maker"]))

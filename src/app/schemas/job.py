from datetime import datetime
from typing import Any

from pydantic import BaseModel


class Job(BaseModel):
    id: str


class JobRead(BaseModel):
    """A job in the queue; the last five fields are set once it has run."""

    id: str
    status: str
    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    enqueue_time: datetime
    job_try: int | None = None
    success: bool | None = None
    result: Any = None
    start_time: datetime | None = None
    finish_time: datetime | None = None
    queue_name: str | None = None


class FailedJobRead(BaseModel):
    """A job whose last try failed."""

    id: str
    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    error: str
    job_try: int
    enqueue_time: datetime
    failed_at: datetime

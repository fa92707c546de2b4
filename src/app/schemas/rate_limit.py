from typing import Annotated, Self

from pydantic import MISSING, AfterValidator, Field, StringConstraints, model_validator

from app.core.models import InputSchema, ReadSchema, Text, WholeRow, sanitize_path

# The template of a route, with or without a leading slash; stored as `api_v1_tasks_task`.
LimitedPath = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^/*[^/\x00-\x20][^\x00-\x20]*$"),
    AfterValidator(sanitize_path),
    Field(examples=["api/v1/tasks/task"]),
]
LimitName = Annotated[Text, Field(min_length=1, max_length=300, examples=["api_v1_tasks:5:60"])]
Limit = Annotated[int, Field(ge=0, le=2**31 - 1, examples=[5])]
Period = Annotated[int, Field(ge=1, le=2**31 - 1, description="seconds", examples=[60])]


class RateLimitRead(ReadSchema):
    id: int
    tier_id: int
    name: str
    path: str
    limit: int
    period: int


class RateLimit(RateLimitRead, WholeRow): ...


class RateLimitCreate(InputSchema):
    """The name defaults to `{path}:{limit}:{period}`."""

    path: LimitedPath
    limit: Limit
    period: Period
    name: LimitName | None = None

    @model_validator(mode="after")
    def _default_name(self) -> Self:
        self.name = self.name or f"{self.path}:{self.limit}:{self.period}"
        return self


class RateLimitUpdate(InputSchema):
    path: LimitedPath | MISSING = MISSING
    limit: Limit | MISSING = MISSING
    period: Period | MISSING = MISSING
    name: LimitName | MISSING = MISSING

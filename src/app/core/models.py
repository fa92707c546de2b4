"""Mixins of models (SQLAlchemy, the first three) and bases and types of schemas (Pydantic, the rest)."""

from datetime import UTC, datetime
from typing import Annotated, ClassVar
from uuid import UUID, uuid4

from email_validator import EmailNotValidError, validate_email
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Mapped, MappedAsDataclass, mapped_column


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


class UUIDModel(MappedAsDataclass):
    uuid: Mapped[UUID] = mapped_column(default_factory=uuid4, unique=True, init=False)


class TimestampModel(MappedAsDataclass):
    created_at: Mapped[datetime] = mapped_column(default_factory=now, init=False)
    updated_at: Mapped[datetime | None] = mapped_column(default=None, init=False)


class PersistentDeletion(MappedAsDataclass):
    """Rows stay in the table when deleted: `CRUDBase.delete` marks them."""

    deleted_at: Mapped[datetime | None] = mapped_column(default=None, init=False)
    is_deleted: Mapped[bool] = mapped_column(default=False, init=False)


def _refuse_other_types(value: object) -> object:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


# Last in the annotation of an integer in a body: without it Pydantic accepts `true` as 1 and `"5"` as 5.
JsonNumber = BeforeValidator(_refuse_other_types)
# PostgreSQL stores no NUL; a pattern also makes Pydantic refuse lone surrogates.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
WebUrl = Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://[^\s\x00]+$")]
RowId = Annotated[int, Field(ge=1, le=2**31 - 1)]


def normalized_email(address: str) -> str:
    """Return the address in lower case; raises ValueError if it is none."""
    try:
        # Of the reserved top-level domains only `.test` is accepted.
        return validate_email(address, check_deliverability=False, test_environment=True).normalized.lower()
    except EmailNotValidError:
        raise ValueError("this is not an e-mail address") from None


class InputSchema(BaseModel):
    """Base of request bodies: an unknown field is an error, never ignored."""

    MAX_FIELDS: ClassVar = 100

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_very_many_fields(cls, body: object) -> object:
        # Each unknown field costs an error in the answer: 100,000 of them would keep a processor busy.
        if isinstance(body, dict) and len(body) > cls.MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "The body has too many fields")
        return body


class ReadSchema(BaseModel):
    """Base of response bodies, made from a row, a model or a dict."""

    model_config = ConfigDict(from_attributes=True)


class WholeRow(ReadSchema):
    """Base of the schema of a whole row, with the columns of `TimestampModel`."""

    created_at: datetime
    updated_at: datetime | None


class DeletableRow(WholeRow):
    uuid: UUID
    deleted_at: datetime | None
    is_deleted: bool


class TokenData(BaseModel):
    username_or_email: str


class Token(BaseModel):
    """`refresh_token` is set for clients that ask for it in the body instead of a cookie."""

    access_token: str
    token_type: str
    refresh_token: str | None = None


class Message(BaseModel):
    """The answer to a DELETE."""

    message: str


class ErrorMessage(BaseModel):
    """The body of every error except a 422 for malformed input, whose detail is a list."""

    detail: str


class HealthCheck(BaseModel):
    status: str


class Readiness(HealthCheck):
    dependencies: dict[str, str]

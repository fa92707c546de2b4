"""What models and schemas share: mixins of models, types of fields, bases of schemas, and bodies of no one resource."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar
from uuid import UUID, uuid4

from email_validator import EmailNotValidError, validate_email
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator
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


# PostgreSQL stores no NUL; a pattern also makes Pydantic refuse lone surrogates.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
# Spaces are spelled out: what `\s` means differs between Pydantic and the clients that read the API's document.
_SPACES = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
WebUrl = Annotated[str, StringConstraints(max_length=2048, pattern=f"^https?://[^{_SPACES}]+$")]
RowId = Annotated[int, Field(ge=1, le=2**31 - 1)]


def normalized_email(address: str) -> str:
    """Return the address in lower case; raises ValueError if it is none."""
    try:
        # Of the reserved top-level domains only `.test` is accepted.
        return validate_email(address, check_deliverability=False, test_environment=True).normalized.lower()
    except EmailNotValidError:
        raise ValueError("this is not an e-mail address") from None


def sanitize_path(path: str) -> str:
    """Return the name of a path in rules of rate limits: `/api/v1/tasks/task` becomes `api_v1_tasks_task`."""
    return path.strip("/").replace("/", "_")


_NUMBER = {"integer", "number"}
_JSON_TYPES = {bool: {"boolean"}, int: _NUMBER, float: _NUMBER, str: {"string"}, list: {"array"}}
_SURROGATE = re.compile("[\ud800-\udfff]")


@cache
def _json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema(by_alias=False)


def _has_json_type(value: object, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    """Whether the schema names the JSON type of the value, or none; an object of its own checks itself."""
    if "$ref" in schema:
        return _has_json_type(value, definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return any(_has_json_type(value, each, definitions) for each in alternatives)
    if type(value) is list and isinstance(schema.get("items"), dict):
        return all(_has_json_type(each, schema["items"], definitions) for each in value)
    return "type" not in schema or type(value) not in _JSON_TYPES or schema["type"] in _JSON_TYPES[type(value)]


def _is_unicode(value: object) -> bool:
    """Whether no string within has a lone surrogate, which JSON can write but no answer can hold."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            pending += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            pending += each
        elif isinstance(each, str) and _SURROGATE.search(each):
            return False
    return True


class InputSchema(BaseModel):
    """Base of request bodies: an unknown field is an error, never ignored, and so is another JSON type.

    Pydantic would accept `true` and `"5"` as 5, and 0 as a date, where the OpenAPI document says something else.
    """

    MAX_FIELDS: ClassVar = 100

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_very_many_fields(cls, body: object) -> object:
        # Each unknown field costs an error in the answer: 100,000 of them would keep a processor busy.
        if isinstance(body, dict) and len(body) > cls.MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "The body has too many fields")
        return body

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_json_types(cls, value: object, info: ValidationInfo) -> object:
        schema = _json_schema(cls)
        if not _has_json_type(value, schema["properties"].get(info.field_name, {}), schema.get("$defs", {})):
            raise PydanticCustomError("json_type", "Input should have the JSON type that the API's document names")
        if isinstance(value, dict | list) and not _is_unicode(value):
            raise PydanticCustomError("string_unicode", "Input should have no lone surrogates")
        return value


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
    """The body of an error, except of a 422, whose `detail` is a list. A 500 has a `request_id`, too."""

    detail: str


class HealthCheck(BaseModel):
    status: str


class Readiness(HealthCheck):
    dependencies: dict[str, str]

"""`tests.operations`: a value made from a schema is valid, for every type that a body may have."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    EmailStr,
    Field,
    Json,
    NegativeInt,
    SecretStr,
    TypeAdapter,
)

from app.core.models import RowId, Text, WebUrl
from tests.operations import valid_value


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Size(IntEnum):
    SMALL = 3


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    born: date


TYPES: list[Any] = [
    *(
        int,
        float,
        bool,
        str,
        bytes,
        None,
        Any,
        Decimal,
        date,
        time,
        datetime,
        AwareDatetime,
        timedelta,
        UUID,
        Colour,
        Size,
    ),
    *(EmailStr, AnyUrl, IPv4Address, IPv6Address, Base64Bytes, SecretStr, Json, NegativeInt, RowId, Text, WebUrl),
    *(
        Literal["a", 1],
        int | str,
        str | None,
        list[int],
        set[str],
        tuple[int, str],
        dict[str, int],
        list[dict[str, Any]],
    ),
    *(
        Annotated[int, Field(gt=5, lt=7)],
        Annotated[int, Field(multiple_of=7, ge=8)],
        Annotated[float, Field(gt=0, lt=1)],
    ),
    *(Annotated[int, Field(le=-3)], Annotated[float, Field(ge=2.5)], Annotated[Decimal, Field(ge=0, decimal_places=2)]),
    *(Annotated[str, Field(min_length=300)], Annotated[str, Field(max_length=2)], Annotated[str, Field(max_length=0)]),
    *(Annotated[str, Field(pattern=r"^[0-9]+$")], Annotated[str, Field(pattern=r"^x-", examples=["x-1"])]),
    *(Annotated[list[Literal["a"]], Field(min_length=2)], Annotated[list[int], Field(max_length=0)]),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_value_is_valid(kind: Any) -> None:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    assert "$ref" not in schema
    adapter.validate_python(valid_value(schema, "field"))


def test_value_of_a_model_of_the_application() -> None:
    """References lead into the application's own document."""
    value = valid_value({"$ref": "#/components/schemas/UserCreate"}, "body")
    assert value.keys() == {"name", "username", "email", "password"}


@pytest.mark.parametrize("kind", [Cat, Dog])
def test_value_of_an_object_has_what_is_required(kind: type[BaseModel]) -> None:
    value = valid_value(kind.model_json_schema(), "body")
    assert value.keys() == {*kind.model_json_schema()["required"]}
    kind.model_validate(value)


def test_unknown_pattern_says_what_to_add() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"no valid value is known for 'isbn': add one .* examples=\[…\]"):
        valid_value({"type": "string", "pattern": "^978-[0-9]{10}$"}, "isbn")

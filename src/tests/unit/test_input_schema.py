"""`InputSchema`: each field takes the JSON types that the API's document names, and no other."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import AwareDatetime, ValidationError

from app.core.models import InputSchema


class Colour(Enum):
    RED = "red"


class Part(InputSchema):
    count: int


class Whole(InputSchema):
    number: int | None = None
    float_: float | None = None
    truth: bool | None = None
    price: Decimal | None = None
    day: date | None = None
    clock: time | None = None
    moment: AwareDatetime | None = None
    span: timedelta | None = None
    key: UUID | None = None
    colour: Colour | None = None
    either: int | str | None = None
    free: dict[str, Any] | None = None
    anything: Any = None
    numbers: list[int] | None = None
    parts: list[Part] | None = None


VALID: list[tuple[str, Any]] = [
    ("number", 5),
    ("number", 5.0),
    ("float_", 5),
    ("float_", 0.5),
    ("truth", False),
    ("price", 9.9),
    ("price", 9),
    ("price", "9.90"),
    ("day", "2026-11-27"),
    ("clock", "12:00:00"),
    ("moment", "2026-11-27T12:00:00Z"),
    ("span", "P1D"),
    ("key", "e3e70682-c209-4cac-a29f-6fbed82c07cd"),
    ("colour", "red"),
    ("either", 5),
    ("either", "5"),
    ("free", {"a": [1, None, "é", {"b": True}]}),
    ("anything", True),
    ("numbers", [1, 2]),
    ("parts", [{"count": 1}]),
    # What Python code passes.
    ("day", date(2026, 11, 27)),
    ("moment", datetime.fromisoformat("2026-11-27T12:00:00Z")),
    ("price", Decimal("9.90")),
    ("colour", Colour.RED),
    ("span", timedelta(days=1)),
    ("parts", [Part(count=1)]),
]
WRONG: list[tuple[str, Any]] = [
    *(("number", "5"), ("number", True), ("float_", "0.5"), ("float_", True)),
    *(("truth", "true"), ("truth", 1), ("price", True), ("day", 0), ("day", True)),
    *(("clock", 3600), ("moment", 0), ("moment", 1.5), ("span", 1), ("span", True)),
    *(("key", 1), ("colour", 1), ("either", True), ("numbers", ["5"]), ("numbers", [True])),
    *(("free", {"a": "\ud800"}), ("free", {"\udfff": 1}), ("anything", [["\ud800"]])),
]


@pytest.mark.parametrize(("name", "value"), VALID)
def test_named_types_are_accepted(name: str, value: Any) -> None:
    assert getattr(Whole.model_validate({name: value}), name) is not None


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_other_types_are_refused_where_they_are(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        Whole.model_validate({name: value})
    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


def test_object_within_checks_itself() -> None:
    with pytest.raises(ValidationError) as refused:
        Whole.model_validate({"parts": [{"count": "1"}]})
    assert [error["loc"] for error in refused.value.errors()] == [("parts", 0, "count")]


def test_deep_object_is_no_problem() -> None:
    deep: Any = {}
    for _ in range(20_000):
        deep = {"a": deep}
    assert Whole.model_validate({"free": {"a": deep}}).free is not None

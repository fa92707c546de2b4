"""Whose mistake is it: 422 for a value that the client chose, a logged 500 for what the code got wrong."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.extending.clone import Clone, open_clone
from tests.fixtures import RunningServer

MODEL = """
import enum
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, REAL, CheckConstraint, Enum, Integer, Numeric, SmallInteger, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Mood(enum.StrEnum):
    GOOD = "good"
    NEW = "new"  # not yet in the database


class Thing(Base):
    __tablename__ = "thing"
    __table_args__ = (
        CheckConstraint("stars BETWEEN 1 AND 5", name="five_stars"),
        CheckConstraint("stars < number", name="fewer_stars"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    number: Mapped[int] = mapped_column(default=100)
    small: Mapped[int] = mapped_column(SmallInteger, default=1)
    name: Mapped[str] = mapped_column(String(5), default="")
    price: Mapped[Decimal] = mapped_column(Numeric(4, 2), default=Decimal(1))
    ratio: Mapped[float] = mapped_column(REAL, default=1.0)
    stars: Mapped[int] = mapped_column(default=1)
    numbers: Mapped[list[int]] = mapped_column(ARRAY(Integer), default_factory=list)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, default_factory=dict)
    seen_at: Mapped[datetime | None] = mapped_column(default=None)
    code: Mapped[UUID | None] = mapped_column(default=None)
    mood: Mapped[Mood | None] = mapped_column(Enum(Mood, native_enum=True, name="mood"), default=None)
    required: Mapped[str] = mapped_column(String(20), default="")
"""
ROUTES = '''
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import text

from app.api.dependencies import ReaderDep, SessionDep
from app.crud.crud_base import CRUDBase
from app.models.thing import Thing

router = APIRouter()


class ThingBody(BaseModel):
    """Lets everything through, as schemas do that forget a limit."""

    number: int | None = 100
    small: int = 1
    name: str = ""
    price: Any = 1
    ratio: float = 1.0
    stars: int = 1
    numbers: list[int] = []
    details: dict[str, Any] = {}
    seen_at: Any = None
    code: Any = None
    mood: Any = None
    required: str | None = ""


crud_things = CRUDBase[Thing, ThingBody, ThingBody](Thing)


@router.post("/thing", status_code=201)
async def write_thing(thing: ThingBody, db: SessionDep) -> int:
    return (await crud_things.create(db, thing)).id


@router.patch("/thing/{id}")
async def patch_thing(id: int, thing: ThingBody, db: SessionDep) -> int:
    return await crud_things.update(db, thing, id=id)


@router.post("/thing/without-a-value")
async def write_without_a_value(db: SessionDep) -> None:
    await db.execute(text("INSERT INTO thing (required) VALUES (NULL)"))


@router.get("/thing/{id}")
async def read_thing(id: int, db: ReaderDep) -> Any:
    return await crud_things.get(db, ["id"], id=id)


@router.get("/things")
async def read_things(db: ReaderDep, stars: int) -> Any:
    return await crud_things.get_multi(db, 0, 10, ["id"], stars=stars)


@router.get("/things/by-text/{id}")
async def read_by_text(id: str, db: ReaderDep) -> Any:
    return await crud_things.get(db, ["id"], id=id)


@router.get("/things/by-list")
async def read_by_list(db: ReaderDep) -> Any:
    return await crud_things.get_multi(db, 0, 10, ["id"], id=[1, 2])


@router.get("/things/by-text-in-a-session/{id}")
async def read_by_text_in_a_session(id: str, db: SessionDep) -> Any:
    return await crud_things.get(db, ["id"], id=id)
'''


@pytest.fixture(scope="module")
async def clone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clone]:
    async with open_clone(tmp_path_factory.mktemp("clone")) as clone:
        old = MODEL.replace('    NEW = "new"  # not yet in the database\n', "")
        clone.write({"app/models/thing.py": old, "app/api/v1/things.py": ROUTES})
        await clone.migrate()
        clone.write({"app/models/thing.py": MODEL})
        yield clone


@pytest.fixture(scope="module")
async def server(clone: Clone) -> RunningServer:
    return await clone.start()


def assert_refused(answer: httpx.Response, *place: str) -> None:
    assert answer.status_code == 422, answer.text
    [item] = answer.json()["detail"]
    assert item["loc"] == list(place)


class TestMistakeOfTheClient:
    @pytest.mark.parametrize(
        ("body", "place"),
        [
            ({"number": 2**31}, ["body", "number"]),
            ({"number": 2**70}, ["body", "number"]),
            ({"small": 2**15}, ["body", "small"]),
            ({"numbers": [1, 2**40]}, ["body", "numbers"]),
            ({"stars": 6}, ["body", "stars"]),
            ({"number": None}, ["body", "number"]),
            ({"required": None}, ["body", "required"]),
            ({"ratio": 1e300}, []),
            ({"number": 0}, []),  # a check of two columns
            ({"name": "too long"}, []),  # PostgreSQL does not say which column
            ({"name": "\x00"}, []),
            ({"price": "1000"}, []),
            ({"details": {"a": "\x00"}}, []),
        ],
    )
    async def test_write(
        self, server: RunningServer, client: httpx.AsyncClient, body: dict[str, Any], place: list[str]
    ) -> None:
        assert_refused(await client.post("/thing", json=body), *place)
        assert 'value refused path="/api/v1/thing"' in server.output
        made = await client.post("/thing", json={})
        assert made.status_code == 201, made.text
        assert_refused(await client.patch(f"/thing/{made.json()}", json=body), *place)

    async def test_number_that_json_has_not(self, client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "application/json"}
        assert_refused(await client.post("/thing", content=b'{"details": {"a": NaN}}', headers=headers))

    async def test_id_that_no_row_can_have(self, client: httpx.AsyncClient) -> None:
        assert_refused(await client.get(f"/thing/{2**31}"), "path", "id")
        assert_refused(await client.get("/things", params={"stars": 2**31}), "query", "stars")


class TestMistakeOfTheCode:
    @pytest.mark.parametrize(
        "body",
        [
            {"mood": "new"},
            {"mood": "none of them"},
            {"code": "no uuid"},
            {"code": 5},
            {"seen_at": "2026-01-01T00:00:00Z"},
            {"price": "secret"},
        ],
    )
    async def test_write(self, server: RunningServer, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        answer = await client.post("/thing", json=body)
        assert (answer.status_code, answer.json()["detail"]) == (500, "Internal server error")
        request_id = answer.headers["X-Request-ID"]
        assert re.search(
            rf'unhandled error method="POST" path="/api/v1/thing" request_id="{request_id}"', server.output
        )
        assert "Traceback" in server.output.partition(request_id)[2]

    async def test_column_without_a_value(self, server: RunningServer, client: httpx.AsyncClient) -> None:
        assert (await client.post("/thing/without-a-value")).status_code == 500
        assert "NotNullViolation" in server.output

    @pytest.mark.parametrize(
        "path", ["/things/by-text/secret", "/things/by-list", "/things/by-text-in-a-session/secret"]
    )
    async def test_filter_of_another_type(self, server: RunningServer, client: httpx.AsyncClient, path: str) -> None:
        answer = await client.get(path)
        assert answer.status_code == 500
        traceback = server.output.partition(answer.headers["X-Request-ID"])[2]
        assert "(id): " in traceback
        assert "secret" not in traceback.partition("INFO:")[0]

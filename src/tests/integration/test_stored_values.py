"""POST and PATCH answer what a GET would: what the database holds, not what was sent."""

from collections.abc import AsyncIterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Path
from pydantic import MISSING
from sqlalchemy import CHAR, REAL, DateTime, FetchedValue, MetaData, Numeric, String, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, column_property, mapped_column

from app.api.dependencies import ReaderDep, SessionDep
from app.core.database import Base, default_engines, transaction
from app.core.models import InputSchema, ReadSchema, RowId, TimestampModel
from app.crud.crud_base import CRUDBase
from tests.fixtures import Statements, open_client
from tests.integration.own_app import build


class OwnBase(Base):
    __abstract__ = True
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Plain(TimestampModel, OwnBase):
    """A table of types that are stored as they are given."""

    __tablename__ = "stored_plain"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(20))
    size: Mapped[Size]
    day: Mapped[date]
    at: Mapped[time]
    length: Mapped[timedelta]
    until: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    is_new: Mapped[bool] = mapped_column(default=True)


class Item(TimestampModel, OwnBase):
    """A table in which each value may be stored otherwise than it is sent."""

    __tablename__ = "stored_item"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    code: Mapped[str] = mapped_column(CHAR(5))
    weight: Mapped[float] = mapped_column(REAL)
    rounded: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True, precision=0))
    moment: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    data: Mapped[Any] = mapped_column(JSONB)
    slug: Mapped[str] = mapped_column(String(20), server_default=FetchedValue(), server_onupdate=FetchedValue())
    tax: Mapped[Decimal] = mapped_column(Numeric(4, 2), default=Decimal("0.1"))
    stock: Mapped[int] = mapped_column(server_default=text("7"), init=False)
    doubled: Mapped[Decimal] = column_property(price * 2)


TRIGGER = """
CREATE OR REPLACE FUNCTION stored_slug() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.slug := lower(NEW.slug); RETURN NEW; END $$;
CREATE TRIGGER slug BEFORE INSERT OR UPDATE ON stored_item FOR EACH ROW EXECUTE FUNCTION stored_slug();
"""


@pytest.fixture(autouse=True)
async def tables() -> AsyncIterator[None]:
    async with default_engines.write.begin() as connection:
        await connection.run_sync(OwnBase.metadata.create_all)
        for statement in TRIGGER.split(";\n"):
            if "CREATE" in statement:
                await connection.execute(text(statement))
    yield
    async with default_engines.write.begin() as connection:
        await connection.run_sync(OwnBase.metadata.drop_all)
        await connection.execute(text("DROP FUNCTION stored_slug"))


class ItemBody(InputSchema):
    price: Decimal
    code: str
    weight: float
    rounded: datetime
    moment: datetime
    data: dict[str, Any]
    slug: str


class ItemUpdate(InputSchema):
    price: Decimal | MISSING = MISSING
    code: str | MISSING = MISSING
    weight: float | MISSING = MISSING
    rounded: datetime | MISSING = MISSING
    moment: datetime | MISSING = MISSING
    data: dict[str, Any] | MISSING = MISSING
    slug: str | MISSING = MISSING


class ItemRead(ReadSchema, ItemBody):
    id: int
    tax: Decimal
    stock: int
    doubled: Decimal
    created_at: datetime
    updated_at: datetime | None


class PlainBody(InputSchema):
    name: str
    size: Size
    day: date
    at: time
    length: timedelta
    until: datetime


class PlainRead(ReadSchema, PlainBody):
    id: int
    is_new: bool
    created_at: datetime


router = APIRouter()
crud_items = CRUDBase[Item, ItemBody, ItemUpdate](Item)
crud_plain = CRUDBase[Plain, PlainBody, PlainBody](Plain)
Id = Annotated[RowId, Path()]


@router.post("/item", response_model=ItemRead, status_code=201)
async def write_item(item: ItemBody, db: SessionDep) -> Item:
    return await crud_items.create(db, item)


@router.get("/item/{id}", response_model=ItemRead)
async def read_item(id: Id, db: ReaderDep) -> dict[str, Any] | None:
    return await crud_items.get(db, ItemRead, id=id)


@router.patch("/item/{id}", response_model=ItemRead)
async def patch_item(id: Id, values: ItemUpdate, db: SessionDep) -> dict[str, Any] | None:
    return await crud_items.update_one(db, values, ItemRead, id=id)


@router.put("/item/{id}", response_model=ItemRead)
async def put_item(id: Id, values: ItemBody, db: SessionDep) -> Item:
    """Change a row that the session has loaded, and answer with it."""
    row = await db.get_one(Item, id)
    await crud_items.update(db, values.model_dump(), id=id)
    return row


@router.post("/plain", response_model=PlainRead, status_code=201)
async def write_plain(plain: PlainBody, db: SessionDep) -> Plain:
    return await crud_plain.create(db, plain)


@router.get("/plain/{id}", response_model=PlainRead)
async def read_plain(id: Id, db: ReaderDep) -> dict[str, Any] | None:
    return await crud_plain.get(db, PlainRead, id=id)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(build(router)) as client:
        yield client


ITEM = {
    "price": "9.9",
    "code": "ab",
    "weight": 0.1,
    "rounded": "2026-02-28T12:30:15.6Z",
    "moment": "2026-02-28T14:30:15.123456+02:00",
    "data": {"b": 1.0, "a": 2},
    "slug": "Emma",
}
STORED = {
    "price": "9.90",
    "code": "ab   ",
    "weight": 0.10000000149011612,
    "rounded": "2026-02-28T12:30:16Z",
    "moment": "2026-02-28T12:30:15.123456Z",
    "data": {"a": 2, "b": 1.0},
    "slug": "emma",
    "tax": "0.10",
    "stock": 7,
    "doubled": "19.80",
}
PLAIN = {
    "name": "a",
    "size": "small",
    "day": "2026-02-28",
    "at": "01:02:03.000004",
    "length": "P1DT2H",
    "until": "2026-02-28T12:30:15.123456Z",
}


def without_stamps(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in {"id", "created_at", "updated_at"}}


async def test_post(client: httpx.AsyncClient) -> None:
    response = await client.post("/item", json=ITEM)
    assert without_stamps(response.json()) == STORED
    assert (await client.get(f"/item/{response.json()['id']}")).text == response.text


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_patch(client: httpx.AsyncClient, method: str) -> None:
    other = {**ITEM, "price": "1", "code": "x", "weight": 1, "data": {}, "slug": "x"}
    row = (await client.post("/item", json=other)).json()
    response = await client.request(method, f"/item/{row['id']}", json=ITEM)
    assert without_stamps(response.json()) == STORED
    assert (await client.get(f"/item/{row['id']}")).text == response.text


async def test_types_that_are_stored_as_given_need_no_second_statement(
    client: httpx.AsyncClient, statements: Statements
) -> None:
    await client.post("/plain", json=PLAIN)  # the driver asks for the types of enums once
    statements.clear()
    response = await client.post("/plain", json=PLAIN)
    assert [sql.split()[0] for sql in statements.written] == ["BEGIN;", "INSERT", "COMMIT;"]
    assert without_stamps(response.json()) == {**PLAIN, "is_new": True}
    assert (await client.get(f"/plain/{response.json()['id']}")).text == response.text
    statements.clear()
    response = await client.post("/plain", json={**PLAIN, "until": "2026-02-28T12:30:15+01:00"})
    assert [sql.split()[0] for sql in statements.written] == ["BEGIN;", "INSERT", "COMMIT;"]
    assert response.json()["until"] == "2026-02-28T11:30:15Z"
    assert (await client.get(f"/plain/{response.json()['id']}")).text == response.text


async def test_loaded_row_that_another_transaction_deletes(client: httpx.AsyncClient) -> None:
    first, second = [(await client.post("/item", json=ITEM)).json()["id"] for _ in range(2)]
    async with transaction() as db:
        rows = [await db.get_one(Item, key) for key in (first, second)]
        async with transaction() as other:
            await crud_items.db_delete(other, id=first)
        assert await crud_items.update(db, {"price": Decimal("1.5")}, id=second) == 1
        assert str(rows[1].price) == "1.50"

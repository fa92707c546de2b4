"""Columns of every common type: every method reads the value that was written, over HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.extending.clone import Clone, open_clone
from tests.fixtures import RunningServer

MODEL = """
import enum
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, JSON, REAL, BigInteger, DateTime, Double, Enum, Integer, Numeric, SmallInteger, String
from sqlalchemy import Text as AnyText
from sqlalchemy.dialects.postgresql import CIDR, INET, JSONB, MACADDR
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Colour(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


class Sample(Base):
    __tablename__ = "sample"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    integer: Mapped[int]
    small: Mapped[int] = mapped_column(SmallInteger)
    big: Mapped[int] = mapped_column(BigInteger)
    flag: Mapped[bool]
    text: Mapped[str] = mapped_column(AnyText)
    short: Mapped[str] = mapped_column(String(40))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    exact: Mapped[Decimal] = mapped_column(Numeric)
    rounded: Mapped[float] = mapped_column(Numeric(10, 2, asdecimal=False))
    ratio: Mapped[float]
    real: Mapped[float] = mapped_column(REAL)
    double: Mapped[float] = mapped_column(Double)
    day: Mapped[date]
    clock: Mapped[time]
    seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    span: Mapped[timedelta]
    code: Mapped[UUID]
    colour: Mapped[Colour] = mapped_column(Enum(Colour))
    colour_text: Mapped[str] = mapped_column(String(40))
    tags: Mapped[list[str]] = mapped_column(ARRAY(String(10)))
    grid: Mapped[list[list[int]]] = mapped_column(ARRAY(Integer, dimensions=2))
    url: Mapped[str] = mapped_column(String(200))
    email: Mapped[str] = mapped_column(String(200))
    address: Mapped[Any] = mapped_column(INET)
    network: Mapped[Any] = mapped_column(CIDR)
    device: Mapped[Any] = mapped_column(MACADDR)
    nested: Mapped[dict[str, Any]] = mapped_column(JSONB)
    free: Mapped[Any] = mapped_column(JSON)
    extra: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)
    extra_b: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    renamed: Mapped[str] = mapped_column("other_name", String(10), default="a")
"""
ROUTES = """
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, EmailStr, HttpUrl, SecretStr

from app.api.dependencies import ReaderDep, SessionDep
from app.core.models import ReadSchema
from app.crud.crud_base import CRUDBase
from app.models.sample import Colour, Sample

router = APIRouter()


class Line(BaseModel):
    day: date
    price: Decimal
    link: HttpUrl


class SampleBody(BaseModel):
    integer: int = 1
    small: int = 2
    big: int = 2**40
    flag: bool = True
    text: str = "t"
    short: str = "s"
    price: Decimal = Decimal("9.9")
    exact: Decimal = Decimal("1.000000000000000000001")
    rounded: float = 1.005
    ratio: float = 0.1
    real: float = 0.5
    double: float = 1e300
    day: date = date(2026, 1, 2)
    clock: time = time(3, 4, 5)
    seen_at: datetime
    span: timedelta = timedelta(days=1, seconds=2)
    code: UUID = UUID(int=7)
    colour: Colour = Colour.DARK_BLUE
    colour_text: Colour = Colour.RED
    tags: list[str] = ["a", "b"]
    grid: list[list[int]] = [[1, 2], [3, 4]]
    url: HttpUrl = HttpUrl("https://example.com/a")
    email: EmailStr = "a@example.com"
    address: IPv4Address = IPv4Address("192.0.2.1")
    network: IPv4Network = IPv4Network("192.0.2.0/24")
    device: str = "08:00:2b:01:02:03"
    nested: Line
    free: Any = [1, None]
    extra: dict[str, Any] | None = None
    extra_b: dict[str, Any] | None = None
    renamed: str = "b"


class SampleChange(SampleBody):
    seen_at: datetime = datetime(2026, 1, 1)
    nested: Line | None = None


class SampleRead(ReadSchema):
    id: int
    integer: int
    small: int
    big: int
    flag: bool
    text: str
    short: str
    price: Decimal
    exact: Decimal
    rounded: float
    ratio: float
    real: float
    double: float
    day: date
    clock: time
    seen_at: datetime
    span: timedelta
    code: UUID
    colour: Colour
    colour_text: str
    tags: list[str]
    grid: list[list[int]]
    url: str
    email: str
    address: IPv4Address
    network: IPv4Network
    device: str
    nested: dict[str, Any]
    free: Any
    extra: dict[str, Any] | None
    extra_b: dict[str, Any] | None
    renamed: str


class SecretBody(BaseModel):
    short: SecretStr | None = None
    free: dict[str, SecretStr] | None = None


crud_samples = CRUDBase[Sample, SampleBody, SampleChange](Sample)


@router.post("/sample", response_model=SampleRead, status_code=201)
async def write_sample(body: SampleBody, db: SessionDep) -> Sample:
    return await crud_samples.create(db, body)


@router.patch("/sample/{id}", response_model=SampleRead)
async def patch_sample(id: int, body: SampleChange, db: SessionDep) -> Any:
    return await crud_samples.update_one(db, body, SampleRead, id=id)


@router.put("/sample/{id}", response_model=SampleRead)
async def put_sample(id: int, body: SampleChange, db: SessionDep) -> Any:
    assert await crud_samples.update(db, body, id=id) == 1
    return await crud_samples.get(db, SampleRead, id=id)


@router.patch("/sample/{id}/secret")
async def patch_secret(id: int, body: SecretBody, db: SessionDep) -> int:
    return await crud_samples.update(db, body.model_dump(exclude_unset=True), id=id)


@router.get("/sample/{id}/reader", response_model=SampleRead)
async def read_by_reader(id: int, db: ReaderDep) -> Any:
    return await crud_samples.get(db, SampleRead, id=id)


@router.get("/sample/{id}/session", response_model=SampleRead)
async def read_by_session(id: int, db: SessionDep) -> Any:
    return await crud_samples.get(db, SampleRead, id=id)


@router.get("/sample/{id}/loaded", response_model=SampleRead)
async def read_loaded(id: int, db: SessionDep) -> Any:
    return await db.get_one(Sample, id)


@router.get("/sample/{id}/list")
async def read_list(id: int, db: ReaderDep) -> list[SampleRead]:
    return (await crud_samples.get_multi(db, 0, 10, SampleRead, id=id))["data"]


@router.get("/sample/{id}/methods")
async def count_by_each_column(id: int, db: ReaderDep, session: SessionDep) -> dict[str, list[Any]]:
    row = await session.get_one(Sample, id)
    found = {}
    for name in SampleRead.model_fields.keys() - {"id", "free", "nested"}:
        filters = {name: getattr(row, name), "id": id}
        found[name] = [
            await crud_samples.count(db, **filters),
            await crud_samples.exists(db, **filters),
            await crud_samples.count(session, **filters),
            await crud_samples.update(session, {"integer": 1}, **filters),
        ]
    return found


@router.delete("/sample/{id}")
async def erase_sample(id: int, db: SessionDep, name: str) -> int:
    row = await db.get_one(Sample, id)
    return await crud_samples.delete(db, **{name: getattr(row, name)}, id=id)
"""
BODY = {
    "seen_at": "2026-01-02T03:04:05+02:00",
    "nested": {"day": "2026-01-02", "price": "1.10", "link": "https://example.com/"},
}


@pytest.fixture(scope="module")
async def server(clone: Clone) -> RunningServer:
    return await clone.start()


@pytest.fixture(scope="module")
async def clone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clone]:
    async with open_clone(tmp_path_factory.mktemp("clone")) as clone:
        clone.write({"app/models/sample.py": MODEL, "app/api/v1/samples.py": ROUTES})
        await clone.migrate()
        yield clone


async def write(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post("/sample", json={**BODY, **changes})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


class TestEveryType:
    async def test_is_stored_as_given(self, client: httpx.AsyncClient) -> None:
        made = await write(client)
        assert made.pop("id")
        assert made == {
            "integer": 1, "small": 2, "big": 2**40, "flag": True, "text": "t", "short": "s", "price": "9.90",
            "exact": "1.000000000000000000001", "rounded": 1.0, "ratio": 0.1, "real": 0.5, "double": 1e300,
            "day": "2026-01-02", "clock": "03:04:05", "seen_at": "2026-01-02T01:04:05Z", "span": "P1DT2S",
            "code": "00000000-0000-0000-0000-000000000007", "colour": "dark blue", "colour_text": "red",
            "tags": ["a", "b"], "grid": [[1, 2], [3, 4]], "url": "https://example.com/a", "email": "a@example.com",
            "address": "192.0.2.1", "network": "192.0.2.0/24", "device": "08:00:2b:01:02:03",
            "nested": BODY["nested"], "free": [1, None], "extra": None, "extra_b": None, "renamed": "b",
        }  # fmt: skip

    async def test_is_read_the_same_in_every_way(self, client: httpx.AsyncClient) -> None:
        made = await write(client, extra={"a": 1}, extra_b={"b": [1]})
        for way in ("reader", "session", "loaded"):
            assert (await client.get(f"/sample/{made['id']}/{way}")).json() == made
        assert (await client.get(f"/sample/{made['id']}/list")).json() == [made]

    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    async def test_is_changed(self, client: httpx.AsyncClient, method: str) -> None:
        made = await write(client)
        changes = {
            "price": "1.5", "clock": "23:00:00", "colour": "red", "colour_text": "dark blue", "tags": [],
            "free": {"a": []}, "url": "https://example.com/b", "address": "192.0.2.9", "span": "PT1S",
            "seen_at": "2026-05-05T00:00:00Z", "extra": {"c": 1},
            "nested": {"day": "2027-01-01", "price": "3", "link": "https://example.com/c"},
        }  # fmt: skip
        changed = await client.request(method, f"/sample/{made['id']}", json=changes)
        assert changed.json() == {**made, **changes, "price": "1.50"}

    async def test_is_found(self, client: httpx.AsyncClient) -> None:
        made = await write(client, extra_b={"b": [1]})
        found = (await client.get(f"/sample/{made['id']}/methods")).json()
        assert found == {name: [1, True, 1, 1] for name in made.keys() - {"id", "free", "nested"}}

    @pytest.mark.parametrize("name", ["price", "colour", "seen_at", "extra", "address", "tags"])
    async def test_is_deleted_by(self, client: httpx.AsyncClient, name: str) -> None:
        made = await write(client)
        assert (await client.request("DELETE", f"/sample/{made['id']}", params={"name": name})).json() == 1


class TestRefused:
    async def test_time_without_an_offset(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/sample", json={**BODY, "seen_at": "2026-01-02T03:04:05"})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "seen_at"]
        made = await write(client)
        changed = await client.patch(f"/sample/{made['id']}", json={"seen_at": "2026-01-02T03:04:05"})
        assert changed.status_code == 422

    @pytest.mark.parametrize("body", [{"short": "open sesame"}, {"free": {"a": "open sesame"}}])
    async def test_secret(self, server: RunningServer, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        made = await write(client)
        assert (await client.patch(f"/sample/{made['id']}/secret", json=body)).status_code == 500
        assert "hash it, or give its get_secret_value()" in server.output
        assert "open sesame" not in server.output


SHAPES = """
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.crud.crud_base import CRUDBase


class Animal(Base):
    __tablename__ = "animal"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    kind: Mapped[str] = mapped_column(String(10), init=False)


class Cat(Animal):
    __mapper_args__ = {"polymorphic_identity": "cat"}


class Dog(Animal):
    __tablename__ = "dog"
    __mapper_args__ = {"polymorphic_identity": "dog"}

    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True, init=False)


class Page(Base):
    __tablename__ = "page"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    version: Mapped[int] = mapped_column(init=False)
    __mapper_args__ = {"version_id_col": version}


CRUDBase(Animal)
for model in (Cat, Dog, Page):
    try:
        CRUDBase(model)
    except TypeError as error:
        print(error)
"""


async def test_shapes_that_crud_would_write_wrongly(clone: Clone) -> None:
    (clone.src / "shapes.py").write_text(SHAPES)
    status, printed = await clone.run("shapes")
    assert status == 0, printed
    assert [line.partition(" inherits")[0] for line in printed.splitlines()] == ["Cat", "Dog", "Page"]

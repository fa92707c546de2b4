"""A `Reader` returns the same values as SQLAlchemy's own execution, for every type of its PostgreSQL dialect."""

import enum
import inspect
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, MetaData, Table, bindparam, insert, select, types
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import settings as app_settings
from app.core.database import BUILT_ONCE, Engines, default_engines, transaction
from app.core.database.reader import TYPES, prepare


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Upper(types.TypeDecorator[str]):
    """A user-defined type with conversions in both directions."""

    impl: Any = types.String
    cache_ok: bool | None = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value and value.upper()

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return value and value.lower()


AWARE = datetime(2026, 2, 28, 12, 30, 15, 123456, tzinfo=UTC)
NOON = AWARE.replace(tzinfo=None)
DAYS = Range(date(2026, 1, 1), date(2026, 2, 1))
UID = UUID("12345678-1234-5678-1234-567812345678")
TEXTS = ["", "a", "ß\n'\"\\%:x", "0"]
P = postgresql
# Values for each type. `None` is added, except for JSONPATH, which sends a list in its place.
SAMPLES: list[tuple[Any, list[Any]]] = [
    (types.Boolean(), [True, False]),
    (types.SmallInteger(), [0, -(2**15), 2**15 - 1]),
    (types.Integer(), [0, -(2**31), 2**31 - 1]),
    (types.BigInteger(), [0, -(2**63), 2**63 - 1]),
    (types.String(20), TEXTS),
    (types.Text(), TEXTS),
    (types.Unicode(20), TEXTS),
    (types.UnicodeText(), TEXTS),
    (types.Date(), [date.min, date(2026, 2, 28), date.max]),
    (types.DateTime(), [NOON, NOON.replace(year=1), NOON.replace(year=9999)]),
    (types.DateTime(timezone=True), [AWARE]),
    (types.Time(), [time(0), time(23, 59, 59, 999999)]),
    (types.Time(timezone=True), [time(1, 2, tzinfo=UTC)]),
    (types.Uuid(), [UID]),
    (types.Uuid(as_uuid=False), [str(UID)]),
    (types.LargeBinary(), [b"", b"\x00\xff"]),
    (types.Numeric(10, 2), [Decimal("0.00"), Decimal("-12345678.90")]),
    (types.Numeric(10, 2, asdecimal=False), [0.5, -2.25]),
    (types.Float(), [0.0, -1.5, 1e300]),
    (types.Float(asdecimal=True), [Decimal("1.5")]),
    (types.Double(), [0.0, 1e-300]),
    (types.Interval(), [timedelta(0), timedelta(days=-3, microseconds=5)]),
    (types.Enum(Colour, name="colour"), [*Colour]),
    (types.Enum("x", "y", name="letters", native_enum=False), ["x"]),
    (types.JSON(), [{"a": [1, None, "ü"]}, [], 0, "x", True]),
    (types.PickleType(), [{"a": (1, 2)}]),
    (types.ARRAY(types.Integer), [[], [1, None, 3]]),
    (Upper(10), ["abc"]),
    (P.ARRAY(types.Text), [["a", None]]),
    (P.ARRAY(types.Numeric, dimensions=2), [[[Decimal("1.1")], [Decimal("2.2")]]]),
    (P.BIGINT(), [2**63 - 1]),
    (P.BIT(3), [asyncpg.BitString(cast(Any, "101"))]),
    (P.BOOLEAN(), [True]),
    (P.BYTEA(), [b"\x00"]),
    (P.CHAR(3), ["abc"]),
    (P.CIDR(), ["10.0.0.0/8"]),
    (P.CITEXT(), ["AbC"]),
    (P.DATE(), [date(2026, 1, 1)]),
    (P.DATEMULTIRANGE(), [[DAYS]]),
    (P.DATERANGE(), [DAYS]),
    (P.DOMAIN("positive", types.Integer, check="VALUE > 0"), [5]),
    (P.DOUBLE_PRECISION(), [1.5]),
    (P.ENUM("one", "two", name="counts"), ["one"]),
    (P.FLOAT(), [1.5]),
    (P.HSTORE(), [{"a": "b", "c": None}]),
    (P.INET(), ["192.0.2.1"]),
    (P.INT4MULTIRANGE(), [[Range(1, 3), Range(5, 9)]]),
    (P.INT4RANGE(), [Range(1, 3), Range(empty=True)]),
    (P.INT8MULTIRANGE(), [[Range(1, 3)]]),
    (P.INT8RANGE(), [Range(1, None)]),
    (P.INTEGER(), [1]),
    (P.INTERVAL(), [timedelta(hours=1)]),
    (P.JSON(), [{"a": 1}]),
    (P.JSONB(), [{"a": [1]}, None]),
    (P.JSONPATH(), ["$.a"]),
    (P.MACADDR(), ["08:00:2b:01:02:03"]),
    (P.MACADDR8(), ["08:00:2b:01:02:03:04:05"]),
    (P.MONEY(), ["$1.50"]),
    (P.NUMERIC(10, 2), [Decimal("1.10")]),
    (P.NUMMULTIRANGE(), [[Range(Decimal(1), Decimal(2))]]),
    (P.NUMRANGE(), [Range(Decimal("1.5"), Decimal("2.5"))]),
    (P.OID(), [1]),
    (P.REAL(), [1.5]),
    (P.REGCLASS(), ["pg_class"]),
    (P.REGCONFIG(), ["english"]),
    (P.SMALLINT(), [1]),
    (P.TEXT(), ["a"]),
    (P.TIME(precision=3), [time(1, 2, 3)]),
    (P.TIMESTAMP(timezone=True), [AWARE]),
    (P.TSMULTIRANGE(), [[Range(NOON, NOON + timedelta(1))]]),
    (P.TSQUERY(), ["'a' & 'b'"]),
    (P.TSRANGE(), [Range(NOON, NOON + timedelta(1))]),
    (P.TSTZMULTIRANGE(), [[Range(AWARE, AWARE + timedelta(1))]]),
    (P.TSTZRANGE(), [Range(AWARE, AWARE + timedelta(1))]),
    (P.TSVECTOR(), ["'a' 'b'"]),
    (P.UUID(), [UID]),
    (P.VARCHAR(10), ["a"]),
]
numbers = count()  # a unique name for each table, because plans are cached by their text
# SQLAlchemy has no operators for the last two.
WITHOUT_EQUALITY = (types.JSON, P.JSON, P.JSONPATH, types.PickleType, P.DOMAIN, P.MONEY)


def name_of(sample: tuple[Any, list[Any]]) -> str:
    return repr(sample[0])


@pytest.fixture(scope="module")
async def extensions() -> None:
    async with transaction() as db:
        for name in ("citext", "hstore"):
            await (await db.connection()).exec_driver_sql(f"CREATE EXTENSION IF NOT EXISTS {name}")


def test_every_type_of_the_dialect_has_a_sample() -> None:
    known = {type(kind) for kind, _ in SAMPLES}
    exported: set[Any] = {kind for name in P.__all__ if inspect.isclass(kind := getattr(P, name))}
    exported = {kind for kind in exported if issubclass(kind, types.TypeEngine)} - {P.NamedType}  # a base class
    assert exported - known == set()
    assert TYPES - known == {types.NullType}


@pytest.fixture
async def table(request: pytest.FixtureRequest, extensions: None) -> AsyncIterator[Table]:
    """A table with one column of the type and one row for each value."""
    kind, values = request.param
    table = Table(
        f"sample_{next(numbers)}",
        MetaData(),
        Column("id", types.Integer, primary_key=True),
        Column("value", copy_of(kind), nullable=True),
    )
    async with default_engines.write.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
        for number, value in enumerate(values if isinstance(kind, P.JSONPATH) else [*values, None]):
            await connection.execute(insert(table).values(id=number, value=value))
    yield table
    async with default_engines.write.begin() as connection:
        await connection.run_sync(table.metadata.drop_all)


def copy_of(kind: Any) -> Any:
    return kind.copy() if hasattr(kind, "copy") else kind


def same(first: Any, second: Any) -> bool:
    return bool(first == second) and type(first) is type(second)


async def check(db: AsyncSession, statement: Any, parameters: dict[str, Any]) -> list[Any]:
    expected = (await db.execute(statement, parameters)).all()
    found = await default_engines.reader.fetch_all(statement, parameters)
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert all(same(one, two) for one, two in zip(row, other, strict=True)), (row, other)
    return [*expected]


@pytest.mark.parametrize("table", SAMPLES, ids=name_of, indirect=True)
async def test_rows_and_filters(table: Table) -> None:
    column = table.c.value
    all_rows = select(table.c.id, column).order_by(table.c.id).execution_options(**BUILT_ONCE)
    is_converted = isinstance(column.type, types.Uuid) and not column.type.as_uuid
    is_prepared = prepare(all_rows, default_engines.read.dialect) is not None
    assert is_prepared == (type(column.type) in TYPES and not is_converted)
    async with transaction() as db:
        rows = await check(db, all_rows, {})
        if not isinstance(column.type, WITHOUT_EQUALITY):
            matching = select(table.c.id).where(column == bindparam("value", type_=column.type))
            matching = matching.order_by(table.c.id).execution_options(**BUILT_ONCE)
            for number, value in rows:
                if value is not None:
                    assert number in [one for (one,) in await check(db, matching, {"value": value})]


@pytest.mark.parametrize("table", [(types.Integer(), [1])], indirect=True)
async def test_switched_off(table: Table) -> None:
    engines = Engines(app_settings.model_copy(update={"POSTGRES_PREPARED_READS": False}))
    statement = select(table.c.id).order_by(table.c.id).execution_options(**BUILT_ONCE)
    try:
        rows = await engines.reader.fetch_all(statement, {})
        assert type(rows[0]).__name__ == "Row"
        assert [tuple(row) for row in rows] == [
            tuple(row) for row in await default_engines.reader.fetch_all(statement, {})
        ]
    finally:
        await engines.close()


STRATEGIES: dict[Any, Any] = {
    types.SmallInteger: st.integers(-(2**15), 2**15 - 1),
    types.Integer: st.integers(-(2**31), 2**31 - 1),
    types.BigInteger: st.integers(-(2**63), 2**63 - 1),
    types.Text: st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=50),
    types.Date: st.dates(),
    types.DateTime: st.datetimes(),
    types.Time: st.times(),
    types.Uuid: st.uuids(),
}
ECHO = {
    kind: select(bindparam("value", type_=kind()).label("value")).execution_options(**BUILT_ONCE) for kind in STRATEGIES
}


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: str(kind.__name__))
async def test_any_value(kind: Any) -> None:
    """A random value survives the round trip as a parameter."""

    @settings(max_examples=40, deadline=None, database=None)
    @given(value=st.none() | STRATEGIES[kind])
    def draw(value: Any) -> None:
        drawn.append(value)

    drawn: list[Any] = []
    draw()
    async with transaction() as db:
        for value in drawn:
            assert prepare(ECHO[kind], default_engines.read.dialect) is not None
            assert [tuple(row) for row in await check(db, ECHO[kind], {"value": value})] == [(value,)]

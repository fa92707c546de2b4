"""The queries that every resource has.

Reading methods take a session or a `Reader`. Writing methods flush and never commit. A write that violates a constraint
raises an error of `app.core.exceptions`, and the transaction cannot continue. To continue after such an error, write
inside `async with db.begin_nested():`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Generic, cast

import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy import ClauseElement, CursorResult, Executable, delete, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypeVar

from app.core.database import Base, Database, fetch_all
from app.core.exceptions import InvalidValueError, NotFoundError, UnknownFilterError
from app.core.models import now
from app.crud import statements as sql
from app.crud.values import values_of

ModelT = TypeVar("ModelT", bound=Base)
CreateT = TypeVar("CreateT", bound=BaseModel)
UpdateT = TypeVar("UpdateT", bound=BaseModel)
UpdateInternalT = TypeVar("UpdateInternalT", bound=BaseModel, default=UpdateT)
DeleteT = TypeVar("DeleteT", bound=BaseModel, default=BaseModel)

Schema = type[BaseModel] | Sequence[str]
_STORED_AS_GIVEN = {
    sa.BigInteger, sa.Boolean, sa.Date, sa.DateTime, sa.Enum, sa.Integer, sa.Interval, sa.LargeBinary,
    sa.SmallInteger, sa.String, sa.Text, sa.Time, sa.Unicode, sa.UnicodeText, sa.Uuid,
}  # fmt: skip


async def execute_write(db: AsyncSession, statement: Executable, parameters: Mapping[str, Any] | None = None) -> int:
    """Run an UPDATE or DELETE; return the number of its rows."""
    return cast("CursorResult[Any]", await db.execute(statement, parameters)).rowcount


@lru_cache
def _inexact_columns(model: type[Base]) -> list[str]:
    """Return the attributes that may be stored otherwise than given: rounded, padded, computed or set by a trigger."""
    return [
        name
        for name, column in sql.columns_of(model).items()
        if not isinstance(column, sa.Column)
        or type(column.server_default) is sa.FetchedValue
        or type(column.type) not in _STORED_AS_GIVEN
    ]


class CRUDBase(Generic[ModelT, CreateT, UpdateT, UpdateInternalT, DeleteT]):
    """Queries on one model; filters are `column=value`, all of which must hold (`None` is SQL's NULL).

    The last two parameters are optional. `UpdateInternalT` is `UpdateT` by default. No method takes a `DeleteT`.
    """

    def __init__(self, model: type[ModelT]) -> None:
        mapper = sa.inspect(model)
        if mapper.inherits is not None or mapper.version_id_col is not None:
            raise TypeError(f"{model.__name__} inherits a mapping or has versions: write it through a session")
        self.model = model

    async def get(self, db: Database, schema_to_select: Schema | None = None, **filters: Any) -> dict[str, Any] | None:
        """Return the first row that matches, by primary key, or None."""
        columns = sql.columns_to_select(self.model, schema_to_select)
        shape, parameters = sql.parse_filters(self.model, filters)
        rows = await fetch_all(db, sql.select_one(self.model, columns, shape), parameters)
        if models := sql.looked_up_models(shape):
            *_, is_row, all_found = rows[0]
            if not all_found:
                raise NotFoundError(f"{models} not found")
            rows = rows if is_row else []
        return dict(zip(columns, rows[0], strict=False)) if rows else None

    async def get_multi(
        self,
        db: Database,
        offset: int = 0,
        limit: int = 100,
        schema_to_select: Schema | None = None,
        *,
        after: Any = None,
        **filters: Any,
    ) -> dict[str, Any]:
        """Return one page of the rows that match, in the order of the primary key.

        `data` holds at most `limit` rows: those after `offset` others, or those whose key follows `after`, at the same
        cost anywhere in the list. With it come `total_count` of all rows that match, `has_more`, `page` (None with
        `after`) and `items_per_page`.
        """
        if offset < 0 or limit < 1:
            raise InvalidValueError(f"offset must be 0 or more and limit 1 or more, not {offset} and {limit}")
        if after is not None and (offset or len(sql.primary_key(self.model)) > 1):
            raise ValueError("`after` goes with a primary key of one column, and not with an offset")
        columns = sql.columns_to_select(self.model, schema_to_select)
        shape, parameters = sql.parse_filters(self.model, filters)
        if after is None:
            parameters |= {"limit": limit, "offset": offset}
        else:
            parameters |= {"limit": limit + 1, "after": after}  # one row more shows whether there are more
        rows = await fetch_all(db, sql.select_page(self.model, columns, shape, after=after is not None), parameters)
        *_, is_row, total = rows[0]
        if total is None:
            raise NotFoundError(f"{sql.looked_up_models(shape)} not found")
        data = [dict(zip(columns, row, strict=False)) for row in rows[:limit]] if is_row else []
        return {
            "data": data,
            "total_count": total,
            "has_more": len(rows) > limit if after is not None else offset + len(data) < total,
            "page": None if after is not None else offset // limit + 1,
            "items_per_page": limit,
        }

    async def exists(self, db: Database, **filters: Any) -> bool:
        shape, parameters = sql.parse_filters(self.model, filters)
        rows = await fetch_all(db, sql.select_exists(self.model, shape), parameters)
        return bool(rows[0][0])

    async def count(self, db: Database, **filters: Any) -> int:
        shape, parameters = sql.parse_filters(self.model, filters)
        rows = await fetch_all(db, sql.select_count(self.model, shape), parameters)
        return int(rows[0][0])

    async def create(self, db: AsyncSession, object: CreateT, **values: Any) -> ModelT:
        """Insert a row and return it as the model, as the database holds it: rounded to the scale of a price, say.

        `values` are columns that the schema does not have, such as the owner of the row; a `Lookup` is looked up first.
        """
        for name, value in values.items():
            if isinstance(value, sql.Lookup):
                shape, parameters = sql.parse_filters(value.model, value.filters)
                found = await db.execute(sql.select_lookup(value.model, value.column, shape, lock=True), parameters)
                if (row := found.one_or_none()) is None:
                    raise NotFoundError(f"{value.model.__name__} not found")
                values[name] = row[0]
        row = self.model(**values_of(self.model, object), **values)
        for name, value in [*sa.inspect(row).dict.items()]:
            if isinstance(value, datetime) and value.utcoffset():  # the database returns moments in UTC
                setattr(row, name, value.astimezone(UTC))
        db.add(row)
        await db.flush()
        if names := _inexact_columns(self.model):
            await db.refresh(row, names)
        return row

    async def update(
        self, db: AsyncSession, object: UpdateT | UpdateInternalT | Mapping[str, Any], **filters: Any
    ) -> int:
        """Set what `object` sets, and `updated_at`, in all rows that match; return their number."""
        return (await self._update(db, object, filters)).rowcount

    async def update_one(
        self,
        db: AsyncSession,
        object: UpdateT | UpdateInternalT | Mapping[str, Any],
        schema_to_select: Schema | None = None,
        **filters: Any,
    ) -> dict[str, Any] | None:
        """Update like `update`, with filters that match one row at most; return the new row, or None."""
        columns = sql.columns_to_select(self.model, schema_to_select)
        row = (await self._update(db, object, filters, columns)).one_or_none()
        return None if row is None else dict(zip(columns, row, strict=True))

    async def delete(self, db: AsyncSession, db_row: ModelT | Mapping[str, Any] | None = None, **filters: Any) -> int:
        """Mark the rows that match as deleted, or delete them if the model has no `is_deleted`; return their number.

        `db_row` is a row that was read before, in place of filters or in addition to them. A row that is marked
        already is not marked again.
        """
        if db_row is not None:
            filters |= {
                name: db_row[name] if isinstance(db_row, Mapping) else getattr(db_row, name)
                for name in sql.key_names(self.model)
            }
        attributes = sql.columns_of(self.model)
        if "is_deleted" not in attributes:
            return await self.db_delete(db, **filters)
        where, parameters = self._where(filters)
        marks = {name: value for name, value in (("is_deleted", True), ("deleted_at", now())) if name in attributes}
        statement = update(self.model).where(*where, ~attributes["is_deleted"]).values(marks)
        return await execute_write(db, statement, parameters)

    async def db_delete(self, db: AsyncSession, **filters: Any) -> int:
        """Delete all rows that match from the table; return their number."""
        where, parameters = self._where(filters)
        return await execute_write(db, delete(self.model).where(*where), parameters)

    def _where(self, filters: Mapping[str, Any]) -> tuple[list[sa.ColumnElement[bool]], dict[str, Any]]:
        shape, parameters = self._parse_filters(filters)
        return sql.where_clauses(self.model, shape, lock=True), parameters

    def _parse_filters(self, filters: Mapping[str, Any]) -> tuple[sql.FilterShape, dict[str, Any]]:
        if not filters:
            raise UnknownFilterError(f"a write without a filter would change every row of {self.model.__name__}")
        return sql.parse_filters(self.model, filters)

    async def _update(
        self,
        db: AsyncSession,
        object: BaseModel | Mapping[str, Any],
        filters: Mapping[str, Any],
        returned: sql.Columns = (),
    ) -> CursorResult[Any]:
        attributes = sql.columns_of(self.model)
        values = values_of(self.model, object, exclude_unset=True)
        if unknown := values.keys() - attributes.keys():
            raise UnknownFilterError(f"{self.model.__name__} has no column {', '.join(map(repr, sorted(unknown)))}")
        if "updated_at" in attributes:
            values = {"updated_at": now(), **values}
        shape, parameters = self._parse_filters(filters)
        plain = {name: value for name, value in values.items() if not isinstance(value, ClauseElement)}
        statement = sql.update_rows(self.model, tuple(plain), shape, returned)
        if len(plain) < len(values):  # else not: a new statement object would be analysed again
            statement = statement.values({attributes[name]: values[name] for name in values.keys() - plain.keys()})
        loaded = [row for row in db.identity_map.values() if isinstance(row, self.model)]
        if loaded:
            await db.flush()  # write the pending changes of these rows first
        result = await db.execute(statement, parameters | {f"set_{name}": value for name, value in plain.items()})
        for row in loaded:
            with contextlib.suppress(InvalidRequestError):  # another transaction has deleted the row
                await db.refresh(row)
        return cast("CursorResult[Any]", result)

"""The queries that every resource has.

Reading methods take a session or a `Reader`. Writing methods flush and never commit. A write that violates a constraint
raises one of the errors of `app.core.exceptions` and ends the transaction; to continue in it, write inside
`async with db.begin_nested():`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, cast

from pydantic import BaseModel
from sqlalchemy import ClauseElement, ColumnElement, CursorResult, Update, delete, update
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypeVar

from app.core.database import Base, Database, fetch_all
from app.core.exceptions import NotFoundError, UnknownFilterError
from app.core.models import now
from app.crud.statements import (
    Columns,
    columns_of,
    columns_to_select,
    key_names,
    lookups,
    parse_filters,
    primary_key,
    select_count,
    select_exists,
    select_locked_key,
    select_one,
    select_page,
    update_rows,
    where_clauses,
)

ModelT = TypeVar("ModelT", bound=Base)
CreateT = TypeVar("CreateT", bound=BaseModel)
UpdateT = TypeVar("UpdateT", bound=BaseModel)
UpdateInternalT = TypeVar("UpdateInternalT", bound=BaseModel, default=UpdateT)
DeleteT = TypeVar("DeleteT", bound=BaseModel, default=BaseModel)

Schema = type[BaseModel] | Sequence[str]


def _not_found(models: Sequence[str]) -> NotFoundError:
    return NotFoundError(f"{' or '.join(models)} not found")


class CRUDBase(Generic[ModelT, CreateT, UpdateT, UpdateInternalT, DeleteT]):
    """Queries on one model; filters are `column=value`, all of which must hold (`None` is SQL's NULL).

    Name the last two parameters only where they differ: `UpdateInternalT` is `UpdateT` by default, and `DeleteT` is
    part of the interface, but no method takes one.
    """

    def __init__(self, model: type[ModelT]) -> None:
        self.model = model

    async def get(self, db: Database, schema_to_select: Schema | None = None, **filters: Any) -> dict[str, Any] | None:
        """Return the first row that matches, by primary key, or None."""
        columns = columns_to_select(self.model, schema_to_select)
        shape, parameters = parse_filters(self.model, filters)
        rows = await fetch_all(db, select_one(self.model, columns, shape), parameters)
        if models := lookups(shape):
            *_, is_there, all_found = rows[0]
            if not all_found:
                raise _not_found(models)
            rows = rows if is_there else []
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

        `data` holds at most `limit` rows: those after `offset` others or, at the same cost anywhere in the list, those
        whose key follows `after`. With it come `total_count` of all rows that match, `has_more`, `page` (None with
        `after`) and `items_per_page`.
        """
        if offset < 0 or limit < 1:
            raise ValueError(f"offset must be 0 or more and limit 1 or more, not {offset} and {limit}")
        if after is not None and (offset or len(primary_key(self.model)) > 1):
            raise ValueError("`after` goes with a primary key of one column, and not with an offset")
        columns = columns_to_select(self.model, schema_to_select)
        shape, parameters = parse_filters(self.model, filters)
        if after is None:
            parameters |= {"limit": limit, "offset": offset}
        else:
            parameters |= {"limit": limit + 1, "after": after}  # one row more shows whether there are more
        rows = await fetch_all(db, select_page(self.model, columns, shape, after=after is not None), parameters)
        *_, is_row, total = rows[0]
        if total is None:
            raise _not_found(lookups(shape))
        data = [dict(zip(columns, row, strict=False)) for row in rows[:limit]] if is_row else []
        return {
            "data": data,
            "total_count": total,
            "has_more": len(rows) > limit if after is not None else offset + len(data) < total,
            "page": None if after is not None else offset // limit + 1,
            "items_per_page": limit,
        }

    async def exists(self, db: Database, **filters: Any) -> bool:
        shape, parameters = parse_filters(self.model, filters)
        rows = await fetch_all(db, select_exists(self.model, shape), parameters)
        return bool(rows[0][0])

    async def count(self, db: Database, **filters: Any) -> int:
        shape, parameters = parse_filters(self.model, filters)
        rows = await fetch_all(db, select_count(self.model, shape), parameters)
        return int(rows[0][0])

    async def lock_key(self, db: AsyncSession, **filters: Any) -> Any:
        """Return the primary key of the one row that matches, or None, and lock it until the commit.

        Meanwhile no other transaction deletes the row or changes a unique column of it, such as a name.
        """
        shape, parameters = parse_filters(self.model, filters)
        return (await db.execute(select_locked_key(self.model, shape), parameters)).scalar_one_or_none()

    async def create(self, db: AsyncSession, object: CreateT) -> ModelT:
        """Insert a row and return it as the model, with what the database filled in."""
        row = self.model(**object.model_dump())
        db.add(row)
        await db.flush()
        return row

    async def update(
        self, db: AsyncSession, object: UpdateT | UpdateInternalT | Mapping[str, Any], **filters: Any
    ) -> int:
        """Set what `object` sets, and `updated_at`, in all rows that match; return their number."""
        statement, parameters = self._update_statement(db, object, filters)
        return cast("CursorResult[Any]", await db.execute(statement, parameters)).rowcount

    async def update_one(
        self,
        db: AsyncSession,
        object: UpdateT | UpdateInternalT | Mapping[str, Any],
        schema_to_select: Schema | None = None,
        **filters: Any,
    ) -> dict[str, Any] | None:
        """Update like `update`, with filters that match one row at most; return the new row, or None."""
        columns = columns_to_select(self.model, schema_to_select)
        statement, parameters = self._update_statement(db, object, filters, columns)
        row = (await db.execute(statement, parameters)).one_or_none()
        return None if row is None else dict(zip(columns, row, strict=True))

    async def delete(self, db: AsyncSession, db_row: ModelT | Mapping[str, Any] | None = None, **filters: Any) -> int:
        """Mark the rows that match as deleted, or delete them if the model has no `is_deleted`; return their number.

        `db_row` is a row that was read before, in place of filters or in addition to them. A row that is marked
        already is not marked again.
        """
        attributes = columns_of(self.model)
        if db_row is not None:
            filters = {**filters, **self._key_filters(db_row)}
        if "is_deleted" not in attributes:
            return await self.db_delete(db, **filters)
        clauses, parameters = self._where_clauses({**filters, "is_deleted": False} if filters else {})
        values = {"is_deleted": True, "deleted_at": now()}
        statement = (
            update(self.model).where(*clauses).values({name: values[name] for name in values if name in attributes})
        )
        return cast("CursorResult[Any]", await db.execute(statement, parameters)).rowcount

    async def db_delete(self, db: AsyncSession, **filters: Any) -> int:
        """Delete all rows that match from the table; return their number."""
        clauses, parameters = self._where_clauses(filters)
        return cast("CursorResult[Any]", await db.execute(delete(self.model).where(*clauses), parameters)).rowcount

    def _update_statement(
        self,
        db: AsyncSession,
        object: BaseModel | Mapping[str, Any],
        filters: Mapping[str, Any],
        returned: Columns = (),
    ) -> tuple[Update, dict[str, Any]]:
        values = self._values_to_set(object)
        if not filters:
            raise self._missing_filter()
        shape, parameters = parse_filters(self.model, filters)
        if any(isinstance(row, self.model) for row in db.identity_map.values()):
            # Through the ORM, so that rows which the session has loaded change too.
            changed = values or {name: columns_of(self.model)[name] for name in key_names(self.model)}
            statement = update(self.model).where(*where_clauses(self.model, shape)).values(changed)
            chosen = [columns_of(self.model)[name] for name in returned]
            return statement.returning(*chosen) if chosen else statement, parameters
        expressions = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
        plain = {name: value for name, value in values.items() if name not in expressions}
        parameters |= {f"set_{name}": value for name, value in plain.items()}
        statement = update_rows(self.model, tuple(plain), shape, returned)
        return statement.values(expressions) if expressions else statement, parameters

    def _missing_filter(self) -> UnknownFilterError:
        return UnknownFilterError(f"a write without a filter would change every row of {self.model.__name__}")

    def _where_clauses(self, filters: Mapping[str, Any]) -> tuple[list[ColumnElement[bool]], dict[str, Any]]:
        if not filters:
            raise self._missing_filter()
        shape, parameters = parse_filters(self.model, filters)
        return where_clauses(self.model, shape), parameters

    def _values_to_set(self, object: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
        values = object.model_dump(exclude_unset=True) if isinstance(object, BaseModel) else dict(object)
        if unknown := values.keys() - columns_of(self.model).keys():
            raise UnknownFilterError(f"{self.model.__name__} has no column {', '.join(map(repr, sorted(unknown)))}")
        if "updated_at" in columns_of(self.model):
            return {"updated_at": now(), **values}
        return values

    def _key_filters(self, row: ModelT | Mapping[str, Any]) -> dict[str, Any]:
        return {name: row[name] if isinstance(row, Mapping) else getattr(row, name) for name in key_names(self.model)}

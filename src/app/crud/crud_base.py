"""What every entity's queries have in common. Reading methods take a session or a `Reader`; writing methods flush and
never commit. A constraint that refuses a write raises one of the errors of `app.core.exceptions`, and the transaction
is over; to go on in it, write inside `async with db.begin_nested():`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel
from sqlalchemy import ClauseElement, ColumnElement, CursorResult, Update, delete, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Base, Database, fetch_all
from app.core.exceptions import NotFoundError, UnknownFilterError
from app.core.models import now
from app.crud.helper import (
    Columns,
    columns_of,
    columns_to_select,
    conditions,
    key_names,
    lock_key,
    lookups,
    primary_key,
    select_count,
    select_distant_page,
    select_exists,
    select_one,
    select_page,
    shape_of,
    update_rows,
)

ModelT = TypeVar("ModelT", bound=Base)
CreateT = TypeVar("CreateT", bound=BaseModel)
UpdateT = TypeVar("UpdateT", bound=BaseModel)
UpdateInternalT = TypeVar("UpdateInternalT", bound=BaseModel)
DeleteT = TypeVar("DeleteT", bound=BaseModel)

Schema = type[BaseModel] | Sequence[str]


def _not_found(models: Sequence[str]) -> NotFoundError:
    return NotFoundError(f"{' or '.join(models)} not found")


class CRUDBase(Generic[ModelT, CreateT, UpdateT, UpdateInternalT, DeleteT]):
    """Queries on one model; filters are `column=value`, all of which must hold (`None` is SQL's NULL)."""

    def __init__(self, model: type[ModelT]) -> None:
        self.model = model

    async def get(self, db: Database, schema_to_select: Schema | None = None, **filters: Any) -> dict[str, Any] | None:
        """Return the first row that matches, by primary key, or None."""
        columns = columns_to_select(self.model, schema_to_select)
        shape, parameters = shape_of(self.model, filters)
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
        """Return `data`, at most `limit` rows in the order of the primary key, and `total_count` of all that match,
        with `has_more`, `page` and `items_per_page`. They are those after `offset` others or, at the same cost wherever
        that is, those whose key follows `after`; these have no `page`.
        """
        if offset < 0 or limit < 1:
            raise ValueError(f"offset must be 0 or more and limit 1 or more, not {offset} and {limit}")
        columns = columns_to_select(self.model, schema_to_select)
        shape, parameters = shape_of(self.model, filters)
        if after is not None:
            if offset or len(primary_key(self.model)) > 1:
                raise ValueError("`after` goes with a primary key of one column, and not with an offset")
            statement = select_page(self.model, columns, shape, after=True)
            parameters |= {"after": after, "limit": limit + 1}  # one more tells whether there are more
        elif offset:
            statement = select_distant_page(self.model, columns, shape)
            parameters |= {"limit": limit, "offset": offset}
        else:
            statement = select_page(self.model, columns, shape)
            parameters |= {"limit": limit}
        rows = await fetch_all(db, statement, parameters)
        *_, found, total = rows[0]
        if total is None:
            raise _not_found(lookups(shape))
        data = [dict(zip(columns, row, strict=False)) for row in rows[:limit]] if found else []
        return {
            "data": data,
            "total_count": total,
            "has_more": len(rows) > limit if after is not None else offset + len(data) < total,
            "page": None if after is not None else offset // limit + 1,
            "items_per_page": limit,
        }

    async def exists(self, db: Database, **filters: Any) -> bool:
        shape, parameters = shape_of(self.model, filters)
        rows = await fetch_all(db, select_exists(self.model, shape), parameters)
        return bool(rows[0][0])

    async def count(self, db: Database, **filters: Any) -> int:
        shape, parameters = shape_of(self.model, filters)
        rows = await fetch_all(db, select_count(self.model, shape), parameters)
        return int(rows[0][0])

    async def lock_key(self, db: AsyncSession, **filters: Any) -> Any:
        """Return the primary key of the one row that matches, or None. Nobody deletes the row or changes a column that
        is unique until the commit: what is written below a name stays below it.
        """
        shape, parameters = shape_of(self.model, filters)
        return (await db.execute(lock_key(self.model, shape), parameters)).scalar_one_or_none()

    async def create(self, db: AsyncSession, object: CreateT) -> ModelT:
        """Insert a row and return it as the model, with what the database filled in."""
        row = self.model(**object.model_dump())
        db.add(row)
        await db.flush()
        return row

    async def update(
        self, db: AsyncSession, object: UpdateT | UpdateInternalT | Mapping[str, Any], **filters: Any
    ) -> int:
        """Set what `object` sets in all rows that match, and their `updated_at`; return how many there were."""
        statement, parameters = self._update(db, object, filters)
        return cast("CursorResult[Any]", await db.execute(statement, parameters)).rowcount

    async def update_one(
        self,
        db: AsyncSession,
        object: UpdateT | UpdateInternalT | Mapping[str, Any],
        schema_to_select: Schema | None = None,
        **filters: Any,
    ) -> dict[str, Any] | None:
        """Like `update`, for filters that match one row at most: return it as it now is, or None."""
        columns = columns_to_select(self.model, schema_to_select)
        statement, parameters = self._update(db, object, filters, columns)
        row = (await db.execute(statement, parameters)).one_or_none()
        return None if row is None else dict(zip(columns, row, strict=True))

    async def delete(self, db: AsyncSession, db_row: ModelT | Mapping[str, Any] | None = None, **filters: Any) -> int:
        """Mark what matches as deleted, or really delete it where the model has no `is_deleted`; return how many rows.

        `db_row` is a row that was read before, in place of or beside filters. Rows already marked stay as they are.
        """
        known = columns_of(self.model)
        if db_row is not None:
            filters = {**filters, **self._identity(db_row)}
        if "is_deleted" not in known:
            return await self.db_delete(db, **filters)
        clauses, parameters = self._where({**filters, "is_deleted": False} if filters else {})
        values = {"is_deleted": True, "deleted_at": now()}
        statement = update(self.model).where(*clauses).values({name: values[name] for name in values if name in known})
        return cast("CursorResult[Any]", await db.execute(statement, parameters)).rowcount

    async def db_delete(self, db: AsyncSession, **filters: Any) -> int:
        """Really delete all rows that match; return how many there were."""
        clauses, parameters = self._where(filters)
        return cast("CursorResult[Any]", await db.execute(delete(self.model).where(*clauses), parameters)).rowcount

    def _update(
        self,
        db: AsyncSession,
        object: BaseModel | Mapping[str, Any],
        filters: Mapping[str, Any],
        returned: Columns = (),
    ) -> tuple[Update, dict[str, Any]]:
        values = self._values(object)
        if not filters:
            raise self._no_filter()
        shape, parameters = shape_of(self.model, filters)
        if any(isinstance(row, self.model) for row in db.identity_map.values()):
            # The ORM keeps in step what the session has loaded.
            changed = values or {name: columns_of(self.model)[name] for name in key_names(self.model)}
            statement = update(self.model).where(*conditions(self.model, shape)).values(changed)
            chosen = [columns_of(self.model)[name] for name in returned]
            return statement.returning(*chosen) if chosen else statement, parameters
        expressions = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
        plain = {name: value for name, value in values.items() if name not in expressions}
        parameters |= {f"set_{name}": value for name, value in plain.items()}
        statement = update_rows(self.model, tuple(plain), shape, returned)
        return statement.values(expressions) if expressions else statement, parameters

    def _no_filter(self) -> UnknownFilterError:
        return UnknownFilterError(f"a write without a filter would change every row of {self.model.__name__}")

    def _where(self, filters: Mapping[str, Any]) -> tuple[list[ColumnElement[bool]], dict[str, Any]]:
        if not filters:
            raise self._no_filter()
        shape, parameters = shape_of(self.model, filters)
        return conditions(self.model, shape), parameters

    def _values(self, object: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
        values = object.model_dump(exclude_unset=True) if isinstance(object, BaseModel) else dict(object)
        if unknown := values.keys() - columns_of(self.model).keys():
            raise UnknownFilterError(f"{self.model.__name__} has no column {', '.join(map(repr, sorted(unknown)))}")
        if "updated_at" in columns_of(self.model):
            return {"updated_at": now(), **values}
        return values

    def _identity(self, row: ModelT | Mapping[str, Any]) -> dict[str, Any]:
        return {name: row[name] if isinstance(row, Mapping) else getattr(row, name) for name in key_names(self.model)}

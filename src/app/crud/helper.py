"""Builds the statements of `CRUDBase`. A statement depends on names only, so it is built once and then reused."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from typing import cast as typed

from pydantic import BaseModel
from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    ScalarSelect,
    Select,
    Subquery,
    Table,
    Update,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy import inspect as inspect_mapper

from app.core.database import BUILT_ONCE, Base
from app.core.exceptions import UnknownFilterError
from app.models.row_count import Counted, RowCount

# What a filter compares with: a fixed value (None, True or False are written into the statement), a parameter, or what
# the statement looks up: a model, a column of it, and what its row must match.
_PARAMETER = "parameter"
Sought = tuple[type[Base], str, "Shape"]
Shape = tuple[tuple[str, str | bool | Sought | None], ...]
Columns = tuple[str, ...]
_FOUND = "found?"  # no attribute is called so
_ZERO, _ONE = literal_column("0", BigInteger), literal_column("1", BigInteger)


class Lookup(NamedTuple):
    """For a filter: the column of the one row of another model that matches.

    Without such a row nothing equals it, and `get` and `get_multi` raise NotFoundError: the statement that reads tells
    "no such author" from "no posts", since a second statement could see another state.
    """

    model: type[Base]
    column: str
    filters: Mapping[str, Any]


@lru_cache
def columns_of(model: type[Base]) -> Mapping[str, ColumnElement[Any]]:
    """The model's columns by attribute name."""
    return {attribute.key: attribute.columns[0] for attribute in inspect_mapper(model).column_attrs}


def columns_to_select(model: type[Base], schema: type[BaseModel] | Sequence[str] | None) -> Columns:
    """The names of the columns that a schema, or a list of names, asks for; without one, all."""
    known = columns_of(model)
    if schema is None:
        return tuple(known)
    wanted = _fields(schema) if isinstance(schema, type) else schema
    names = tuple(name for name in wanted if name in known)
    if not names:
        raise ValueError(f"none of {', '.join(wanted)} is a column of {model.__name__}")
    return names


@lru_cache
def _fields(schema: type[BaseModel]) -> Columns:
    return tuple(schema.model_fields)


def shape_of(model: type[Base], filters: Mapping[str, Any], prefix: str = "where") -> tuple[Shape, dict[str, Any]]:
    """Split filters into what the statement depends on and the values of its parameters."""
    known = columns_of(model)
    shape: list[tuple[str, str | bool | Sought | None]] = []
    parameters: dict[str, Any] = {}
    for name, value in filters.items():
        if name not in known:
            raise UnknownFilterError(f"{model.__name__} has no column {name!r}; it has {', '.join(known)}")
        if value is None or isinstance(value, bool):
            shape.append((name, value))
        elif isinstance(value, Lookup):
            sought, more = shape_of(value.model, value.filters, f"{prefix}_{name}_")
            shape.append((name, (value.model, value.column, sought)))
            parameters |= more
        else:
            shape.append((name, _PARAMETER))
            parameters[f"{prefix}_{name}"] = value
    return tuple(shape), parameters


def conditions(model: type[Base], shape: Shape, prefix: str = "where") -> list[ColumnElement[bool]]:
    """The WHERE clause; `NOT column` rather than `column IS false`, which no partial index serves."""
    clauses: list[ColumnElement[bool]] = []
    for name, value in shape:
        column = columns_of(model)[name]
        if value is None:
            clauses.append(column.is_(None))
        elif isinstance(value, bool):
            clauses.append(column if value else ~column)
        else:
            clauses.append(column == _compared(column, f"{prefix}_{name}", value))
    return clauses


def _compared(column: ColumnElement[Any], parameter: str, value: str | Sought) -> ColumnElement[Any]:
    if isinstance(value, str):
        return bindparam(parameter, type_=column.type)
    model, name, shape = value
    return select(columns_of(model)[name]).where(*conditions(model, shape, f"{parameter}_")).scalar_subquery()


def lookups(shape: Shape) -> list[str]:
    """The names of the models in which the filters look something up."""
    return [value[0].__name__ for _, value in shape if isinstance(value, tuple)]


def _all_found(model: type[Base], shape: Shape) -> ColumnElement[bool]:
    sought = [(columns_of(model)[name], f"where_{name}", value) for name, value in shape if isinstance(value, tuple)]
    return and_(*(_compared(*each).is_not(None) for each in sought))


def known(limit: int) -> BindParameter[int]:
    """A limit that stands in the statement itself: the planner would take one that comes later for a tenth of all."""
    return bindparam("limit", limit, literal_execute=True)


def primary_key(model: type[Base]) -> Sequence[ColumnElement[Any]]:
    return inspect_mapper(model).primary_key


@lru_cache
def key_names(model: type[Base]) -> Columns:
    """The attributes of the primary key, in its order."""
    names = {column: name for name, column in columns_of(model).items()}
    return tuple(names[column] for column in primary_key(model))


@lru_cache(maxsize=1024)
def update_rows(model: type[Base], names: Columns, shape: Shape, returned: Columns = ()) -> Update:
    """Set columns to the parameters of their names; on the table: the ORM would work it out anew each time."""
    table = typed(Table, model.__table__)
    known = columns_of(model)
    values: dict[Any, Any] = {known[name]: bindparam(f"set_{name}", type_=known[name].type) for name in names}
    # SQL has no UPDATE that sets nothing, but a PATCH may name nothing: the key stays as it is.
    values = values or {column: column for column in primary_key(model)}
    statement = table.update().where(*conditions(model, shape)).values(values)
    return statement.returning(*(known[name] for name in returned)) if returned else statement


@lru_cache(maxsize=1024)
def select_one(model: type[Base], columns: Columns, shape: Shape) -> Select[Any]:
    chosen = [columns_of(model)[name] for name in columns]
    statement = select(*chosen).where(*conditions(model, shape)).order_by(*primary_key(model)).limit(1)
    if lookups(shape):  # one row in any case, which ends with whether the row is there, and all that is looked up
        row = statement.add_columns(true().label(_FOUND)).subquery("row")
        found = select(_all_found(model, shape).label("all_found")).subquery("lookups")
        statement = select(row, found).select_from(found.outerjoin(row, true()))
    return statement.execution_options(**BUILT_ONCE)


@lru_cache(maxsize=1024)
def lock_key(model: type[Base], shape: Shape) -> Select[Any]:
    return select(*primary_key(model)).where(*conditions(model, shape)).with_for_update(read=True, key_share=True)


@lru_cache(maxsize=1024)
def select_page(model: type[Base], columns: Columns, shape: Shape, *, after: bool = False) -> Select[Any]:
    """The first `limit` rows, or those that follow the key `after`; for the form of the rows see `_with_total`."""
    key, total = primary_key(model), _total(model, shape)
    keys = select(*key).where(*conditions(model, shape)).order_by(*key)
    if after:
        keys = keys.where(key[0] > bindparam("after", type_=key[0].type))
    # A subquery even here: the planner cannot look into it, so that one plan serves for good. One made for each
    # request, as it would be for a limit that it knows, costs more than the page.
    limit = select(bindparam("limit", type_=BigInteger)).scalar_subquery()
    return _with_total(model, columns, total, keys.limit(limit).subquery("keys"))


@lru_cache(maxsize=1024)
def select_distant_page(model: type[Base], columns: Columns, shape: Shape) -> Select[Any]:
    """The `limit` rows after `offset` others, from the nearer end; for the form of the rows see `_with_total`."""
    key, total = primary_key(model), _total(model, shape)
    limit, offset = bindparam("limit", type_=BigInteger), bindparam("offset", type_=BigInteger)
    remaining = func.greatest(total.c.rows - offset, _ZERO)
    from_start = offset < remaining
    keys = select(*key).where(*conditions(model, shape))
    walked = union_all(  # one of the two has the limit 0, and is not begun
        keys.order_by(*key).limit(_of(total, case((from_start, limit), else_=_ZERO))).offset(_of(total, offset)),
        keys.order_by(*(column.desc() for column in key))
        .limit(_of(total, case((from_start, _ZERO), else_=func.least(limit, remaining))))
        .offset(_of(total, func.greatest(remaining - limit, _ZERO))),
    )
    return _with_total(model, columns, total, walked.subquery("keys"))


def _with_total(model: type[Base], columns: Columns, total: CTE, keys: Subquery) -> Select[Any]:
    """Each row ends with True and how many rows match in all; a page without rows has one, with None for True.

    Keys are found before rows: that takes no more than an index, whose order the planner then prefers to that of the
    table, where the rows of one owner may come last.
    """
    known = columns_of(model)
    names = dict.fromkeys((*columns, *key_names(model)))
    row = select(*(known[name].label(name) for name in names), true().label(_FOUND))
    same_key = [column == walked for column, walked in zip(primary_key(model), keys.c, strict=True)]
    # LATERAL and LIMIT: row by row. The planner takes the keys for many, and would read the whole table beside them.
    page = row.where(*same_key).limit(_ONE).lateral("page")
    return (
        select(*(page.c[name] for name in columns), page.c[_FOUND], total.c.rows)
        .select_from(total.outerjoin(keys.join(page, true()), true()))
        .order_by(*(page.c[name] for name in key_names(model)))
        .execution_options(**BUILT_ONCE)
    )


def _total(model: type[Base], shape: Shape) -> CTE:
    """How many rows match; NULL when something that is looked up is not there."""
    count = select_count(model, shape)
    if lookups(shape):
        count = select(case((_all_found(model, shape), count.scalar_subquery())).label("rows"))
    return count.cte("total")


def _of(total: CTE, value: ColumnElement[Any]) -> ScalarSelect[Any]:
    return select(value).select_from(total).scalar_subquery()


@lru_cache(maxsize=1024)
def select_count(model: type[Base], shape: Shape) -> Select[Any]:
    kept = _kept_count(model, shape)
    if kept is not None:
        # The sum of bigints is numeric, which the driver makes a Decimal.
        statement = select(cast(func.coalesce(func.sum(RowCount.rows), _ZERO), BigInteger).label("rows")).where(*kept)
    else:
        counted = select(func.count().label("rows")).select_from(model.__table__)
        statement = counted.where(*conditions(model, shape))
    return statement.execution_options(**BUILT_ONCE)


def _kept_count(model: type[Base], shape: Shape) -> list[ColumnElement[bool]] | None:
    """Where the count of these very rows is kept; None when it is not, and they have to be counted."""
    if not issubclass(model, Counted):
        return None
    owner, values = model.__counted_by__, dict(shape)
    is_living = "is_deleted" not in columns_of(model) or values.pop("is_deleted", None) is False
    whose: ColumnElement[Any] = _ZERO
    if owner is not None:
        value = values.pop(owner, None)
        if value is None or isinstance(value, bool):
            return None
        whose = _compared(columns_of(model)[owner], f"where_{owner}", value)
    if values or not is_living:
        return None
    return [RowCount.relation == literal(model.__tablename__), RowCount.owner == whose]


@lru_cache(maxsize=1024)
def select_exists(model: type[Base], shape: Shape) -> Select[Any]:
    statement = select(exists().select_from(model.__table__).where(*conditions(model, shape)))
    return statement.execution_options(**BUILT_ONCE)

"""The statements of `CRUDBase`: built once for names of columns and kinds of values, and used for all values."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from pydantic import BaseModel

from app.core.database import BUILT_ONCE, Base
from app.core.exceptions import UnknownFilterError
from app.models.row_count import Counted, RowCount

# Filters without their values: names of columns, and what each column is compared with. None, True and False are part
# of the statement. A lookup is a model, one of its columns, and the filters for its row.
_PARAMETER = "parameter"
LookupShape = tuple[type[Base], str, "FilterShape"]
FilterShape = tuple[tuple[str, str | bool | LookupShape | None], ...]
Columns = tuple[str, ...]
_IS_ROW = "is row?"  # cannot be the name of an attribute
_ZERO, _ONE = sa.literal_column("0", sa.BigInteger), sa.literal_column("1", sa.BigInteger)


class Lookup(NamedTuple):
    """A value that the statement finds itself: `column` of the one row of `model` that matches `filters`.

    Without such a row a filter matches nothing, and `get`, `get_multi` and `create` raise NotFoundError. One statement
    tells an unknown author from one without posts: a second statement could see another state. A write also locks the
    row until the commit, so that no other transaction deletes it or changes a unique column of it, such as a name.
    """

    model: type[Base]
    column: str
    filters: Mapping[str, Any]


@lru_cache
def columns_of(model: type[Base]) -> Mapping[str, sa.ColumnElement[Any]]:
    """Return the model's columns by attribute name."""
    return {attribute.key: attribute.columns[0] for attribute in sa.inspect(model).column_attrs}


def columns_to_select(model: type[Base], schema: type[BaseModel] | Sequence[str] | None) -> Columns:
    """Return the attributes that a schema or a list names, except those that are no columns; without one, all."""
    attributes = columns_of(model)
    if schema is None:
        return tuple(attributes)
    requested = schema.model_fields if isinstance(schema, type) else schema
    names = tuple(name for name in requested if name in attributes)
    if not names:
        raise ValueError(f"none of {', '.join(requested)} is a column of {model.__name__}")
    return names


def parse_filters(
    model: type[Base], filters: Mapping[str, Any], prefix: str = "where"
) -> tuple[FilterShape, dict[str, Any]]:
    """Split filters into their shape, on which the statement depends, and the values of its parameters."""
    attributes = columns_of(model)
    shape: list[tuple[str, str | bool | LookupShape | None]] = []
    parameters: dict[str, Any] = {}
    for name, value in filters.items():
        if name not in attributes:
            raise UnknownFilterError(f"{model.__name__} has no column {name!r}; it has {', '.join(attributes)}")
        if value is None or isinstance(value, bool):
            shape.append((name, value))
        elif isinstance(value, Lookup):
            lookup_shape, lookup_parameters = parse_filters(value.model, value.filters, f"{prefix}_{name}_")
            shape.append((name, (value.model, value.column, lookup_shape)))
            parameters |= lookup_parameters
        else:
            shape.append((name, _PARAMETER))
            parameters[f"{prefix}_{name}"] = value
    return tuple(shape), parameters


def where_clauses(
    model: type[Base], shape: FilterShape, prefix: str = "where", *, lock: bool = False
) -> list[sa.ColumnElement[bool]]:
    """Build the WHERE clause; `lock` locks the rows in which values are looked up."""
    clauses: list[sa.ColumnElement[bool]] = []
    for name, value in shape:
        column = columns_of(model)[name]
        if value is None:
            clauses.append(column.is_(None))
        elif isinstance(value, bool):
            clauses.append(column if value else ~column)  # partial indexes do not serve `column IS false`
        else:
            clauses.append(column == _right_operand(column, f"{prefix}_{name}", value, lock=lock))
    return clauses


def _right_operand(
    column: sa.ColumnElement[Any], parameter: str, value: str | LookupShape, *, lock: bool = False
) -> sa.ColumnElement[Any]:
    if isinstance(value, str):
        return sa.bindparam(parameter, type_=column.type)
    return select_lookup(*value, f"{parameter}_", lock=lock).scalar_subquery()


@lru_cache(maxsize=1024)
def select_lookup(
    model: type[Base], column: str, shape: FilterShape, prefix: str = "where", *, lock: bool = False
) -> sa.Select[Any]:
    found = sa.select(columns_of(model)[column]).where(*where_clauses(model, shape, prefix, lock=lock))
    return found.with_for_update(read=True, key_share=True) if lock else found


def looked_up_models(shape: FilterShape) -> str:
    """Name the models in which the filters look a value up; an empty string if there are none."""
    return " or ".join(value[0].__name__ for _, value in shape if isinstance(value, tuple))


def _all_found(shape: FilterShape) -> sa.ColumnElement[bool]:
    lookups = [select_lookup(*value, f"where_{name}_") for name, value in shape if isinstance(value, tuple)]
    return sa.and_(*(lookup.exists() for lookup in lookups))


def literal_limit(limit: int) -> sa.BindParameter[int]:
    """A limit that is part of the SQL text: for a parameter, the planner assumes a tenth of all rows."""
    return sa.bindparam("limit", limit, literal_execute=True)


def _hidden_parameter(name: str) -> sa.ScalarSelect[Any]:
    """Hide a parameter from the planner: one plan serves every page, and planning would take longer than reading it."""
    return sa.select(sa.bindparam(name, type_=sa.BigInteger)).scalar_subquery()


def primary_key(model: type[Base]) -> Sequence[sa.ColumnElement[Any]]:
    return sa.inspect(model).primary_key


@lru_cache
def key_names(model: type[Base]) -> Columns:
    """Return the attributes of the primary key, in its order."""
    names = {column: name for name, column in columns_of(model).items()}
    return tuple(names[column] for column in primary_key(model))


@lru_cache(maxsize=1024)
def update_rows(model: type[Base], names: Columns, shape: FilterShape, returned: Columns = ()) -> sa.Update:
    """Set the named columns to `set_{name}`, on the table: the ORM would analyse each update of the model anew."""
    table, attributes = cast(sa.Table, model.__table__), columns_of(model)
    values: dict[Any, sa.ColumnElement[Any]] = {
        attributes[name]: sa.bindparam(f"set_{name}", type_=attributes[name].type) for name in names
    }
    if not values:  # a PATCH may set nothing, but SQL has no such UPDATE: set the key to itself
        values = {column: column for column in primary_key(model)}
    statement = table.update().where(*where_clauses(model, shape, lock=True)).values(values)
    return statement.returning(*(attributes[name] for name in returned))


@lru_cache(maxsize=1024)
def select_one(model: type[Base], columns: Columns, shape: FilterShape) -> sa.Select[Any]:
    chosen = [columns_of(model)[name] for name in columns]
    statement = sa.select(*chosen).where(*where_clauses(model, shape)).order_by(*primary_key(model)).limit(1)
    if looked_up_models(shape):  # always one row, which ends with "is it a row?" and "are all lookups found?"
        row = statement.add_columns(sa.true().label(_IS_ROW)).subquery("row")
        found = sa.select(_all_found(shape).label("all_found")).subquery("lookups")
        statement = sa.select(row, found).select_from(found.outerjoin(row, sa.true()))
    return statement.execution_options(**BUILT_ONCE)


@lru_cache(maxsize=1024)
def select_page(model: type[Base], columns: Columns, shape: FilterShape, *, after: bool = False) -> sa.Select[Any]:
    """Select the `limit` rows after `offset` others, or those after the key `after`, in the order of the primary key.

    Each row of the result ends with True and the total of all rows that match. A page without rows is one row of the
    result, with None in place of True. The total is NULL when a lookup is not found.

    The statement finds keys before rows, since an index has all that the search needs. For rows, the planner may prefer
    the order of the table, where those of one owner may come last.
    """
    key, attributes, where = primary_key(model), columns_of(model), where_clauses(model, shape)
    count = select_count(model, shape)
    if looked_up_models(shape):
        count = sa.select(sa.case((_all_found(shape), count.scalar_subquery())).label("rows"))
    total = count.cte("total")
    keys = sa.select(*key).where(*where).order_by(*key).limit(_hidden_parameter("limit"))
    if after:
        keys = keys.where(key[0] > sa.bindparam("after", type_=key[0].type))
    else:
        keys = keys.offset(_hidden_parameter("offset"))
    keys_of_page = keys.subquery("keys")
    names = dict.fromkeys((*columns, *key_names(model)))
    rows = sa.select(*(attributes[name].label(name) for name in names), sa.true().label(_IS_ROW))
    same_key = [column == found for column, found in zip(key, keys_of_page.c, strict=True)]
    # LATERAL and LIMIT: row by row. The planner expects many keys, and would read the whole table otherwise.
    page = rows.where(*same_key).limit(_ONE).lateral("page")
    return (
        sa.select(*(page.c[name] for name in columns), page.c[_IS_ROW], total.c.rows)
        .select_from(total.outerjoin(keys_of_page.join(page, sa.true()), sa.true()))
        .order_by(*(page.c[name] for name in key_names(model)))
        .execution_options(**BUILT_ONCE)
    )


@lru_cache(maxsize=1024)
def select_count(model: type[Base], shape: FilterShape) -> sa.Select[Any]:
    slots = _slots_with_count(model, shape)
    if slots is None:
        statement = sa.select(sa.func.count().label("rows")).select_from(model.__table__)
        statement = statement.where(*where_clauses(model, shape))
    else:
        total = sa.func.coalesce(sa.func.sum(RowCount.rows), _ZERO)
        # The sum of bigints is numeric, which the driver returns as a Decimal.
        statement = sa.select(sa.cast(total, sa.BigInteger).label("rows")).where(*slots)
    return statement.execution_options(**BUILT_ONCE)


def _slots_with_count(model: type[Base], shape: FilterShape) -> list[sa.ColumnElement[bool]] | None:
    """Select the slots that hold the count of exactly these rows; None if triggers keep no such count."""
    if not issubclass(model, Counted):
        return None
    columns, owner_column, values = columns_of(model), model.__counted_by__, dict(shape)
    owner: sa.ColumnElement[Any] = _ZERO
    if owner_column is not None:
        value = values.pop(owner_column, None)
        if value is None or isinstance(value, bool):
            return None
        owner = _right_operand(columns[owner_column], f"where_{owner_column}", value)
    if values != ({"is_deleted": False} if "is_deleted" in columns else {}):
        return None
    return [RowCount.relation == sa.literal(model.__tablename__), RowCount.owner == owner]


@lru_cache(maxsize=1024)
def select_exists(model: type[Base], shape: FilterShape) -> sa.Select[Any]:
    statement = sa.select(sa.exists().select_from(model.__table__).where(*where_clauses(model, shape)))
    return statement.execution_options(**BUILT_ONCE)

"""Builds the statements of `CRUDBase`. A statement depends on names only, so it is built once and then reused."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, Table, Update, bindparam, exists, func, select
from sqlalchemy import inspect as inspect_mapper

from app.core.database import BUILT_ONCE, Base
from app.core.exceptions import UnknownFilterError

# What a filter compares with: a fixed value (None, True or False are written into the statement) or a parameter.
_PARAMETER = "parameter"
Shape = tuple[tuple[str, str | bool | None], ...]
Columns = tuple[str, ...]


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


def shape_of(model: type[Base], filters: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
    """Split filters into what the statement depends on and the values of its parameters."""
    known = columns_of(model)
    shape: list[tuple[str, str | bool | None]] = []
    parameters: dict[str, Any] = {}
    for name, value in filters.items():
        if name not in known:
            raise UnknownFilterError(f"{model.__name__} has no column {name!r}; it has {', '.join(known)}")
        if value is None or isinstance(value, bool):
            shape.append((name, value))
        else:
            shape.append((name, _PARAMETER))
            parameters[f"where_{name}"] = value
    return tuple(shape), parameters


def conditions(model: type[Base], shape: Shape) -> list[ColumnElement[bool]]:
    """The WHERE clause; `NOT column` rather than `column IS false`, which no partial index serves."""
    clauses: list[ColumnElement[bool]] = []
    for name, value in shape:
        column = columns_of(model)[name]
        if value is None:
            clauses.append(column.is_(None))
        elif isinstance(value, bool):
            clauses.append(column if value else ~column)
        else:
            clauses.append(column == bindparam(f"where_{name}", type_=column.type))
    return clauses


def primary_key(model: type[Base]) -> Sequence[ColumnElement[Any]]:
    return inspect_mapper(model).primary_key


@lru_cache(maxsize=1024)
def update_rows(model: type[Base], names: Columns, shape: Shape, returned: Columns = ()) -> Update:
    """Set columns to the parameters of their names; on the table: the ORM would work it out anew each time."""
    table = cast(Table, model.__table__)
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
    return statement.execution_options(**BUILT_ONCE)


@lru_cache(maxsize=1024)
def select_page(model: type[Base], columns: Columns, shape: Shape) -> Select[Any]:
    """One page and, as the last column of each row, how many rows match in all."""
    chosen = [columns_of(model)[name] for name in columns]
    return (
        select(*chosen, select_count(model, shape).scalar_subquery())
        .where(*conditions(model, shape))
        .order_by(*primary_key(model))
        .limit(bindparam("limit"))
        .offset(bindparam("offset"))
        .execution_options(**BUILT_ONCE)
    )


@lru_cache(maxsize=1024)
def select_count(model: type[Base], shape: Shape) -> Select[Any]:
    statement = select(func.count()).select_from(model.__table__).where(*conditions(model, shape))
    return statement.execution_options(**BUILT_ONCE)


@lru_cache(maxsize=1024)
def select_exists(model: type[Base], shape: Shape) -> Select[Any]:
    statement = select(exists().select_from(model.__table__).where(*conditions(model, shape)))
    return statement.execution_options(**BUILT_ONCE)

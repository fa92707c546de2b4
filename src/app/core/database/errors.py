"""Turn PostgreSQL's errors into those of `app.core.exceptions`, by SQLSTATE, and remove row values from them."""

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import asyncpg
from sqlalchemy import CheckConstraint
from sqlalchemy.engine import ExceptionContext

from app.core import exceptions as errors
from app.core.database.base import Base
from app.core.database.server import LENT_SECONDS, PostgresServer

logger = logging.getLogger(__name__)

# SQLSTATEs of temporary failures, besides the classes 08 (connection) and 53 (resources):
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_TEMPORARY = {
    "25006",  # the server became a read-only standby
    "40001",  # serialization failure
    "40P01",  # deadlock
    "42P01",  # a table is missing
    "55P03",  # lock timeout
    "57014",  # statement timeout
    "57P01",  # administrator shutdown
    "57P02",  # crash of another server process
    "57P03",  # the server is starting up
}
# SQLSTATEs of values that the client chose. All others of the class 22, and 23502 (NULL), are faults of the code.
_VALUE_REFUSED = {
    "22001",  # too long
    "22003",  # out of range
    "22008",  # a moment out of range
    "22021",  # a character that the database cannot store
    "22P05",  # likewise, in JSON
    "23514",  # a check constraint
}

_ARGUMENT = re.compile(r"invalid input for query argument \$(\d+)")
_QUOTED_VALUES = re.compile(r"(invalid input for query argument \$\d+): .*|\nDETAIL:.*", re.DOTALL)


def translate_error(server: PostgresServer, idle_timeout: float, context: ExceptionContext) -> None:
    """Raise the matching error of ours (event `handle_error`); any other error passes unchanged."""
    original = context.original_exception
    if isinstance(original, TimeoutError):
        # The client has given up while the server may still run the statement: nobody else may get this connection,
        # and closing it must not wait.
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
        if context.connection is not None:
            cast(Any, context.connection.connection.driver_connection).terminate()
            server.mark_silent(original)
    cause = original.__cause__ or original
    if context.is_disconnect and context.connection is not None:
        seconds = context.connection.info.get(LENT_SECONDS, 0)
        if seconds >= idle_timeout:
            raise errors.IdleTransactionError(
                f"PostgreSQL ended the transaction, which had its connection for {seconds:.0f} s: it may wait"
                f" {idle_timeout:g} s (POSTGRES_IDLE_TIMEOUT) for its next statement. Call other services before or"
                " after a transaction, not within it"
            ) from cause
    remove_values(cause, original, context.sqlalchemy_exception)
    execution: Any = context.execution_context
    translated = translated_error(
        cause,
        is_disconnect=context.is_disconnect,
        is_delete=getattr(execution, "isdelete", False),
        parameters=getattr(getattr(execution, "compiled", None), "positiontup", None) or (),
    )
    if translated is not None:
        raise translated from cause


def translated_error(
    cause: BaseException, *, is_disconnect: bool, is_delete: bool = False, parameters: Sequence[str] = ()
) -> errors.AppError | None:
    """Return the error of ours for a driver's error; None for a fault of the code, which becomes a 500.

    `is_delete` tells the two foreign-key errors apart; `parameters` are the names of those that the driver numbers.
    """
    state: str = getattr(cause, "sqlstate", None) or ""
    constraint: str | None = getattr(cause, "constraint_name", None)
    error: errors.AppError | None = None
    if is_disconnect or state in _TEMPORARY or state.startswith(("08", "53")):
        error = errors.DatabaseUnavailableError()
        if state == "42P01":
            _report_missing_table(str(cause))
    elif state in {"23505", "23P01"}:
        error = errors.DuplicateValueError(_duplicate_columns(constraint))
    elif state in {"23001", "23503"}:
        error = errors.StillReferencedError() if is_delete else errors.MissingReferenceError()
    elif state in _VALUE_REFUSED or (state == "22P02" and "type json" in str(cause)):  # NaN, which Python can read
        error = errors.InvalidValueError(field=_checked_column(constraint))
    elif refused := _ARGUMENT.match(str(cause)):  # by the driver: out of range, or of another type than the column
        names = {number: name.removeprefix("set_").removeprefix("where_") for number, name in enumerate(parameters, 1)}
        name, reason = names.get(int(refused[1])), cause.__cause__
        if isinstance(reason, OverflowError | UnicodeEncodeError) or "out of float32 range" in str(reason):
            error = errors.InvalidValueError(field=name)
        else:
            cause.args = (f"{refused[0]} ({name}): {type(reason).__name__}",)
    if error is not None:
        error.constraint = constraint
    return error


@lru_cache(maxsize=64)
def _report_missing_table(message: str) -> None:
    """Log the name of a table once: each request gets 503 until the migrations have run, which may be never."""
    logger.error("a table is missing: run `alembic upgrade head`", extra={"error": message})


def remove_values(*causes: BaseException | None) -> None:
    """Remove the values that PostgreSQL and the driver quote, such as a password's hash: errors are logged."""
    for cause in filter(None, causes):
        if isinstance(cause, asyncpg.PostgresError):
            cause.detail = None
        cause.args = tuple(_QUOTED_VALUES.sub(r"\1", str(part)) for part in cause.args)
        if isinstance(cause, asyncpg.DataError) and type(cause.__cause__) is ValueError:
            cause.__cause__.args = tuple(part for part in cause.__cause__.args if "out of float32 range" in str(part))


def _checked_column(constraint_name: str | None) -> str | None:
    """Name the column of a check constraint, if it is about one only."""
    for table in Base.metadata.tables.values():
        for each in table.constraints:
            if isinstance(each, CheckConstraint) and constraint_name is not None and each.name == constraint_name:
                names = [column.name for column in table.columns if re.search(rf"\b{column.name}\b", str(each.sqltext))]
                return names[0] if len(names) == 1 else None
    return None


def _duplicate_columns(constraint_name: str | None) -> str | None:
    """Name the columns of a unique constraint, unique index or primary key in words."""
    mapped: list[Any] = [mapper.local_table for mapper in Base.registry.mappers]  # also of other metadata
    for table in (*Base.metadata.tables.values(), *mapped):
        for each in (*table.constraints, *table.indexes):
            if constraint_name is not None and each.name == constraint_name and each.columns:
                return f"{' and '.join(each.columns.keys())} already taken".replace("_", " ").capitalize()
    return None

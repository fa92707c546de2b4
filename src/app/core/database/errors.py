"""Turn PostgreSQL's errors into those of `app.core.exceptions`, by SQLSTATE, and remove row values from them."""

import logging
from functools import lru_cache
from typing import Any, cast

import asyncpg
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
    if getattr(cause, "detail", None):
        _remove_row_values(context, cause)
    is_delete = getattr(context.execution_context, "isdelete", False)
    translated = translated_error(cause, is_disconnect=context.is_disconnect, is_delete=is_delete)
    if translated is not None:
        raise translated from cause


def translated_error(cause: BaseException, *, is_disconnect: bool, is_delete: bool) -> errors.AppError | None:
    """Return the error of ours for a driver's error, or None. `is_delete` tells the two foreign-key errors apart."""
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
    elif state.startswith("22") or state in {"23502", "23514"} or isinstance(cause, asyncpg.DataError):
        error = errors.InvalidValueError()
    if error is not None:
        error.constraint = constraint
    return error


@lru_cache(maxsize=64)
def _report_missing_table(message: str) -> None:
    """Log the name of a table once: each request gets 503 until the migrations have run, which may be never."""
    logger.error("a table is missing: run `alembic upgrade head`", extra={"error": message})


def _remove_row_values(context: ExceptionContext, cause: Any) -> None:
    """Remove PostgreSQL's DETAIL, which quotes row values such as a password's hash: errors are logged."""
    cause.detail = None
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            error.args = tuple(str(part).partition("\nDETAIL:")[0] for part in error.args)


def _duplicate_columns(constraint_name: str | None) -> str | None:
    """Name the columns of a unique constraint, unique index or primary key in words."""
    mapped: list[Any] = [mapper.local_table for mapper in Base.registry.mappers]  # also of other metadata
    for table in (*Base.metadata.tables.values(), *mapped):
        for each in (*table.constraints, *table.indexes):
            if constraint_name is not None and each.name == constraint_name and each.columns:
                return f"{' and '.join(each.columns.keys())} already taken".replace("_", " ").capitalize()
    return None

"""Reading outside a transaction, and reading on whatever is given: a `Reader` or a session.

A `Reader` lets SQLAlchemy compile a statement once, and then runs it on the driver, which halves the cost of a small
read. It does so only if all types are in `TYPES` and SQLAlchemy passes their values on unchanged in both directions:
`tests/integration/test_prepared_types.py` proves that the results equal SQLAlchemy's own.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, NamedTuple, cast

from sqlalchemy import Dialect, Executable, types
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncResult, AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from app.core.database.errors import remove_values, translated_error
from app.core.database.server import PostgresServer
from app.core.exceptions import DatabaseUnavailableError

BUILT_ONCE = {"built_once": True}
"""Execution options of a statement that is built once and used often: a `Reader` compiles it once, too."""
TYPES = frozenset({
    types.BigInteger, types.Boolean, types.Date, types.DateTime, types.Integer, types.NullType, types.SmallInteger,
    types.String, types.Text, types.Time, types.Unicode, types.UnicodeText, types.Uuid,
})  # fmt: skip
"""Types of columns and parameters; a subclass is another type, and so is a `TypeDecorator`."""


class PreparedStatement(NamedTuple):
    """The SQL of a statement, the names of its parameters in their order, and the values of some."""

    sql: str
    names: Sequence[str]
    defaults: Mapping[str, Any]


@lru_cache(maxsize=1024)
def prepare(statement: Executable, dialect: Dialect) -> PreparedStatement | None:
    """Compile a statement; None when its text depends on its values (as that of a list does), or for other types."""
    if "built_once" not in statement.get_execution_options():
        return None
    compiled = cast(Any, statement).compile(dialect=dialect)
    if compiled.literal_execute_params or compiled.post_compile_params:
        return None
    parameters = [bind.type for bind in compiled.binds.values()]
    columns = [column.type for column in cast(Any, statement).selected_columns]
    if any(type(kind) not in TYPES for kind in (*parameters, *columns)):
        return None
    to_driver = [kind.dialect_impl(dialect).bind_processor(dialect) for kind in parameters]
    from_driver = [kind.dialect_impl(dialect).result_processor(dialect, None) for kind in columns]
    if any((*to_driver, *from_driver)):
        return None
    return PreparedStatement(compiled.string, tuple(compiled.positiontup), compiled.params)


class Reader:
    """Read outside a transaction, with a read-only connection that is borrowed for one statement at a time."""

    def __init__(self, engine: AsyncEngine, server: PostgresServer, *, uses_prepared: bool) -> None:
        self._uses_prepared = uses_prepared
        self._engine = engine
        self._server = server

    async def fetch_all(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run one statement and return its rows."""
        prepared = prepare(statement, self._engine.dialect) if self._uses_prepared else None
        try:
            if prepared is None:
                return await greenlet_spawn(self._fetch, statement, parameters)
            return await greenlet_spawn(self._fetch_prepared, prepared, parameters)
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError from error

    @asynccontextmanager
    async def stream(self, statement: Executable) -> AsyncIterator[AsyncResult[Any]]:
        """Read rows in constant memory, all of one moment: `async with db.stream(…) as rows: async for row in rows: …`.

        The block holds a connection.
        """
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(isolation_level="REPEATABLE READ")  # a cursor needs a transaction
                async with connection.begin():
                    yield await connection.stream(statement)
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError from error

    def _fetch(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        # AsyncConnection would use three greenlets (connect, execute, close); one saves a fifth of a small request.
        with self._engine.sync_engine.connect() as connection:
            return connection.execute(statement, parameters).all()

    def _fetch_prepared(self, prepared: PreparedStatement, parameters: Mapping[str, Any]) -> Sequence[Any]:
        values = {**prepared.defaults, **parameters}
        arguments = [values[name] for name in prepared.names]
        connection = self._engine.sync_engine.raw_connection()
        driver: Any = connection.driver_connection
        try:
            return cast(Sequence[Any], await_only(driver.fetch(prepared.sql, *arguments)))
        except Exception as error:
            if isinstance(error, TimeoutError):
                driver.terminate()
                self._server.mark_silent(error)
            remove_values(error)
            translated = translated_error(error, is_disconnect=driver.is_closed(), parameters=prepared.names)
            if translated is None:
                raise
            raise translated from error
        except BaseException:  # cancelled while the server still runs the statement
            driver.terminate()
            raise
        finally:
            connection.close()  # back to the pool, which checks each connection at checkout


Database = AsyncSession | Reader


async def fetch_all(db: Database, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
    """Run one reading statement on a `Reader` or, inside its transaction, on a session."""
    if isinstance(db, Reader):
        return await db.fetch_all(statement, parameters)
    return (await db.execute(statement, parameters)).all()

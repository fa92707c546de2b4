"""Reading outside a transaction, and reading on whatever is given: a `Reader` or a session."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
from sqlalchemy import Executable
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncResult, AsyncSession
from sqlalchemy.util import await_only, greenlet_spawn

from app.core.database.errors import translated_error
from app.core.database.prepared import PreparedStatement, prepare
from app.core.database.server import PostgresServer
from app.core.exceptions import DatabaseUnavailableError


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
        connection = self._engine.sync_engine.raw_connection()
        driver: Any = connection.driver_connection
        try:
            return cast(Sequence[Any], await_only(driver.fetch(prepared.sql, *prepared.arguments(parameters))))
        except Exception as error:
            if isinstance(error, TimeoutError):
                driver.terminate()
                self._server.mark_silent(error)
            if isinstance(error, asyncpg.PostgresError):
                error.detail = None  # it quotes row values
            translated = translated_error(error, is_disconnect=driver.is_closed(), is_delete=False)
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

"""A PostgreSQL server that may go away: an outage is one line in the log, and no request waits for its end."""

import asyncio
import logging
from typing import Any

import asyncpg
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only

from app.core.exceptions import DatabaseUnavailableError

logger = logging.getLogger(__name__)


class PostgresServer:
    """Whether a server answers. While it does not, one task tries to connect, and no request waits for it.

    Otherwise each would wait in vain, for a connection first and then for the server: an outage would cost more time
    the more requests there are.
    """

    PAUSE = 1.0
    """Seconds between two tries."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._is_away = False
        self._trial: asyncio.Task[None] | None = None

    @property
    def is_silent(self) -> bool:
        return self._trial is not None and not self._trial.done()

    async def connect(self, *args: Any, **kwargs: Any) -> asyncpg.Connection:
        if self.is_silent:
            raise DatabaseUnavailableError
        self._arguments = args, kwargs
        try:
            connection: asyncpg.Connection = await asyncpg.connect(*args, **kwargs)
        except (OSError, TimeoutError) as error:
            self.fell_silent(error)
            raise DatabaseUnavailableError from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:  # it answers, if only to say no
            self._went_away(error)
            raise DatabaseUnavailableError from error
        self._came_back()
        return connection

    def fell_silent(self, error: BaseException) -> None:
        self._went_away(error)
        if not self.is_silent:
            self._trial = asyncio.create_task(self._try())

    async def _try(self) -> None:
        args, kwargs = self._arguments
        while True:
            try:
                connection = await asyncpg.connect(*args, **kwargs)
                await connection.close(timeout=self.PAUSE)
                self._came_back()
                break
            except (OSError, TimeoutError):
                await asyncio.sleep(self.PAUSE)
            except (asyncpg.PostgresError, asyncpg.InterfaceError):  # it answers: each request hears it by itself
                break

    def stop_trying(self) -> None:
        if self._trial is not None:
            self._trial.cancel()

    def _went_away(self, error: BaseException) -> None:
        if not self._is_away:
            values = {"server": self.address, "error": f"{type(error).__name__}: {error}"}
            logger.warning("database away", extra=values)
        self._is_away = True

    def _came_back(self) -> None:
        if self._is_away:
            logger.warning("database back", extra={"server": self.address})
        self._is_away = False

    def refuse_dead_connection(self, dbapi_connection: Any, *_: Any) -> None:
        """Let the pool replace it. This costs nothing, unlike a ping, and finds all whose server has ended."""
        connection = dbapi_connection.driver_connection
        if self.is_silent:
            connection.terminate()  # a polite end would wait for an answer
        if connection.is_closed():
            raise DisconnectionError


class FairPool(AsyncAdaptedQueuePool):
    """Lends connections in the order in which they are asked for.

    The pool beneath lets a newcomer take what has just come back before who waits for it is awake: in a crowd some wait
    until the time-out, and have cost work for nothing.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns = asyncio.Semaphore(self.size())

    def _do_get(self) -> ConnectionPoolEntry:
        await_only(self._turn())
        try:
            return super()._do_get()
        except BaseException:
            self._turns.release()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        self._turns.release()

    async def _turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._turns.acquire()
        except TimeoutError:
            raise PoolTimeoutError("No connection has become free in time") from None


servers: dict[str, PostgresServer] = {}


def server_at(host: object, port: object) -> PostgresServer:
    address = f"{host}:{port}"
    return servers.setdefault(address, PostgresServer(address))


async def connect(*args: Any, **kwargs: Any) -> asyncpg.Connection:
    """Open a connection, or say that the database is away: what the driver raises here has no common base."""
    return await server_at(kwargs.get("host"), kwargs.get("port")).connect(*args, **kwargs)

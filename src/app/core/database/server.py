"""One PostgreSQL server and whether it answers: an outage is one line in the log, and no request waits for its end."""

import asyncio
import logging
from typing import Any

import asyncpg
from sqlalchemy.exc import DisconnectionError

from app.core.exceptions import DatabaseUnavailableError

logger = logging.getLogger(__name__)

LENT_SECONDS = "app.lent_seconds"
"""In the `info` of a pooled connection that the server ended: how long it had been lent."""


class PostgresServer:
    """Open connections to one server, and fail at once while the server is silent.

    A silent server accepts no connection, or stops answering. One background task then retries, and every request gets
    DatabaseUnavailableError: if each waited for its own timeout, an outage would hold up all requests.
    """

    RETRY_SECONDS = 1.0

    def __init__(self, address: str) -> None:
        self.address = address
        self._is_away = False
        self._retry: asyncio.Task[None] | None = None

    @property
    def is_silent(self) -> bool:
        return self._retry is not None and not self._retry.done()

    async def connect(self, *args: Any, **kwargs: Any) -> asyncpg.Connection:
        """Open a connection. Every failure is a DatabaseUnavailableError: asyncpg's errors have no common base."""
        if self.is_silent:
            raise DatabaseUnavailableError
        self._arguments = args, kwargs
        try:
            connection: asyncpg.Connection = await asyncpg.connect(*args, **kwargs)
        except (OSError, TimeoutError) as error:
            self.mark_silent(error)
            raise DatabaseUnavailableError from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:  # the server answers, with a refusal
            self._mark_away(error)
            raise DatabaseUnavailableError from error
        self._mark_back()
        return connection

    def mark_silent(self, error: BaseException) -> None:
        """Refuse connections until the server answers again; `error` is logged."""
        self._mark_away(error)
        if not self.is_silent:
            self._retry = asyncio.create_task(self._retry_until_answered())

    async def _retry_until_answered(self) -> None:
        args, kwargs = self._arguments
        while True:
            try:
                connection = await asyncpg.connect(*args, **kwargs)
                await connection.close(timeout=self.RETRY_SECONDS)
                self._mark_back()
                break
            except (OSError, TimeoutError):
                await asyncio.sleep(self.RETRY_SECONDS)
            except (asyncpg.PostgresError, asyncpg.InterfaceError):  # a refusal is an answer: requests may try again
                break

    def stop_retrying(self) -> None:
        if self._retry is not None:
            self._retry.cancel()

    def _mark_away(self, error: BaseException) -> None:
        if not self._is_away:
            logger.warning("database away", extra={"server": self.address, "error": f"{type(error).__name__}: {error}"})
        self._is_away = True

    def _mark_back(self) -> None:
        if self._is_away:
            logger.warning("database back", extra={"server": self.address})
        self._is_away = False

    def refuse_dead_connection(self, dbapi_connection: Any, *_: Any) -> None:
        """Make the pool replace a closed connection at checkout (event `checkout`); this needs no ping."""
        connection = dbapi_connection.driver_connection
        if self.is_silent:
            connection.terminate()  # close() would wait for an answer
        if connection.is_closed():
            raise DisconnectionError

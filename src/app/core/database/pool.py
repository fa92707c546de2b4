"""A connection pool that serves waiters in their order, and that no forgotten connection empties for good.

It overrides two private methods of SQLAlchemy's pool. Otherwise a newcomer may take the connection that a waiter was
woken for. Under load, some requests then wait until the pool timeout and fail.
`pyproject.toml` holds SQLAlchemy below the next minor version for this.
"""

import asyncio
import time
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only

from app.core.database.server import LENT_SECONDS


class FairPool(AsyncAdaptedQueuePool):
    """Its own slots bound the number of connections, so its `max_overflow` must be -1."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._slots = asyncio.Semaphore(self.size())
        self._lent = dict[ConnectionPoolEntry, float]()
        self._last_return = time.monotonic()

    @property
    def seconds_empty(self) -> float:
        """How long all connections have been lent and none came back; 0 while one is free."""
        return time.monotonic() - self._last_return if self._slots.locked() else 0

    def free_slot_at_end(self, connection: Any, record: ConnectionPoolEntry) -> None:
        """Free the slot of a lent connection that ends: whoever forgot it never gives it back (event `connect`)."""

        def ended(driver_connection: Any) -> None:
            if record.driver_connection is driver_connection and record in self._lent:
                record.info[LENT_SECONDS] = time.monotonic() - self._lent[record]
                self._free_slot(record)

        connection.driver_connection.add_termination_listener(ended)

    def _do_get(self) -> ConnectionPoolEntry:
        await_only(self._wait_for_slot())
        try:
            record = super()._do_get()
        except BaseException:
            self._slots.release()
            raise
        self._lent[record] = time.monotonic()
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        self._free_slot(record)

    def _free_slot(self, record: ConnectionPoolEntry) -> None:
        if self._lent.pop(record, None) is not None:
            self._last_return = time.monotonic()
            self._slots.release()

    async def _wait_for_slot(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise PoolTimeoutError("No connection has become free in time") from None

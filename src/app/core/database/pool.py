"""A connection pool that serves waiters in their order.

It overrides two private methods of SQLAlchemy's pool. Otherwise a newcomer may take the connection that a waiter was
woken for. Under load, some requests then wait until the pool timeout and fail.
`pyproject.toml` holds SQLAlchemy below the next minor version for this.
"""

import asyncio
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only


class FairPool(AsyncAdaptedQueuePool):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._slots = asyncio.Semaphore(self.size())

    def _do_get(self) -> ConnectionPoolEntry:
        await_only(self._wait_for_slot())
        try:
            return super()._do_get()
        except BaseException:
            self._slots.release()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        self._slots.release()

    async def _wait_for_slot(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise PoolTimeoutError("No connection has become free in time") from None

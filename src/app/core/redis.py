"""One Redis server in one role: every wait is bounded, and an outage is one line in the log."""

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic_settings import BaseSettings
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis

from app.core.exceptions import RedisUnavailableError

logger = logging.getLogger(__name__)

# An outage: no connection, no answer in time, or the answer that the server cannot serve us now. Any other answer, such
# as WRONGTYPE, is a fault of the code. redis-py counts LOADING and NOAUTH as ConnectionError.
_OUTAGES = (
    OSError, TimeoutError, exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse,
    exceptions.NoPermissionError, exceptions.OutOfMemoryError, exceptions.ReadOnlyError,
)  # fmt: skip
# Answers without a class of their own; Redis 6 has the code of a script's error inside the text.
_NOT_READY = re.compile(r"(?:^|-)(?:BUSY|CLUSTERDOWN|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY) ")


def connection_options(settings: BaseSettings, prefix: str, timeout: float) -> dict[str, Any]:
    """Return the arguments of a redis-py pool from the settings `{prefix}_HOST`, `{prefix}_PORT` and so on."""
    host, port, db, password = (getattr(settings, f"{prefix}_{name}") for name in ("HOST", "PORT", "DB", "PASSWORD"))
    return {
        "host": host,
        "port": port,
        "db": db,
        "password": password.get_secret_value() if password else None,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
    }


class RedisServer:
    """Use `client` inside `async with server.guard():`; it answers in time or raises RedisUnavailableError.

    After a failure no command is sent for `PAUSE` seconds, so that an outage costs one slow request a second.
    """

    MAX_CONNECTIONS = 64
    PAUSE = 1.0

    client: Redis

    def __init__(self, role: str, *, sends_many: bool = False) -> None:
        """`sends_many`: a guard covers several commands, whose timeouts must not add up."""
        self.role = role
        self._sends_many = sends_many
        self.longest_guard: float | None = None  # seconds after which a guard of several commands gives up
        self.is_open = False
        self.back_since = -math.inf  # when the server last came back after an outage, on the monotonic clock
        self.is_away = False
        self._next_try = -math.inf
        self._scripts: dict[str, Callable[..., Awaitable[Any]]] = {}

    def open(self, settings: BaseSettings, prefix: str, timeout: float) -> None:
        """Prepare the client; connections are made when they are needed. `timeout` is in seconds."""
        options = connection_options(settings, prefix, timeout)
        # Unlike ConnectionPool this one opens connections concurrently, which matters while the server is away.
        pool = BlockingConnectionPool(max_connections=self.MAX_CONNECTIONS, timeout=None, **options)
        self.client = Redis(connection_pool=pool)
        self.longest_guard = 2 * timeout if self._sends_many else None
        self._scripts.clear()
        self._slots = asyncio.Semaphore(self.MAX_CONNECTIONS)
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False
        await self.client.aclose(close_connection_pool=True)

    @asynccontextmanager
    async def guard(self, *, probe: bool = False) -> AsyncIterator[None]:
        """Bound the commands inside and report outages; `probe` sends them also during the pause.

        Waiting for a free slot is no outage: it means many requests, not a server that does not answer.
        """
        self._refuse_in_pause(probe)
        async with self._slots:
            self._refuse_in_pause(probe)
            self._next_try = time.monotonic() + self.PAUSE
            try:
                async with asyncio.timeout(self.longest_guard):
                    yield
            except (*_OUTAGES, exceptions.ResponseError) as error:
                if not isinstance(error, _OUTAGES) and not _NOT_READY.search(str(error)):
                    raise
                if not self.is_away:
                    reason = f"{type(error).__name__}: {error}"
                    logger.warning("redis server away", extra={"role": self.role, "error": reason})
                self.is_away = True
                self._next_try = time.monotonic() + self.PAUSE
                raise self._away() from error
            if self.is_away:
                logger.warning("redis server back", extra={"role": self.role})
                self.is_away = False
                self.back_since = time.monotonic()

    def _refuse_in_pause(self, probe: bool) -> None:
        if not self.is_open or (self.is_away and not probe and time.monotonic() < self._next_try):
            raise self._away()

    def _away(self) -> RedisUnavailableError:
        return RedisUnavailableError(f"The {self.role} server is away: try again")

    def script(self, source: str) -> Callable[..., Awaitable[Any]]:
        """The Lua script as a callable of (keys, args), sent to the server once."""
        return self._scripts.get(source) or self._scripts.setdefault(source, self.client.register_script(source))

    async def is_up(self) -> bool:
        try:
            async with self.guard(probe=True):
                await self.client.ping()
        except RedisUnavailableError:
            return False
        return True

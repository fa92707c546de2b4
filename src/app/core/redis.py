"""A Redis server in one of its roles: every wait is bounded, and an outage is one line in the log."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr
from redis.asyncio import BlockingConnectionPool, Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from app.core.exceptions import RedisUnavailableError

logger = logging.getLogger(__name__)


class RedisServer:
    """`client` inside `with server.guard():` either answers in time or raises `RedisUnavailableError`.

    After a failure the server is left alone for `PAUSE` seconds, so that an outage costs one slow request a second.
    """

    MAX_CONNECTIONS = 64
    PAUSE = 1.0

    client: Redis

    def __init__(self, role: str) -> None:
        self.role = role
        self.is_open = False
        self.back_since = -math.inf
        """When the server last came back after an outage, on the monotonic clock."""
        self._failed_at: float | None = None
        self._scripts: dict[str, AsyncScript] = {}

    def open(self, host: str, port: int, db: int, password: SecretStr | None, timeout: float) -> None:
        """Prepare the client; connections are made when they are needed. `timeout` is in seconds."""
        pool = BlockingConnectionPool(
            host=host,
            port=port,
            db=db,
            password=password.get_secret_value() if password else None,
            max_connections=self.MAX_CONNECTIONS,
            timeout=timeout,  # type: ignore[arg-type]  # fractions are fine, the annotation is too narrow
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
        )
        self.client = Redis(connection_pool=pool)
        self._scripts.clear()
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False
        await self.client.aclose(close_connection_pool=True)

    @property
    def is_paused(self) -> bool:
        return self._failed_at is not None and time.monotonic() < self._failed_at + self.PAUSE

    @contextmanager
    def guard(self, *, probe: bool = False) -> Iterator[None]:
        """Bound and report what is done inside; `probe` tries even while the server is left alone."""
        if self.is_paused and not probe:
            raise RedisUnavailableError(f"The {self.role} server is away: try again")
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            if self._failed_at is None:
                reason = f"{type(error).__name__}: {error}"
                logger.warning("redis server away", extra={"role": self.role, "error": reason})
            self._failed_at = time.monotonic()
            raise RedisUnavailableError(f"The {self.role} server is away: try again") from error
        if self._failed_at is not None:
            logger.warning("redis server back", extra={"role": self.role})
            self._failed_at = None
            self.back_since = time.monotonic()

    def script(self, source: str) -> AsyncScript:
        """The Lua script as a callable of (keys, args), sent to the server once."""
        return self._scripts.get(source) or self._scripts.setdefault(source, self.client.register_script(source))

    async def is_up(self) -> bool:
        try:
            with self.guard(probe=True):
                await self.client.ping()
        except RedisUnavailableError:
            return False
        return True

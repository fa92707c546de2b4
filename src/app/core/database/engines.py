"""The two engines of an application: for transactions, and for single read-only statements."""

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from pydantic import SecretBytes, SecretStr
from pydantic_core import to_jsonable_python
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from app.core.config import PostgresSettings, settings
from app.core.database.errors import translate_error
from app.core.database.pool import FairPool
from app.core.database.reader import Reader
from app.core.database.server import PostgresServer
from app.core.resources import getter

WRITER = "app"  # the `application_name` of the connections for transactions
DRAINED_SECONDS = 3


def database_url(settings: PostgresSettings, server: str | None = None) -> URL:
    """The address of the database; a server that starts with `/` is a socket directory, as in libpq."""
    return URL.create(
        "postgresql+asyncpg",
        username=settings.POSTGRES_USER,
        password=settings.POSTGRES_PASSWORD.get_secret_value(),
        host=server or settings.POSTGRES_SERVER,
        port=settings.POSTGRES_PORT,
        database=settings.POSTGRES_DB,
    )


def _to_json(value: Any) -> Any:
    """Encode what Pydantic can encode but the standard library cannot, except secrets."""
    if isinstance(value, SecretStr | SecretBytes):
        raise TypeError("a secret in a JSON column: hash it, or give its get_secret_value()")
    return to_jsonable_python(value)


class Engines:
    """The connection pools of one application; connections are opened when they are needed."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings = settings
        self.server = PostgresServer(f"{settings.POSTGRES_SERVER}:{settings.POSTGRES_PORT}")
        self.replica = self.server
        if settings.POSTGRES_REPLICA_SERVER:
            self.replica = PostgresServer(f"{settings.POSTGRES_REPLICA_SERVER}:{settings.POSTGRES_PORT}")
        self.write = self._create_writing_engine(settings.POSTGRES_STATEMENT_TIMEOUT)
        self._writing = {settings.POSTGRES_STATEMENT_TIMEOUT: self.write}
        self.read = self._create_engine(
            settings.POSTGRES_REPLICA_SERVER or settings.POSTGRES_SERVER,
            self.replica,
            settings.POSTGRES_STATEMENT_TIMEOUT,
            {"application_name": "app reader", "default_transaction_read_only": "on"},
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
        )
        self.reader = Reader(self.read, self.replica, uses_prepared=settings.POSTGRES_PREPARED_READS)
        self.background = set[asyncio.Task[None]]()
        """Tasks that use the engines without a request; they are cancelled by `close`."""

    def session(self, statement_timeout: float | None = None) -> AsyncSession:
        """Open a session. One with a statement timeout of its own, in seconds, has a connection of another pool.

        After `close`, a session refuses all work: it would borrow a connection that nobody gives back.
        """
        seconds = statement_timeout or self.settings.POSTGRES_STATEMENT_TIMEOUT
        if seconds not in self._writing:
            self._writing[seconds] = self._create_writing_engine(seconds)
        return AsyncSession(self._writing[seconds], expire_on_commit=False, close_resets_only=False)

    @property
    def is_drained(self) -> bool:
        """Whether transactions have held every connection of a pool for seconds, and gave none back."""
        engines = (*self._writing.values(), self.read)
        return any(cast(FairPool, engine.pool).seconds_empty > DRAINED_SECONDS for engine in engines)

    def _create_writing_engine(self, statement_timeout: float) -> AsyncEngine:
        host, server_settings = self.settings.POSTGRES_SERVER, {"application_name": WRITER}
        return self._create_engine(host, self.server, statement_timeout, server_settings)

    def _create_engine(
        self,
        host: str,
        server: PostgresServer,
        statement_timeout: float,
        server_settings: Mapping[str, str],
        **options: Any,
    ) -> AsyncEngine:
        settings = self.settings
        seconds = {
            "statement_timeout": statement_timeout,
            "lock_timeout": settings.POSTGRES_LOCK_TIMEOUT,
            "idle_in_transaction_session_timeout": settings.POSTGRES_IDLE_TIMEOUT,
        }
        engine = create_async_engine(
            database_url(settings, host),
            poolclass=FairPool,
            pool_size=settings.POSTGRES_POOL_SIZE,
            max_overflow=-1,  # the pool itself bounds them
            pool_timeout=settings.POSTGRES_POOL_TIMEOUT,
            json_serializer=partial(json.dumps, default=_to_json),
            hide_parameters=True,  # a password's hash may be among them, and errors are logged
            connect_args={
                "async_creator_fn": server.connect,
                "timeout": settings.POSTGRES_CONNECT_TIMEOUT,
                # The server ends a statement at its timeout; the client's is longer, for a server that is gone.
                "command_timeout": statement_timeout + 0.25,
                "statement_cache_size": settings.POSTGRES_STATEMENT_CACHE_SIZE,
                "prepared_statement_cache_size": settings.POSTGRES_STATEMENT_CACHE_SIZE,
                "server_settings": {
                    "timezone": "UTC",
                    "jit": "off",  # compiling takes longer than any statement here
                    **{name: str(int(value * 1000)) for name, value in seconds.items()},
                    **server_settings,
                },
            },
            **options,
        )
        translate = partial(translate_error, server, settings.POSTGRES_IDLE_TIMEOUT)
        event.listen(engine.sync_engine, "connect", cast(FairPool, engine.pool).free_slot_at_end)
        event.listen(engine.sync_engine, "checkout", server.refuse_dead_connection)
        event.listen(engine.sync_engine, "handle_error", translate)
        return engine

    async def close(self) -> None:
        """Close the connections, or drop them when the server does not answer."""
        for server in (self.server, self.replica):
            server.stop_retrying()
        for task in self.background:
            task.cancel()
        for engine in (*self._writing.values(), self.read):
            try:
                async with asyncio.timeout(self.settings.POSTGRES_CONNECT_TIMEOUT):
                    await engine.dispose()
            except TimeoutError:
                await engine.dispose(close=False)


engines_of = getter(Engines)
default_engines = Engines(settings)
"""The engines of scripts, jobs and the application that is built with the default settings."""

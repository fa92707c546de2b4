"""The two engines of an application: for transactions, and for single read-only statements."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from app.core.config import PostgresSettings, settings
from app.core.database.errors import translate_error
from app.core.database.pool import FairPool
from app.core.database.reader import Reader
from app.core.database.server import PostgresServer
from app.core.resources import getter

WRITER = "app"  # the `application_name` of the connections for transactions


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


class Engines:
    """The connection pools of one application; connections are opened when they are needed."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings = settings
        self.server = PostgresServer(f"{settings.POSTGRES_SERVER}:{settings.POSTGRES_PORT}")
        self.replica = self.server
        if settings.POSTGRES_REPLICA_SERVER:
            self.replica = PostgresServer(f"{settings.POSTGRES_REPLICA_SERVER}:{settings.POSTGRES_PORT}")
        self.write = self._create_engine(settings.POSTGRES_SERVER, self.server, {"application_name": WRITER})
        self.read = self._create_engine(
            settings.POSTGRES_REPLICA_SERVER or settings.POSTGRES_SERVER,
            self.replica,
            {"application_name": "app reader", "default_transaction_read_only": "on"},
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
        )
        self.session = async_sessionmaker(self.write, expire_on_commit=False)
        self.reader = Reader(self.read, self.replica, uses_prepared=settings.POSTGRES_PREPARED_READS)
        self.background = set[asyncio.Task[None]]()
        """Tasks that use the engines without a request; they are cancelled by `close`."""

    def _create_engine(
        self, host: str, server: PostgresServer, server_settings: Mapping[str, str], **options: Any
    ) -> AsyncEngine:
        settings = self.settings
        seconds = {
            "statement_timeout": settings.POSTGRES_STATEMENT_TIMEOUT,
            "lock_timeout": settings.POSTGRES_LOCK_TIMEOUT,
            "idle_in_transaction_session_timeout": 2 * settings.POSTGRES_STATEMENT_TIMEOUT,
        }
        engine = create_async_engine(
            database_url(settings, host),
            poolclass=FairPool,
            pool_size=settings.POSTGRES_POOL_SIZE,
            max_overflow=0,
            pool_timeout=settings.POSTGRES_POOL_TIMEOUT,
            hide_parameters=True,  # a password's hash may be among them, and errors are logged
            connect_args={
                "async_creator_fn": server.connect,
                "timeout": settings.POSTGRES_CONNECT_TIMEOUT,
                # The server ends a statement at its timeout; the client's is longer, for a server that is gone.
                "command_timeout": settings.POSTGRES_STATEMENT_TIMEOUT + 0.25,
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
        event.listen(engine.sync_engine, "checkout", server.refuse_dead_connection)
        event.listen(engine.sync_engine, "handle_error", partial(translate_error, server))
        return engine

    async def close(self) -> None:
        """Close the connections, or drop them when the server does not answer."""
        for server in (self.server, self.replica):
            server.stop_retrying()
        for task in self.background:
            task.cancel()
        for engine in (self.write, self.read):
            try:
                async with asyncio.timeout(self.settings.POSTGRES_CONNECT_TIMEOUT):
                    await engine.dispose()
            except TimeoutError:
                await engine.dispose(close=False)


engines_of = getter(Engines)
default_engines = Engines(settings)
"""The engines of scripts, jobs and the application that is built with the default settings."""

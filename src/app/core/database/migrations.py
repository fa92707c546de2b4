"""Bring the database to the newest revision from inside a running process."""

import asyncio
import logging
import signal

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.core.database.engines import Engines, database_url, default_engines
from app.core.exceptions import DatabaseUnavailableError
from app.core.settings_group import SRC

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1.0


async def migrate(engines: Engines = default_engines) -> None:
    """Run `alembic upgrade head`; several processes may do so at once, `migrations/env.py` takes a lock."""
    # Without the engines' statement and lock timeouts: a migration may take long.
    engine = create_async_engine(
        database_url(engines.settings),
        poolclass=NullPool,
        connect_args={"async_creator_fn": engines.server.connect, "timeout": engines.settings.POSTGRES_CONNECT_TIMEOUT},
    )
    async with engine.connect() as connection:
        await connection.run_sync(_upgrade)
        await connection.commit()


def _upgrade(connection: Connection) -> None:
    config = Config(SRC / "alembic.ini")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def migrate_at_start(engines: Engines) -> None:
    """Migrate now or, while the database is away, as soon as it answers. A migration that fails ends the process."""
    try:
        await migrate(engines)
    except DatabaseUnavailableError:
        engines.background.add(asyncio.create_task(_migrate_when_reachable(engines)))


async def _migrate_when_reachable(engines: Engines) -> None:
    while True:
        await asyncio.sleep(RETRY_SECONDS)
        try:
            return await migrate(engines)
        except DatabaseUnavailableError:
            pass
        except Exception:  # a migration is the user's code and may raise any error; all end the process
            logger.exception("migrations failed")
            return signal.raise_signal(signal.SIGTERM)

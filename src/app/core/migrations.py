"""Bring the database to the newest revision from inside a running process."""

import asyncio
import logging

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.core.config import SRC
from app.core.database import connect, database_url, read_engine
from app.core.exceptions import DatabaseUnavailableError

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1.0


async def migrate() -> None:
    """Run `alembic upgrade head`; several processes may do so at once, `migrations/env.py` takes a lock."""
    engine = create_async_engine(database_url(), poolclass=NullPool, connect_args={"async_creator_fn": connect})
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade)
            await connection.commit()
    finally:
        await engine.dispose()


async def create_missing_tables() -> None:
    """Migrate a database that no migration has touched yet; leave any other as it is."""
    async with read_engine.connect() as connection:
        is_empty = await connection.scalar(text("SELECT to_regclass('alembic_version') IS NULL"))
    await read_engine.dispose()
    if is_empty:
        await migrate()


def _upgrade(connection: Connection) -> None:
    config = Config(SRC / "alembic.ini")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def migrate_when_reachable() -> None:
    """Migrate as soon as the database answers."""
    while True:
        try:
            return await migrate()
        except DatabaseUnavailableError:
            logger.warning("migrations wait for the database", extra={"retry_seconds": RETRY_SECONDS})
            await asyncio.sleep(RETRY_SECONDS)

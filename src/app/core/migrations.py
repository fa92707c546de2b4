"""Bring the database to the newest revision from inside a running process."""

import asyncio
import logging

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.core.config import SRC, settings
from app.core.database import Base, database_url, engine
from app.core.exceptions import DatabaseUnavailableError
from app.core.postgres import connect

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1.0
_CONNECT = {"async_creator_fn": connect, "timeout": settings.POSTGRES_CONNECT_TIMEOUT}


async def migrate() -> None:
    """Run `alembic upgrade head`; several processes may do so at once, `migrations/env.py` takes a lock."""
    patient_engine = create_async_engine(database_url(), poolclass=NullPool, connect_args=_CONNECT)
    async with patient_engine.connect() as connection:
        await connection.run_sync(_upgrade)
        await connection.commit()


async def create_missing_tables() -> None:
    """Migrate a database that has none of our tables; leave any other as it is."""
    async with engine.connect() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    if Base.metadata.tables.keys().isdisjoint(tables):
        await migrate()


def _upgrade(connection: Connection) -> None:
    config = Config(SRC / "alembic.ini")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def migrate_when_reachable() -> None:
    """Migrate as soon as the database answers. A mistake in a migration is logged until it is mended."""
    while True:
        try:
            return await migrate()
        except DatabaseUnavailableError:
            pass
        except Exception:  # whatever a migration raises: this task must live until it is mended
            logger.exception("migrations failed")
        await asyncio.sleep(RETRY_SECONDS)

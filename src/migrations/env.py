"""How Alembic reaches the database and the models; every model under `app/models` is found by itself."""

import asyncio
from logging.config import fileConfig
from typing import Any

from alembic import context
from sqlalchemy import Connection, UniqueConstraint, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import app.models  # noqa: F401  (fills the metadata)
from app.core.config import settings
from app.core.database import Base, database_url
from migrations.enums import manage_enums, render_item

LOCK = 7_018_503_412_021  # any number, but the same in every process


def include_object(item: Any, _name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:
    """Leave out unique constraints on the primary key: PostgreSQL keeps none, so they would differ for ever."""
    return not (
        kind == "unique_constraint"
        and isinstance(item, UniqueConstraint)
        and {*item.columns.keys()} == {*item.table.primary_key.columns.keys()}
    )


def run(connection: Connection | None) -> None:
    context.configure(
        connection=connection,
        url=None if connection else database_url(settings).render_as_string(hide_password=False),
        target_metadata=Base.metadata,
        include_object=include_object,
        process_revision_directives=manage_enums,
        render_item=render_item,
        transaction_per_migration=False,
        literal_binds=connection is None,
    )
    with context.begin_transaction():
        if connection:
            # Held until the transaction ends: of several processes that start together, one migrates.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        context.run_migrations()


async def connect_and_run() -> None:
    engine = create_async_engine(database_url(settings), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    run(None)
elif "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    fileConfig(context.config.config_file_name or "", disable_existing_loggers=False)
    asyncio.run(connect_and_run())

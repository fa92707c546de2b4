"""The runner for the scripts of this folder. It prints the outcome in one line; the exit status tells success."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable

from sqlalchemy import inspect

from app.core.database import Base, default_engines
from app.core.database.migrations import migrate
from app.core.exceptions import AppError, DatabaseUnavailableError


class ScriptError(Exception):
    """A failure of a script. The message gives the reason and the remedy."""


async def create_missing_tables() -> None:
    """Migrate a database that has none of our tables; leave any other as it is."""
    async with default_engines.write.connect() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    if Base.metadata.tables.keys().isdisjoint(tables):
        await migrate()


def run(script: Callable[[], Awaitable[str]]) -> int:
    """Run a script on a database that has its tables; return its exit status."""

    async def run_and_close() -> str:
        try:
            await create_missing_tables()
            return await script()
        finally:
            await default_engines.close()

    logging.getLogger("app").addHandler(logging.NullHandler())  # errors are printed once, below
    try:
        print(asyncio.run(run_and_close()))
    except DatabaseUnavailableError as error:
        print(f"Error: the database cannot be used: {error.__cause__}; see POSTGRES_*", file=sys.stderr)
        return 1
    except (ScriptError, AppError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0

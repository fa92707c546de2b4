"""The runner for the scripts of this folder. It prints the outcome in one line; the exit status tells success."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable

from app.core.database import default_engines
from app.core.database.migrations import create_missing_tables
from app.core.exceptions import AppError, DatabaseUnavailableError


class ScriptError(Exception):
    """A failure of a script. The message gives the reason and the remedy."""


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

"""A database with many rows, and the tables that a statement would read whole there."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy import event

from app.core.database import default_engines
from app.core.exceptions import NotFoundError
from tests.environment import SPECIMEN_TEMPLATE, connected
from tests.fixtures import own_database

USERS = """
INSERT INTO "user" (name, username, email, hashed_password, is_superuser, uuid, created_at, is_deleted)
SELECT 'User ' || n, 'user' || n, 'user' || n || '@example.com', repeat('x', 75), n % 30000 = 1,
       gen_random_uuid(), now(), n % 50 = 0
FROM generate_series(1, 100000) n;
"""
UNMARKED = """
SELECT EXISTS (
  SELECT FROM pg_class
  WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relpages > 100 AND relallvisible < relpages
)
"""

Connection: TypeAlias = "asyncpg.Connection[Any]"
Statement = tuple[str, Sequence[Any]]


@asynccontextmanager
async def large_database(fill: str) -> AsyncIterator[Connection]:
    """Open a connection to a database with 100,000 users and the rows that `fill` inserts."""
    async with own_database(SPECIMEN_TEMPLATE) as name, connected(name) as connection:
        connection.add_log_listener(lambda *_: None)  # hide notices about replaced triggers
        await connection.execute("SET client_min_messages = warning")
        await connection.execute(USERS + fill)
        await connection.execute("VACUUM ANALYZE")
        async with asyncio.timeout(30):
            # A concurrent autovacuum of another table keeps VACUUM from marking pages as all-visible. Without the
            # marks, the planner estimates index scans as more expensive. Repeat until all are marked.
            while await connection.fetchval(UNMARKED):
                await connection.execute("VACUUM")
        yield connection


@contextmanager
def recording() -> Iterator[list[Statement]]:
    """Record the statements of both engines with their values."""
    sent: list[Statement] = []

    def log(query: Any) -> None:
        if query.args:
            sent.append((query.query, query.args))

    def checkout(connection: Any, *_: Any) -> None:
        connection.driver_connection.add_query_logger(log)

    def checkin(connection: Any, *_: Any) -> None:
        connection.driver_connection.remove_query_logger(log)

    def executed(_connection: Any, _cursor: Any, sql: str, values: Sequence[Any], *_: Any) -> None:
        sent.append((sql, values))

    listeners: list[tuple[str, Callable[..., None]]] = [
        ("checkout", checkout),
        ("checkin", checkin),
        ("after_cursor_execute", executed),
    ]
    for each in (default_engines.write, default_engines.read):
        for name, listener in listeners:
            event.listen(each.sync_engine, name, listener)
    try:
        yield sent
    finally:
        for each in (default_engines.write, default_engines.read):
            for name, listener in listeners:
                event.remove(each.sync_engine, name, listener)


async def statements_of(run: Callable[[], Awaitable[Any]]) -> list[Statement]:
    """Return the statements that a call runs, each with its values."""
    with recording() as sent:
        with suppress(NotFoundError):  # only the large database has the rows
            await run()
        await asyncio.sleep(0)  # the driver logs in the next iteration of the loop
    assert sent
    return sent


async def tables_read_whole(connection: Connection, sql: str, values: Sequence[Any]) -> set[str]:
    """Return the large tables that the custom or the generic plan reads from the beginning, by an index or not.

    A scan without a filter of an index that holds only the wanted rows does not count: pages are found that way.
    """
    custom = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *values)
    await connection.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE any_values AS {sql}")
    nulls = ", ".join("NULL" for _ in values)
    generic = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE any_values({nulls})")
    await connection.execute("DEALLOCATE any_values; RESET plan_cache_mode")
    found = {name for plan in (custom, generic) for name in _scanned(json.loads(plan))}
    large = await connection.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples > 10000")
    return found & {row["relname"] for row in large}


def _scanned(plan: Any) -> Iterator[str]:
    if isinstance(plan, dict):
        node = plan.get("Node Type", "")
        passes_by = node.startswith("Index") and "Filter" in plan and "Index Cond" not in plan
        if node == "Seq Scan" or passes_by:
            yield plan["Relation Name"]
        plan = list(plan.values())
    if isinstance(plan, list):
        for part in plan:
            yield from _scanned(part)

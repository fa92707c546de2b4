"""The application's statements on large tables: each finds its rows by an index."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import event

from app.core.database import Reader, default_engines, transaction
from app.core.exceptions import NotFoundError
from app.core.security import RefreshToken
from app.crud.crud_password_resets import crud_password_resets
from app.crud.crud_posts import crud_posts
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_tier import crud_tiers
from app.crud.crud_users import crud_users
from app.schemas.post import PostRead, PostUpdate
from app.schemas.user import UserRead, UserReadOwn, UserUpdate
from tests.environment import connected
from tests.factories import CLIENT
from tests.fixtures import own_database

PROLIFIC = 5
"""The id of the author of the last third of the posts: a scan for the first of these passes all other posts."""
FILL = """
INSERT INTO tier (name, created_at) SELECT 'tier' || n, now() FROM generate_series(1, 50) n;
INSERT INTO rate_limit (tier_id, name, path, "limit", period, created_at)
SELECT tier.id, 'limit' || tier.id || ' ' || n, 'path' || n, 5, 60, now() FROM tier, generate_series(1, 40) n;
INSERT INTO "user" (name, username, email, hashed_password, tier_id, is_superuser, uuid, created_at, is_deleted)
SELECT 'User ' || n, 'user' || n, 'user' || n || '@example.com', repeat('x', 75), 1 + n % 50, n % 30000 = 1,
       gen_random_uuid(), now(), n % 50 = 0
FROM generate_series(1, 100000) n;
INSERT INTO session (user_id, refresh_hash, expires_at, user_agent, address, created_at, last_used_at, uuid)
SELECT n, repeat('x', 64), now() + (n % 1000 - 1) * interval '1 hour', 'Browser', '192.0.2.1', now(), now(),
       gen_random_uuid()
FROM generate_series(1, 100000) n;
INSERT INTO password_reset (user_id, token_hash, email, expires_at)
SELECT n, 'hash' || n, 'user' || n || '@example.com', now() + (n % 1000 - 1) * interval '1 minute'
FROM generate_series(1, 100000) n;
ALTER TABLE post DISABLE TRIGGER ALL;
INSERT INTO post (created_by_user_id, title, text, uuid, created_at, is_deleted)
SELECT CASE WHEN n > 200000 THEN 5 ELSE 1 + n % 50000 END, 'Post ' || n, 'Some text.',
       gen_random_uuid(), now(), n % 50 = 0
FROM generate_series(1, 300000) n;
ALTER TABLE post ENABLE TRIGGER ALL;
SELECT keep_row_count('post', 'created_by_user_id');
"""
UNMARKED = """
SELECT EXISTS (
  SELECT FROM pg_class
  WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relpages > 100 AND relallvisible < relpages
)
"""

Connection: TypeAlias = "asyncpg.Connection[Any]"
Statement = tuple[str, Sequence[Any]]


@pytest.fixture(scope="module")
async def large() -> AsyncIterator[Connection]:
    """A connection to a database with many rows."""
    async with own_database() as name, connected(name) as connection:
        connection.add_log_listener(lambda *_: None)  # hide notices about replaced triggers
        await connection.execute("SET client_min_messages = warning")
        await connection.execute(FILL)
        await connection.execute("VACUUM ANALYZE")
        async with asyncio.timeout(30):
            # A concurrent autovacuum of another table keeps VACUUM from marking pages as all-visible. Without the
            # marks, the planner estimates index scans as more expensive. Repeat until all are marked.
            while await connection.fetchval(UNMARKED):
                await connection.execute("VACUUM")
        yield connection


# -------- the application's statements, with values for the large database --------

TOKEN = RefreshToken(UUID(int=7), "x")
LIFETIME = timedelta(days=1)
OWN = {"created_by_user_id": crud_users.id_of(f"user{PROLIFIC}"), "is_deleted": False}
OTHER = {"created_by_user_id": crud_users.id_of("user7"), "is_deleted": False}
OWN_BY_ID = {"created_by_user_id": PROLIFIC, "is_deleted": False}
READS: dict[str, Callable[[Reader], Awaitable[Any]]] = {
    "sign-in by name": lambda db: crud_users.get_credentials(db, "user5"),
    "sign-in by address": lambda db: crud_users.get_credentials(db, "user5@example.com"),
    "caller": lambda db: crud_users.get_caller(db, UUID(int=7), "path1"),
    "caller in a session": lambda db: crud_users.get_caller(db, UUID(int=7), "path1", UUID(int=8)),
    "user": lambda db: crud_users.get(db, UserRead, username="user5", is_deleted=False),
    "whether there is a user": lambda db: crud_users.exists(db, username="user5"),
    "users, first page": lambda db: crud_users.get_multi(db, 0, 10, UserRead, is_deleted=False),
    "users, next page": lambda db: crud_users.get_multi(db, 10, 10, UserRead, is_deleted=False),
    "users, distant page": lambda db: crud_users.get_multi(db, 90_000, 10, UserRead, is_deleted=False),
    "users, page after a key": lambda db: crud_users.get_multi(db, 0, 10, UserRead, after=50_000, is_deleted=False),
    "users, how many": lambda db: crud_users.count(db, is_deleted=False),
    "posts, first page": lambda db: crud_posts.get_multi(db, 0, 10, PostRead, **OWN),
    "posts, first page of few": lambda db: crud_posts.get_multi(db, 0, 10, PostRead, **OTHER),
    "posts, distant page": lambda db: crud_posts.get_multi(db, 50_000, 10, PostRead, **OWN),
    "posts, page after a key": lambda db: crud_posts.get_multi(db, 0, 10, PostRead, after=250_000, **OWN),
    "posts, page after a key of few": lambda db: crud_posts.get_multi(db, 0, 10, PostRead, after=1000, **OTHER),
    "posts, how many": lambda db: crud_posts.count(db, **OWN),
    "posts by id, first page": lambda db: crud_posts.get_multi(db, 0, 10, PostRead, **OWN_BY_ID),
    "posts by id, distant page": lambda db: crud_posts.get_multi(db, 50_000, 10, PostRead, **OWN_BY_ID),
    "post": lambda db: crud_posts.get(db, PostRead, id=70_000, **OWN),
    "tiers": crud_tiers.get_multi,
    "tier": lambda db: crud_tiers.get(db, name="tier5"),
    "rate limits": lambda db: crud_rate_limits.get_multi(db, tier_id=crud_tiers.id_of("tier5")),
    "rate limits of a user": lambda db: crud_users.get_with_rate_limits(db, "user5"),
    "sessions": lambda db: crud_sessions.get_active(db, 5, 0, 10),
}
WRITES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "write by the name of an owner": lambda db: crud_posts.update(db, {"title": "x"}, id=5, **OTHER),
    "write by the name of a tier": lambda db: crud_rate_limits.delete(db, id=5, tier_id=crud_tiers.id_of("tier5")),
    "lock a password": lambda db: crud_users.lock_password(db, 5),
    "change a password": lambda db: crud_users.change_password(db, 5, "old", "new"),
    "reset a password": lambda db: crud_users.reset_password(db, "hash5", "new"),
    "change a user": lambda db: crud_users.update_one(
        db, UserUpdate(name="New"), UserReadOwn, id=5, username="user5", is_deleted=False
    ),
    "change a user's tier": lambda db: crud_users.update_one(
        db, {"tier_id": None}, UserReadOwn, username="user5", is_deleted=False
    ),
    "take deleted users out of a tier": lambda db: crud_users.update(db, {"tier_id": None}, tier_id=7, is_deleted=True),
    "lock a user who is to be deleted": lambda db: crud_users.lock_for_deletion(db, "user5"),
    "delete a user": lambda db: crud_users.delete(db, id=5),
    "really delete a user": lambda db: crud_users.db_delete(db, id=5),
    "change a post": lambda db: crud_posts.update_one(
        db, PostUpdate(title="New"), PostRead, id=5, created_by_user_id=5, is_deleted=False
    ),
    "delete a post": lambda db: crud_posts.delete(db, id=5, created_by_user_id=5),
    "really delete a post": lambda db: crud_posts.db_delete(db, id=5, created_by_user_id=5),
    "refresh a session": lambda db: crud_sessions.refresh(db, TOKEN, TOKEN, CLIENT, LIFETIME, LIFETIME),
    "end a session": lambda db: crud_sessions.end(db, UUID(int=7)),
    "end one of one's sessions": lambda db: crud_sessions.db_delete(db, id=7, user_id=5),
    "end all sessions but one": lambda db: crud_sessions.end_all(db, 5, except_id=7),
    "end all sessions and revoke a reset": lambda db: crud_sessions.end_all_and_revoke_reset(db, 5),
    "purge sessions": lambda db: crud_sessions.purge(db, 100),
    "purge password resets": lambda db: crud_password_resets.purge(db, 100),
    "delete a tier": lambda db: crud_tiers.delete(db, id=7, name="tier7"),
    "delete a rate limit": lambda db: crud_rate_limits.delete(db, id=7, tier_id=7),
}


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


async def statements_of(name: str) -> list[Statement]:
    with recording() as sent:
        if name in READS:
            with suppress(NotFoundError):  # only the large database has the rows
                await READS[name](default_engines.reader)
        else:
            async with transaction() as db:
                await WRITES[name](db)
        await asyncio.sleep(0)  # the driver logs in the next iteration of the loop
    assert sent
    return sent


# The lookups that PostgreSQL itself makes for foreign keys on the deletion of a row, as in `ri_triggers.c`.
REFERRING = """
SELECT format('%s ONLY %s WHERE $1 = %I%s', CASE confdeltype WHEN 'c' THEN 'DELETE FROM' ELSE 'SELECT 1 FROM' END,
              conrelid::regclass, attname, CASE confdeltype WHEN 'c' THEN '' ELSE ' FOR KEY SHARE' END)
FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1] WHERE contype = 'f'
"""


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


class TestPlans:
    @pytest.mark.parametrize("name", [*READS, *WRITES])
    async def test_no_large_table_is_read_whole(self, large: Connection, name: str) -> None:
        for sql, values in await statements_of(name):
            assert await tables_read_whole(large, sql, values) == set(), sql

    async def test_no_large_table_is_read_whole_when_a_referenced_row_is_deleted(self, large: Connection) -> None:
        lookups = [row["format"] for row in await large.fetch(REFERRING)]
        assert len(lookups) == 5
        for sql in lookups:
            assert await tables_read_whole(large, sql, [7]) == set(), sql

    @pytest.mark.parametrize(
        ("index", "name", "table"),
        [
            ("ix_post_living", "posts by id, first page", "post"),
            ("ix_user_living", "users, distant page", "user"),
            ("ix_user_superuser", "lock a user who is to be deleted", "user"),
            ("ix_session_user_id", "sessions", "session"),
        ],
    )
    async def test_large_tables_are_read_whole_without_the_indexes(
        self, large: Connection, index: str, name: str, table: str
    ) -> None:
        [(sql, values)] = await statements_of(name)
        transaction = large.transaction()
        await transaction.start()
        try:
            await large.execute(f"DROP INDEX {index}")
            assert await tables_read_whole(large, sql, values) == {table}
        finally:
            await transaction.rollback()

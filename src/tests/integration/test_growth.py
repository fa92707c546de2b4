"""The application's statements on large tables: each finds its rows by an index."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from app.core.database import Reader, default_engines, transaction
from app.core.security import RefreshToken
from app.crud.crud_password_resets import crud_password_resets
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_users import crud_users
from app.schemas.user import UserRead, UserReadOwn, UserUpdate
from tests.factories import CLIENT
from tests.integration.large import Connection, large_database, statements_of, tables_read_whole
from tests.specimen.crud import crud_drawers, crud_moths, crud_slips
from tests.specimen.schemas import MothRead, MothUpdate

pytestmark = pytest.mark.drill

PROLIFIC = 5
"""The id of the author of the last third of the moths: a scan for the first of these passes all other moths."""
FILL = """
INSERT INTO drawer (name, created_at) SELECT 'drawer' || n, now() FROM generate_series(1, 50) n;
INSERT INTO slip (drawer_id, name, path, "limit", period, created_at)
SELECT drawer.id, 'limit' || drawer.id || ' ' || n, 'path' || n, 5, 60, now() FROM drawer, generate_series(1, 40) n;
INSERT INTO session (user_id, refresh_hash, expires_at, user_agent, address, created_at, last_used_at, uuid)
SELECT n, repeat('x', 64), now() + (n % 1000 - 1) * interval '1 hour', 'Browser', '192.0.2.1', now(), now(),
       gen_random_uuid()
FROM generate_series(1, 100000) n;
INSERT INTO password_reset (user_id, token_hash, email, expires_at)
SELECT n, 'hash' || n, 'user' || n || '@example.com', now() + (n % 1000 - 1) * interval '1 minute'
FROM generate_series(1, 100000) n;
ALTER TABLE moth DISABLE TRIGGER ALL;
INSERT INTO moth (created_by_user_id, title, text, uuid, created_at, is_deleted)
SELECT CASE WHEN n > 200000 THEN 5 ELSE 1 + n % 50000 END, 'Moth ' || n, 'Some text.',
       gen_random_uuid(), now(), n % 50 = 0
FROM generate_series(1, 300000) n;
ALTER TABLE moth ENABLE TRIGGER ALL;
SELECT keep_row_count('moth', 'created_by_user_id');
"""

# -------- the application's statements, with values for the large database --------

TOKEN = RefreshToken(UUID(int=7), "x")
LIFETIME = timedelta(days=1)
OWN = {"created_by_user_id": crud_users.id_of(f"user{PROLIFIC}"), "is_deleted": False}
OTHER = {"created_by_user_id": crud_users.id_of("user7"), "is_deleted": False}
OWN_BY_ID = {"created_by_user_id": PROLIFIC, "is_deleted": False}
READS: dict[str, Callable[[Reader], Awaitable[Any]]] = {
    "sign-in by name": lambda db: crud_users.get_credentials(db, "user5"),
    "sign-in by address": lambda db: crud_users.get_credentials(db, "user5@example.com"),
    "caller": lambda db: crud_users.get_caller(db, UUID(int=7)),
    "caller in a session": lambda db: crud_users.get_caller(db, UUID(int=7), UUID(int=8)),
    "user": lambda db: crud_users.get(db, UserRead, username="user5", is_deleted=False),
    "whether there is a user": lambda db: crud_users.exists(db, username="user5"),
    "users, first page": lambda db: crud_users.get_multi(db, 0, 10, UserRead, is_deleted=False),
    "users, next page": lambda db: crud_users.get_multi(db, 10, 10, UserRead, is_deleted=False),
    "users, distant page": lambda db: crud_users.get_multi(db, 90_000, 10, UserRead, is_deleted=False),
    "users, page after a key": lambda db: crud_users.get_multi(db, 0, 10, UserRead, after=50_000, is_deleted=False),
    "users, how many": lambda db: crud_users.count(db, is_deleted=False),
    "moths, first page": lambda db: crud_moths.get_multi(db, 0, 10, MothRead, **OWN),
    "moths, first page of few": lambda db: crud_moths.get_multi(db, 0, 10, MothRead, **OTHER),
    "moths, distant page": lambda db: crud_moths.get_multi(db, 50_000, 10, MothRead, **OWN),
    "moths, page after a key": lambda db: crud_moths.get_multi(db, 0, 10, MothRead, after=250_000, **OWN),
    "moths, page after a key of few": lambda db: crud_moths.get_multi(db, 0, 10, MothRead, after=1000, **OTHER),
    "moths, how many": lambda db: crud_moths.count(db, **OWN),
    "moths by id, first page": lambda db: crud_moths.get_multi(db, 0, 10, MothRead, **OWN_BY_ID),
    "moths by id, distant page": lambda db: crud_moths.get_multi(db, 50_000, 10, MothRead, **OWN_BY_ID),
    "moth": lambda db: crud_moths.get(db, MothRead, id=70_000, **OWN),
    "drawers": crud_drawers.get_multi,
    "drawer": lambda db: crud_drawers.get(db, name="drawer5"),
    "slips": lambda db: crud_slips.get_multi(db, drawer_id=crud_drawers.id_of("drawer5")),
    "sessions": lambda db: crud_sessions.get_active(db, 5, 0, 10),
}
WRITES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "write by the name of an owner": lambda db: crud_moths.update(db, {"title": "x"}, id=5, **OTHER),
    "write by the name of a drawer": lambda db: crud_slips.delete(db, id=5, drawer_id=crud_drawers.id_of("drawer5")),
    "lock a password": lambda db: crud_users.lock_password(db, 5),
    "change a password": lambda db: crud_users.change_password(db, 5, "old", "new"),
    "reset a password": lambda db: crud_users.reset_password(db, "hash5", "new"),
    "change a user": lambda db: crud_users.update_one(
        db, UserUpdate(name="New"), UserReadOwn, id=5, username="user5", is_deleted=False
    ),
    "lock a user who is to be deleted": lambda db: crud_users.lock_for_deletion(db, "user5"),
    "delete a user": lambda db: crud_users.delete(db, id=5),
    "really delete a user": lambda db: crud_users.db_delete(db, id=5),
    "change a moth": lambda db: crud_moths.update_one(
        db, MothUpdate(title="New"), MothRead, id=5, created_by_user_id=5, is_deleted=False
    ),
    "delete a moth": lambda db: crud_moths.delete(db, id=5, created_by_user_id=5),
    "really delete a moth": lambda db: crud_moths.db_delete(db, id=5, created_by_user_id=5),
    "refresh a session": lambda db: crud_sessions.refresh(db, TOKEN, TOKEN, CLIENT, LIFETIME, LIFETIME),
    "end a session": lambda db: crud_sessions.end(db, UUID(int=7)),
    "end one of one's sessions": lambda db: crud_sessions.db_delete(db, id=7, user_id=5),
    "end all sessions but one": lambda db: crud_sessions.end_all(db, 5, except_id=7),
    "end all sessions and revoke a reset": lambda db: crud_sessions.end_all_and_revoke_reset(db, 5),
    "purge sessions": lambda db: crud_sessions.purge(db, 100),
    "purge password resets": lambda db: crud_password_resets.purge(db, 100),
    "delete a drawer": lambda db: crud_drawers.delete(db, id=7, name="drawer7"),
    "delete a slip": lambda db: crud_slips.delete(db, id=7, drawer_id=7),
}


async def run(name: str) -> None:
    if name in READS:
        await READS[name](default_engines.reader)
    else:
        async with transaction() as db:
            await WRITES[name](db)


# The lookups that PostgreSQL itself makes for foreign keys on the deletion of a row, as in `ri_triggers.c`.
REFERRING = """
SELECT format('%s ONLY %s WHERE $1 = %I%s', CASE confdeltype WHEN 'c' THEN 'DELETE FROM' ELSE 'SELECT 1 FROM' END,
              conrelid::regclass, attname, CASE confdeltype WHEN 'c' THEN '' ELSE ' FOR KEY SHARE' END)
FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1] WHERE contype = 'f'
"""


@pytest.fixture(scope="module")
async def large() -> AsyncIterator[Connection]:
    async with large_database(FILL) as connection:
        yield connection


class TestPlans:
    @pytest.mark.parametrize("name", [*READS, *WRITES])
    async def test_no_large_table_is_read_whole(self, large: Connection, name: str) -> None:
        for sql, values in await statements_of(partial(run, name)):
            assert await tables_read_whole(large, sql, values) == set(), sql

    async def test_no_large_table_is_read_whole_when_a_referenced_row_is_deleted(self, large: Connection) -> None:
        lookups = [row["format"] for row in await large.fetch(REFERRING)]
        assert len(lookups) >= 5
        for sql in lookups:
            assert await tables_read_whole(large, sql, [7]) == set(), sql

    @pytest.mark.parametrize(
        ("index", "name", "table"),
        [
            ("ix_moth_living", "moths by id, first page", "moth"),
            ("ix_user_living", "users, distant page", "user"),
            ("ix_user_superuser", "lock a user who is to be deleted", "user"),
            ("ix_session_user_id", "sessions", "session"),
        ],
    )
    async def test_large_tables_are_read_whole_without_the_indexes(
        self, large: Connection, index: str, name: str, table: str
    ) -> None:
        [(sql, values)] = await statements_of(partial(run, name))
        transaction = large.transaction()
        await transaction.start()
        try:
            await large.execute(f"DROP INDEX {index}")
            assert await tables_read_whole(large, sql, values) == {table}
        finally:
            await transaction.rollback()

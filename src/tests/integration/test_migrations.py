"""Migrations: upgrade, downgrade and upgrade again, no drift, and several processes that migrate concurrently."""

import asyncio
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.core.config import settings
from app.core.database import Base, Engines, database_url, migrations
from app.core.exceptions import DatabaseUnavailableError
from tests.environment import SRC
from tests.fixtures import RunProgram, RunServer

TABLES = {"alembic_version", *Base.metadata.tables}


async def alembic(database: str, run: Callable[..., Any], *arguments: str) -> None:
    """Run an Alembic command on a database, as `alembic` itself does."""

    def connected(connection: Connection) -> None:
        config = Config(SRC / "alembic.ini")
        config.attributes["connection"] = connection
        run(config, *arguments)

    await on(database, connected)


async def on(database: str, run: Callable[[Connection], Any]) -> Any:
    engine = create_async_engine(database_url(settings).set(database=database), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            answer = await connection.run_sync(run)
            await connection.commit()
            return answer
    finally:
        await engine.dispose()


async def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    found = await on(database, lambda connection: connection.execute(text(query)).all())
    return [(*row,) for row in found]


async def tables(database: str) -> set[str]:
    return {name for (name,) in await rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


SCHEMA = """
SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default
FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
"""


FUNCTIONS = """
SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
ORDER BY 1
"""


class TestRevisions:
    async def test_up_down_up(self, empty_database: str) -> None:
        await alembic(empty_database, command.upgrade, "head")
        assert await tables(empty_database) == TABLES
        schema = await rows(empty_database, SCHEMA)
        await alembic(empty_database, command.downgrade, "base")
        assert await tables(empty_database) == {"alembic_version"}
        assert await rows(empty_database, "SELECT * FROM alembic_version") == []
        await alembic(empty_database, command.upgrade, "head")
        assert await rows(empty_database, SCHEMA) == schema
        await alembic(empty_database, command.check)

    async def test_every_revision_goes_down_and_up_again(self, empty_database: str) -> None:
        await alembic(empty_database, command.upgrade, "+1")
        await alembic(empty_database, command.downgrade, "-1")
        await alembic(empty_database, command.upgrade, "head")
        assert await tables(empty_database) == TABLES

    async def test_functions_go_down_and_up_again(self, empty_database: str) -> None:
        await alembic(empty_database, command.upgrade, "b1d7f0c2a4e8")
        former = await rows(empty_database, FUNCTIONS)
        await alembic(empty_database, command.upgrade, "c4f2a91e7d35")
        functions = await rows(empty_database, FUNCTIONS)
        assert len(functions) == len(former) + 2
        await alembic(empty_database, command.downgrade, "b1d7f0c2a4e8")
        assert await rows(empty_database, FUNCTIONS) == former
        await alembic(empty_database, command.upgrade, "c4f2a91e7d35")
        assert await rows(empty_database, FUNCTIONS) == functions

    async def test_no_drift(self, database: str) -> None:
        await alembic(database, command.check)

    async def test_there_is_one_head(self) -> None:
        from_config = Config(SRC / "alembic.ini")
        heads: list[str] = []
        from_config.print_stdout = lambda text, *_: heads.append(text)  # type: ignore[method-assign]
        command.heads(from_config)
        assert len(heads) == 1


class TestSchema:
    async def test_every_moment_has_a_time_zone(self, database: str) -> None:
        naive = "SELECT column_name FROM information_schema.columns WHERE data_type = 'timestamp without time zone'"
        assert await rows(database, f"{naive} AND table_schema = 'public'") == []

    async def test_constraints_have_the_names_of_the_convention(self, database: str) -> None:
        query = """
            SELECT conname FROM pg_constraint JOIN pg_class ON conrelid = pg_class.oid
            WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f', 'c')
              AND relname <> 'alembic_version' AND conname !~ '^(pk|uq|fk|ck)_'
        """
        assert await rows(database, query) == []


class TestStart:
    async def test_four_processes_at_once(self, run_server: RunServer, empty_database: str) -> None:
        server = await run_server(workers=4, environment={"POSTGRES_DB": empty_database}, wait_for="/health/ready")

        async def all_started() -> bool:
            return server.output.count("Application startup complete.") == 4

        await server.wait_until(all_started, "not every worker started")
        assert await tables(empty_database) == TABLES
        assert len(await rows(empty_database, "SELECT * FROM alembic_version")) == 1
        assert "Traceback" not in server.output
        await alembic(empty_database, command.check)
        await server.stop()

    async def test_again_changes_nothing(self, run_server: RunServer, database: str) -> None:
        before = await rows(database, SCHEMA)
        server = await run_server(environment={"POSTGRES_DB": database}, wait_for="/health/ready")
        await server.stop()
        assert await rows(database, SCHEMA) == before


ENTITY = """
from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Entity(Base):
    __tablename__ = "entity"

    id: Mapped[int] = mapped_column(
        "id", autoincrement=True, nullable=False, unique=True, primary_key=True, init=False
    )
    name: Mapped[str] = mapped_column(String(30))
    code: Mapped[str] = mapped_column(String(30), unique=True, index=True)
"""


class TestCommands:
    """The command line `alembic …`, in a copy of the project with a writable folder of versions."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        ignored = shutil.ignore_patterns("__pycache__", "logs")
        for folder in ("app", "migrations"):
            shutil.copytree(SRC / folder, tmp_path / "src" / folder, ignore=ignored)
        shutil.copy(SRC / "alembic.ini", tmp_path / "src")
        return tmp_path / "src"

    async def test_new_model(self, copy: Path, run_program: RunProgram, database: str) -> None:
        """Alembic discovers the new model. A key with `unique=True` does not differ again after its migration."""
        (copy / "app" / "models" / "entity.py").write_text(ENTITY)

        async def run(*words: str) -> tuple[int, str]:
            program = await run_program("alembic", *words, environment={"POSTGRES_DB": database}, cwd=copy)
            return await program.wait(), program.output

        versions = {*(copy / "migrations" / "versions").glob("*.py")}
        status, output = await run("revision", "--autogenerate", "-m", "Add entities")
        assert status == 0, output
        [new] = {*(copy / "migrations" / "versions").glob("*.py")} - versions
        revision = new.read_text()
        assert revision.count("op.create_table") == 1
        assert "op.drop_table('entity')" in revision
        assert "op.drop_table" not in revision.partition("def downgrade")[0]
        assert "name=None" not in revision
        for words in (["upgrade", "head"], ["check"]):
            status, output = await run(*words)
            assert status == 0, output
        assert await tables(database) == TABLES | {"entity"}

    async def test_from_another_folder(self, run_program: RunProgram, empty_database: str, tmp_path: Path) -> None:
        program = await run_program(
            "alembic",
            *("-c", str(SRC / "alembic.ini"), "upgrade", "head"),
            environment={"POSTGRES_DB": empty_database},
            cwd=tmp_path,
        )
        assert await program.wait() == 0, program.output
        assert await tables(empty_database) == TABLES

    async def test_as_sql(self, run_program: RunProgram) -> None:
        """Printing the SQL, for a database with other administrators, needs no server."""
        program = await run_program("alembic", "upgrade", "head", "--sql", environment={"POSTGRES_SERVER": "127.0.0.2"})
        assert await program.wait() == 0, program.output
        assert 'CREATE TABLE "user"' in program.output


async def test_migration_that_fails_later_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one at the start does: the service never runs with half a schema."""
    outcomes: list[Exception] = [DatabaseUnavailableError(), DatabaseUnavailableError(), RuntimeError("broken")]
    ended = asyncio.Event()

    async def migrate(_: Engines) -> None:
        raise outcomes.pop(0)

    monkeypatch.setattr(migrations, "migrate", migrate)
    monkeypatch.setattr(migrations, "RETRY_SECONDS", 0.01)
    engines = Engines(settings)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    try:
        await migrations.migrate_at_start(engines)
        async with asyncio.timeout(10):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        await engines.close()
    assert outcomes == []


async def test_migration_that_fails_at_the_start_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def migrate(_: Engines) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(migrations, "migrate", migrate)
    with pytest.raises(RuntimeError, match="broken"):
        await migrations.migrate_at_start(Engines(settings))

"""Generated migrations of enums: each upgrades, downgrades and upgrades again, and leaves no type behind."""

import shutil
from pathlib import Path

import pytest

from tests.environment import SRC, connected
from tests.fixtures import RunProgram

# In one process: generate a migration, go back and forth, and end with what the models say.
STEPS = """
from alembic import command
from alembic.config import Config

config = Config("alembic.ini")
command.revision(config, "Step", autogenerate=True)
for move, revision in ((command.upgrade, "head"), (command.downgrade, "-1"), (command.upgrade, "head")):
    move(config, revision)
command.check(config)
"""
MODELS = """
from enum import StrEnum

from sqlalchemy import Enum
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"{more}


class Size(StrEnum):
    SMALL = "it's: 5%"


def words(enum):
    return [each.value for each in enum]


class Entity(Base):
    __tablename__ = "enum_entity"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    {columns}


class Other(Base):
    __tablename__ = "enum_other"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    colour: Mapped[Colour]
    {other}
"""
COLOUR = "colours: Mapped[list[Colour]] = mapped_column(ARRAY(Enum(Colour)))"
SIZE = "size: Mapped[Size] = mapped_column(Enum(Size, values_callable=words))"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "logs")
    for folder in ("app", "migrations"):
        shutil.copytree(SRC / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(SRC / "alembic.ini", tmp_path)
    (tmp_path / "steps.py").write_text(STEPS)
    return tmp_path


async def types(database: str) -> dict[str, list[str]]:
    """Return the values of each enum in the database."""
    query = """
        SELECT typname, array_agg(enumlabel ORDER BY enumsortorder) AS labels
        FROM pg_type JOIN pg_enum ON enumtypid = pg_type.oid GROUP BY typname
    """
    async with connected(database) as connection:
        return {row["typname"]: row["labels"] for row in await connection.fetch(query)}


async def test_back_and_forth(copy: Path, run_program: RunProgram, database: str) -> None:
    before = await types(database)
    models = copy / "app" / "models" / "entity.py"

    async def run(*command: str) -> None:
        program = await run_program(*command, environment={"POSTGRES_DB": database}, cwd=copy)
        assert await program.wait() == 0, program.output

    async def migrate(columns: str, other: str = "", more: str = "") -> dict[str, list[str]]:
        models.write_text(MODELS.format(columns=columns, other=other, more=more))
        await run("steps")
        return await types(database)

    # two tables with one type, also as an array
    assert await migrate(COLOUR) == {**before, "colour": ["RED", "BLUE"]}
    # columns of an old and of a new type, in tables that exist
    both = {**before, "colour": ["RED", "BLUE"], "size": ["it's: 5%"]}
    assert await migrate(f"{COLOUR}\n    {SIZE}", "second: Mapped[Colour]") == both
    # a new value
    assert await migrate(f"{COLOUR}\n    {SIZE}", more='\n    ODD = "odd"') == {
        **both,
        "colour": ["RED", "BLUE", "ODD"],
    }
    # the last column of a type is gone
    assert await migrate(COLOUR) == {**before, "colour": ["RED", "BLUE", "ODD"]}
    await run("alembic", "downgrade", "-4")
    assert await types(database) == before

"""`python -m scripts.create_first_tier`."""

import pytest

from app.core.config import settings
from scripts.create_first_tier import create_first_tier
from scripts.runner import ScriptError
from scripts.servers import free_port
from tests.environment import connected
from tests.factories import make_tier
from tests.fixtures import Fetch, RunProgram

TIER = "scripts.create_first_tier"


async def test_already_there(run_program: RunProgram, fetch: Fetch) -> None:
    await make_tier(settings.TIER_NAME)
    program = await run_program(TIER)
    assert (await program.wait(), program.output) == (0, f"Tier {settings.TIER_NAME} is already there.\n")
    assert await fetch("SELECT name FROM tier") == [{"name": settings.TIER_NAME}]


async def test_on_a_database_without_tables(run_program: RunProgram, empty_database: str) -> None:
    program = await run_program(TIER, environment={"POSTGRES_DB": empty_database})
    assert (await program.wait(), program.output) == (0, f"Tier {settings.TIER_NAME} created.\n")
    async with connected(empty_database) as connection:
        assert await connection.fetchval("SELECT name FROM tier") == settings.TIER_NAME


async def test_beside_the_first_superuser_on_a_database_without_tables(
    run_program: RunProgram, empty_database: str
) -> None:
    commands = (TIER, "scripts.create_first_superuser")
    programs = [await run_program(command, environment={"POSTGRES_DB": empty_database}) for command in commands]
    assert [await program.wait() for program in programs] == [0, 0]
    assert [program.output for program in programs] == [
        f"Tier {settings.TIER_NAME} created.\n",
        f"Superuser {settings.ADMIN_USERNAME} created.\n",
    ]


async def test_database_away(run_program: RunProgram) -> None:
    program = await run_program(TIER, environment={"POSTGRES_PORT": str(free_port())})
    assert await program.wait() == 1
    [line] = program.output.splitlines()
    assert line.startswith("Error: the database cannot be used: ")


async def test_already_there_in_this_process(fetch: Fetch) -> None:
    await make_tier(settings.TIER_NAME)
    assert await create_first_tier() == f"Tier {settings.TIER_NAME} is already there."
    assert len(await fetch("SELECT FROM tier")) == 1


@pytest.mark.parametrize("name", ["a/b", "x" * 51, ".."])
async def test_name_that_no_tier_may_have(monkeypatch: pytest.MonkeyPatch, fetch: Fetch, name: str) -> None:
    monkeypatch.setattr(settings, "TIER_NAME", name)
    with pytest.raises(ScriptError, match="TIER_NAME"):
        await create_first_tier()
    assert await fetch("SELECT FROM tier") == []

"""The scripts as commands, and as functions where tests differ in a setting only."""

import asyncio
from collections.abc import Mapping

import httpx
import pytest
from pydantic import SecretStr

from app.core.config import DEFAULT_ADMIN_PASSWORD, EnvironmentOption, settings
from app.models.user import User
from scripts.create_first_superuser import create_first_superuser
from scripts.runner import ScriptError
from scripts.servers import free_port
from tests.environment import connected
from tests.factories import ADMIN_PASSWORD, hasher, make_admin, make_user
from tests.fixtures import Fetch, HeadersFor, RunProgram
from tests.helper import is_recent

SUPERUSER = "scripts.create_first_superuser"
CREATED = f"Superuser {settings.ADMIN_USERNAME} created."
THERE = f"Superuser {settings.ADMIN_USERNAME} is already there."


@pytest.fixture
async def superuser() -> User:
    return await make_admin()


async def result(run_program: RunProgram, module: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Return the exit status and the output of a script."""
    program = await run_program(module, environment=environment)
    return await program.wait(), program.output


class TestCommands:
    async def test_superuser(self, run_program: RunProgram, client: httpx.AsyncClient) -> None:
        assert await result(run_program, SUPERUSER, {"SECRET_KEY": ""}) == (0, f"{CREATED}\n")  # signs no token
        form = {"username": settings.ADMIN_USERNAME, "password": ADMIN_PASSWORD}
        assert (await client.post("/api/v1/login", data=form)).status_code == 200

    async def test_two_at_once_on_a_database_without_tables(self, run_program: RunProgram, empty_database: str) -> None:
        environment = {"POSTGRES_DB": empty_database}
        results = await asyncio.gather(*(result(run_program, SUPERUSER, environment) for _ in range(2)))
        assert [status for status, _ in results] == [0, 0]
        assert (0, f"{CREATED}\n") in results
        async with connected(empty_database) as connection:
            assert await connection.fetchval('SELECT username FROM "user"') == settings.ADMIN_USERNAME

    async def test_two_at_once(self, run_program: RunProgram, fetch: Fetch) -> None:
        results = await asyncio.gather(result(run_program, SUPERUSER), result(run_program, SUPERUSER))
        assert len(await fetch('SELECT FROM "user"')) == 1
        assert [status for status, _ in results] == [0, 0]
        assert {output for _, output in results} <= {f"{CREATED}\n", f"{THERE}\n"}

    async def test_database_away(self, run_program: RunProgram) -> None:
        status, output = await result(run_program, SUPERUSER, {"POSTGRES_PORT": str(free_port())})
        assert status == 1
        [line] = output.splitlines()
        assert line.startswith("Error: the database cannot be used: ")
        assert "POSTGRES_" in line

    async def test_default_password_outside_local(self, run_program: RunProgram, fetch: Fetch) -> None:
        environment = {"ENVIRONMENT": "production", "ADMIN_PASSWORD": DEFAULT_ADMIN_PASSWORD}
        status, output = await result(run_program, SUPERUSER, environment)
        assert status == 1
        assert output == "Error: ADMIN_PASSWORD is the default that everybody knows: set another one\n"
        assert await fetch('SELECT FROM "user"') == []

    async def test_settings_that_are_refused(self, run_program: RunProgram) -> None:
        environment = {"ENVIRONMENT": "production", "SECRET_KEY": "short-but-secret"}
        status, output = await result(run_program, SUPERUSER, environment)
        assert status == 1
        assert output.splitlines()[0] == "Settings refused, the service does not start:"
        assert "SECRET_KEY is shorter than 32 bytes" in output
        assert "short-but-secret" not in output


class TestCreateFirstSuperuser:
    async def test_already_there(self, superuser: User, fetch: Fetch) -> None:
        before = await fetch('SELECT * FROM "user"')
        assert await create_first_superuser() == THERE
        assert await fetch('SELECT * FROM "user"') == before

    async def test_row(self, fetch: Fetch) -> None:
        assert await create_first_superuser() == CREATED
        [row] = await fetch('SELECT * FROM "user"')
        assert await hasher.verify(ADMIN_PASSWORD, row.pop("hashed_password"))
        assert is_recent(row["created_at"])
        assert {name: row[name] for name in ("name", "email", "username", "is_superuser", "is_deleted")} == {
            "name": settings.ADMIN_NAME,
            "email": settings.ADMIN_EMAIL,
            "username": settings.ADMIN_USERNAME,
            "is_superuser": True,
            "is_deleted": False,
        }

    async def test_name_belongs_to_somebody_else(self, fetch: Fetch) -> None:
        await make_user(username=settings.ADMIN_USERNAME)
        with pytest.raises(ScriptError, match=settings.ADMIN_USERNAME):
            await create_first_superuser()
        assert await fetch('SELECT is_superuser FROM "user"') == [{"is_superuser": False}]

    async def test_email_belongs_to_somebody_else(self, fetch: Fetch) -> None:
        await make_user(username="else", email=settings.ADMIN_EMAIL)
        with pytest.raises(ScriptError, match="Email already taken"):
            await create_first_superuser()
        assert len(await fetch('SELECT FROM "user"')) == 1

    async def test_superuser_was_deleted(
        self, client: httpx.AsyncClient, superuser: User, headers_for: HeadersFor
    ) -> None:
        await make_user(username="second", is_superuser=True)
        await client.delete(f"/api/v1/user/{superuser.username}", headers=await headers_for(superuser))
        with pytest.raises(ScriptError, match="deleted"):
            await create_first_superuser()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ADMIN_EMAIL", "your_email"),
            ("ADMIN_USERNAME", "Your Username"),
            ("ADMIN_USERNAME", "me"),
            ("ADMIN_NAME", "x" * 31),
        ],
    )
    async def test_setting_that_no_user_may_have(
        self, monkeypatch: pytest.MonkeyPatch, fetch: Fetch, name: str, value: str
    ) -> None:
        monkeypatch.setattr(settings, name, value)
        with pytest.raises(ScriptError, match=name) as refusal:
            await create_first_superuser()
        assert "\n" not in str(refusal.value)
        assert await fetch('SELECT FROM "user"') == []

    @pytest.mark.parametrize("password", ["short", "password123"])
    async def test_password_that_no_user_may_have(self, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
        monkeypatch.setattr(settings, "ADMIN_PASSWORD", SecretStr(password))
        with pytest.raises(ScriptError, match="ADMIN_PASSWORD: ") as refusal:
            await create_first_superuser()
        assert f"'{password}'" not in str(refusal.value)

    @pytest.mark.parametrize("environment", [EnvironmentOption.STAGING, EnvironmentOption.PRODUCTION])
    async def test_another_password_outside_local(
        self, monkeypatch: pytest.MonkeyPatch, environment: EnvironmentOption
    ) -> None:
        monkeypatch.setattr(settings, "ENVIRONMENT", environment)
        monkeypatch.setattr(settings, "ADMIN_PASSWORD", SecretStr(DEFAULT_ADMIN_PASSWORD))
        with pytest.raises(ScriptError, match="ADMIN_PASSWORD is the default"):
            await create_first_superuser()
        monkeypatch.setattr(settings, "ADMIN_PASSWORD", SecretStr("An0ther!"))
        assert await create_first_superuser() == CREATED

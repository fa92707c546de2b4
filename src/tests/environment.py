"""The servers and settings that the tests run with. Imports nothing of the application, which reads its settings once.

One PostgreSQL and one Valkey for a run, started by the process that starts the workers. Each worker has a database of
its own, cloned from a migrated template, and three numbered databases of Valkey.
"""

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from dotenv import dotenv_values

SRC = Path(__file__).resolve().parents[1]
TEMPLATE = "template_app"
# What is set here must not lead to the servers of `make run`, or change what the tests expect.
SETTINGS = (
    "ACCESS_TOKEN_", "ALGORITHM", "ALLOWED_HOSTS", "APP_", "BCRYPT_", "CLIENT_CACHE_", "CONTACT_",
    "CORS_", "DEFAULT_RATE_LIMIT_", "ENVIRONMENT", "FORWARDED_", "HSTS_", "JOB_", "LICENSE", "LOGIN_",
    "MAIL_", "MAX_", "PASSWORD_", "POSTGRES_", "RATE_LIMIT_", "REAUTHENTICATION_", "REDIS_",
    "REFRESH_", "REQUEST_", "SECRET_KEY", "SIGN_UP_", "SMTP_",
)  # fmt: skip
# Who the tests sign in as may be told in `.env`.
PEOPLE = ("ADMIN_", "TEST_", "TIER_NAME")


def forget_settings() -> None:
    """Leave the defaults of every setting, except those that name the people of the tests."""
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        del os.environ[name]
    for file in (SRC / ".env", SRC.parent / ".env"):
        for name, value in dotenv_values(file, interpolate=False).items():
            if name.startswith(PEOPLE) and value and not os.environ.get(name):
                os.environ[name] = value
    os.environ["ENV_FILE"] = ""
    os.environ["SECRET_KEY"] = secrets.token_hex(32)
    os.environ["BCRYPT_COST"] = "4"
    # A busy machine must not be taken for a server that is away; tests of outages have less patience.
    for role in ("CACHE", "QUEUE", "RATE_LIMIT"):
        os.environ[f"REDIS_{role}_TIMEOUT"] = "5"


def make_template() -> None:
    """Migrate the database that others are cloned from."""
    create_database(TEMPLATE, template="template0")
    migrate(TEMPLATE)


def migrate(database: str, revision: str = "head") -> None:
    command = [sys.executable, "-m", "alembic", "upgrade", revision]
    env = {**os.environ, "POSTGRES_DB": database}
    subprocess.run(command, cwd=SRC, env=env, check=True, capture_output=True)  # noqa: S603 (fixed words)


def choose_databases(worker: str) -> None:
    """Give this worker (`gw0`, `gw1`, … or `main`) its databases, and tell the application."""
    number = int(worker.removeprefix("gw")) + 1 if worker != "main" else 0
    os.environ["POSTGRES_DB"] = f"test_{worker}"
    for offset, role in enumerate(("CACHE", "QUEUE", "RATE_LIMIT")):
        os.environ[f"REDIS_{role}_DB"] = str(3 * number + offset)
    create_database(f"test_{worker}")


@asynccontextmanager
async def connected(database: str) -> "AsyncIterator[asyncpg.Connection[Any]]":
    """Connect as the server's superuser, beside the application's own connections."""
    connection = await asyncpg.connect(
        host=os.environ["POSTGRES_SERVER"],
        port=int(os.environ["POSTGRES_PORT"]),
        user=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
        database=database,
        server_settings={"lock_timeout": "10s"},
    )
    try:
        yield connection
    finally:
        await connection.close()


async def create_database_async(name: str, template: str = TEMPLATE) -> None:
    """Create a database like the template; `template0` is an empty one."""
    async with connected("postgres") as connection:
        await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


async def drop_database_async(name: str) -> None:
    async with connected("postgres") as connection:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def create_database(name: str, template: str = TEMPLATE) -> None:
    asyncio.run(create_database_async(name, template))

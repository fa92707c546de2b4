"""The servers and settings of the tests. This module must not import the application, which reads its settings once.

The process that starts the pytest workers also starts one PostgreSQL and one Valkey for the run. Each worker has its
own database, cloned from a migrated template, and three numbered databases of Valkey.
"""

import asyncio
import os
import re
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
"""The migrated database."""
SPECIMEN_TEMPLATE = "template_specimen"
"""The same with the tables of `tests.specimen`: the template of the workers' own databases."""
# Remove these settings from the environment: they could point to the servers of `make run` or break assertions.
SETTINGS = (
    "ACCESS_TOKEN_", "ALGORITHM", "ALLOWED_HOSTS", "APP_", "BCRYPT_", "CLIENT_CACHE_", "CONTACT_",
    "CORS_", "DEFAULT_RATE_LIMIT_", "ENVIRONMENT", "FORWARDED_", "HSTS_", "JOB_", "LICENSE", "LOGIN_",
    "MAIL_", "MAX_", "PASSWORD_", "POSTGRES_", "RATE_LIMIT_", "REAUTHENTICATION_", "REDIS_",
    "REFRESH_", "REQUEST_", "SECRET_KEY", "SIGN_UP_", "SMTP_",
)  # fmt: skip
# `.env` may name the users of the tests with these settings.
PEOPLE = ("ADMIN_", "TEST_", "TIER_NAME")
# By the last word of its name, what a value must be. Otherwise the tests use the default: a pasted `.env` may have
# placeholders, and Docker Compose cuts a password in double quotes at its `$`.
USABLE = {
    "EMAIL": r"\S+@\S+\.\w+",
    "NAME": r"\w[\w .-]{1,29}",
    "PASSWORD": r"(?!#).{8,}",
    "USERNAME": r"[a-z0-9]{2,20}",
}


def reset_settings() -> None:
    """Reset every setting to its default, except those that name the users of the tests."""
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        del os.environ[name]
    for file in (SRC / ".env", SRC.parent / ".env"):
        for name, value in dotenv_values(file, interpolate=False).items():
            if name.startswith(PEOPLE) and value and not os.environ.get(name):
                os.environ[name] = value
    for name in [name for name in os.environ if name.startswith(PEOPLE)]:
        if not re.fullmatch(USABLE.get(name.rpartition("_")[2], ""), os.environ[name]):
            del os.environ[name]
    os.environ["ENV_FILE"] = ""
    os.environ["SECRET_KEY"] = secrets.token_hex(32)
    os.environ["BCRYPT_COST"] = "4"
    # Allow for a busy machine, so that no test sees a slow server as an outage. Tests of outages use shorter timeouts.
    for role in ("CACHE", "QUEUE", "RATE_LIMIT"):
        os.environ[f"REDIS_{role}_TIMEOUT"] = "5"
    for wait in ("CONNECT", "POOL", "STATEMENT", "LOCK"):
        os.environ[f"POSTGRES_{wait}_TIMEOUT"] = "5"


def make_template() -> None:
    """Create and migrate the databases from which the others are cloned."""
    create_database(TEMPLATE, template="template0")
    migrate(TEMPLATE)
    create_database(SPECIMEN_TEMPLATE)
    _run(SPECIMEN_TEMPLATE, "tests.specimen.models")


def migrate(database: str, revision: str = "head") -> None:
    _run(database, "alembic", "upgrade", revision)


def _run(database: str, *command: str) -> None:
    env = {**os.environ, "POSTGRES_DB": database}
    subprocess.run([sys.executable, "-m", *command], cwd=SRC, env=env, check=True, capture_output=True)  # noqa: S603


def choose_databases(worker: str) -> None:
    """Create the database of this worker (`gw0`, `gw1`, … or `main`); set its databases in the environment."""
    number = int(worker.removeprefix("gw")) + 1 if worker != "main" else 0
    os.environ["POSTGRES_DB"] = f"test_{worker}"
    for offset, role in enumerate(("CACHE", "QUEUE", "RATE_LIMIT")):
        os.environ[f"REDIS_{role}_DB"] = str(3 * number + offset)
    create_database(f"test_{worker}", SPECIMEN_TEMPLATE)


@asynccontextmanager
async def connected(database: str) -> "AsyncIterator[asyncpg.Connection[Any]]":
    """Open a connection as the server's superuser, independent of the application's connections."""
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
    """Clone the template into a new database; `template0` is empty."""
    async with connected("postgres") as connection:
        await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


async def drop_database_async(name: str) -> None:
    async with connected("postgres") as connection:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def create_database(name: str, template: str = TEMPLATE) -> None:
    asyncio.run(create_database_async(name, template))

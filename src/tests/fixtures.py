"""The fixtures of all tests. Nothing of the application is replaced: what it commits is committed."""

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.core.config import Settings, settings
from app.core.database import default_engines, transaction
from app.main import app as the_app
from app.models.user import User
from scripts.servers import HOST, Process, free_port
from tests.environment import SRC, TEMPLATE, connected, create_database_async, drop_database_async
from tests.factories import make_admin, make_superuser, make_test_user, make_user
from tests.helper import sign_in, wait_until

START_SECONDS = 30.0

# -------- servers, emptied after each test --------


@dataclass(frozen=True)
class RedisRoles:
    """A client for each role that Redis plays, on this worker's databases."""

    cache: "Redis"
    queue: "Redis"
    rate_limit: "Redis"


@pytest.fixture(scope="session")
async def redis() -> AsyncIterator[RedisRoles]:
    async with AsyncExitStack() as stack:
        clients = []
        for role in ("CACHE", "QUEUE", "RATE_LIMIT"):
            client = Redis(
                host=HOST, port=int(os.environ[f"REDIS_{role}_PORT"]), db=int(os.environ[f"REDIS_{role}_DB"])
            )
            clients.append(client)
            stack.push_async_callback(client.aclose)
        yield RedisRoles(*clients)


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection to this worker's database that the application knows nothing of."""
    async with connected(settings.POSTGRES_DB) as connection:
        yield connection


_TABLES = """
    SELECT string_agg(format('%I', tablename), ', ') FROM pg_tables
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""


@pytest.fixture(autouse=True)
async def empty_servers(
    request: pytest.FixtureRequest, postgres: "asyncpg.Connection[Any]", redis: RedisRoles
) -> AsyncIterator[None]:
    """Leave no rows and no keys behind."""
    yield
    if "unit" in request.path.parts:
        return
    # A sequence that has been used says that a row was written: looking is cheaper than emptying.
    if await postgres.fetchval("SELECT bool_or(last_value IS NOT NULL) FROM pg_sequences"):
        tables = await postgres.fetchval(_TABLES)
        await postgres.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
    for client in (redis.cache, redis.queue, redis.rate_limit):
        await client.flushdb()


@asynccontextmanager
async def own_database(template: str = TEMPLATE) -> AsyncIterator[str]:
    """The name of a database like the template, which goes at the end."""
    name = f"test_{uuid4().hex}"
    await create_database_async(name, template)
    try:
        yield name
    finally:
        await drop_database_async(name)


@pytest.fixture
async def database() -> AsyncIterator[str]:
    """The name of a migrated database of the test's own, for programs it starts with POSTGRES_DB set to it."""
    async with own_database() as name:
        yield name


@pytest.fixture
async def empty_database() -> AsyncIterator[str]:
    """The name of a database without tables."""
    async with own_database("template0") as name:
        yield name


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the settings themselves: the environment has a SECRET_KEY and nothing else."""
    for name in os.environ.keys() & {*Settings.model_fields, "LICENSE"} - {"SECRET_KEY"}:
        monkeypatch.delenv(name)


# -------- rows --------


@pytest.fixture
async def db() -> AsyncIterator[AsyncSession]:
    """A unit of work, committed when the test ends; for one that commits earlier open `transaction()`."""
    async with transaction() as session:
        yield session


class Fetch(Protocol):
    async def __call__(self, query: str, *arguments: Any) -> list[dict[str, Any]]: ...


@pytest.fixture
def fetch(postgres: "asyncpg.Connection[Any]") -> Fetch:
    """Ask the database itself: `await fetch('SELECT … WHERE id = $1', 1)` returns dicts of what is committed."""

    async def run(query: str, *arguments: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await postgres.fetch(query, *arguments)]

    return run


@pytest.fixture
async def user(request: pytest.FixtureRequest) -> User:
    """The user whom TEST_* describe; in `tests/integration` one whose name nobody else has in a test."""
    if "integration" in request.path.parts:
        return await make_user(name="Tester User", username="testeruser", email="test@tester.com")
    return await make_test_user()


@pytest.fixture
async def superuser(request: pytest.FixtureRequest) -> User:
    """The superuser whom ADMIN_* describe; in `tests/integration` one whose name nobody else has in a test."""
    if "integration" in request.path.parts:
        return await make_superuser(name="admin", username="admin", email="admin@admin.com")
    return await make_admin()


# -------- the application in this process --------


@pytest.fixture(scope="session")
async def app() -> AsyncIterator[FastAPI]:
    """The application as `app.main` builds it, started."""
    async with started(the_app):
        yield the_app


class _Transport(httpx.ASGITransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        await asyncio.sleep(0)  # the driver logs its statements a moment later
        return response


@asynccontextmanager
async def open_client(application: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in this process, which sees a 500 where a real client would.

    An application other than `app.main`'s is started, and stopped in the end.
    """
    async with AsyncExitStack() as stack:
        if isinstance(application, FastAPI) and application is not the_app:
            await stack.enter_async_context(started(application))
        transport = _Transport(application, raise_app_exceptions=False, **options)
        client = httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False)
        yield await stack.enter_async_context(client)


@asynccontextmanager
async def started(application: FastAPI) -> AsyncIterator[FastAPI]:
    """Start an application, wait until it trusts its cache, and stop it in the end."""
    logger = logging.getLogger("app")
    recorders = [handler for handler in logger.handlers if isinstance(handler, LogRecords)]
    async with application.router.lifespan_context(application):
        for recorder in recorders:  # the start configures the logger anew
            logger.addHandler(recorder)
        resources = getattr(application.state, "resources", None)
        if resources is not None and resources.cache.is_open:
            await wait_until(lambda: asyncio.to_thread(resources.cache.is_trusted))
        yield application


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without credentials."""
    async with open_client(app) as client:
        yield client


HeadersFor = Callable[[User], Awaitable[dict[str, str]]]


@pytest.fixture
def headers_for(client: httpx.AsyncClient) -> HeadersFor:
    """Sign in with a password: `headers=await headers_for(user)`."""

    async def headers(user: User) -> dict[str, str]:
        return await sign_in(client, user)

    return headers


@pytest.fixture
async def user_headers(headers_for: HeadersFor, user: User) -> dict[str, str]:
    return await headers_for(user)


@pytest.fixture
async def superuser_headers(headers_for: HeadersFor, superuser: User) -> dict[str, str]:
    return await headers_for(superuser)


class LogRecords(logging.Handler):
    """What the application logged since the test began."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def named(self, message: str) -> list[logging.LogRecord]:
        """The records of one event."""
        return [record for record in self.records if record.getMessage() == message]


@pytest.fixture
def logs() -> Iterator[LogRecords]:
    """Records of the logger `app`, which pytest's own `caplog` does not see."""
    handler = LogRecords()
    logger = logging.getLogger("app")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@dataclass
class Statements:
    """SQL in the order in which the two engines ran it, with BEGIN and COMMIT as the driver sent them."""

    all: list[tuple[str, str]] = field(default_factory=list)

    def clear(self) -> None:
        self.all.clear()

    @property
    def read(self) -> list[str]:
        """What the reader's engine ran."""
        return [sql for name, sql in self.all if name == "read"]

    @property
    def written(self) -> list[str]:
        """What the transactions' engine ran."""
        return [sql for name, sql in self.all if name == "write"]


@pytest.fixture
def statements() -> Iterator[Statements]:
    recorded = Statements()
    with _recording("write", default_engines.write, recorded), _recording("read", default_engines.read, recorded):
        yield recorded


@contextmanager
def _recording(name: str, recorded_engine: AsyncEngine, recorded: Statements) -> Iterator[None]:
    # The driver's log has what it sends without parameters, BEGIN and COMMIT among it; SQLAlchemy's event the rest.
    def log(query: Any) -> None:
        recorded.all.append((name, query.query))

    def checkout(connection: Any, *_: Any) -> None:
        connection.driver_connection.add_query_logger(log)

    def checkin(connection: Any, *_: Any) -> None:
        if connection is not None:
            connection.driver_connection.remove_query_logger(log)

    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        recorded.all.append((name, statement))

    listeners: dict[str, Callable[..., None]] = {
        "checkout": checkout,
        "checkin": checkin,
        "after_cursor_execute": executed,
    }
    for event_name, listener in listeners.items():
        event.listen(recorded_engine.sync_engine, event_name, listener)
    try:
        yield
    finally:
        for event_name, listener in listeners.items():
            event.remove(recorded_engine.sync_engine, event_name, listener)


# -------- the commands as other processes --------


class Program:
    """A command that runs in a process of its own, until the test ends."""

    def __init__(self, command: list[str], environment: Mapping[str, str], cwd: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            env = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
            self.process = Process([sys.executable, "-m", *command], cwd=cwd, env=env, output=output)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    async def wait_for_output(self, text: str, seconds: float = START_SECONDS) -> None:
        await self.wait_until(lambda: _in_output(self, text), f"{text!r} did not come", seconds)

    async def wait_until(
        self, condition: Callable[[], Awaitable[bool]], otherwise: str, seconds: float = START_SECONDS
    ) -> None:
        """Ask until the condition holds; fail when the time is over or the process has ended."""
        deadline = time.monotonic() + seconds
        while not await condition():
            if self.process.returncode is not None or time.monotonic() > deadline:
                pytest.fail(f"{otherwise}; exit status {self.process.returncode}, output:\n{self.output}")
            await asyncio.sleep(0.02)

    async def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait for its end; return the exit status."""
        return await asyncio.to_thread(self.process.popen.wait, seconds)

    async def stop(self) -> None:
        await asyncio.to_thread(self.process.stop)


async def _in_output(program: Program, text: str) -> bool:
    return text in program.output


class RunningServer(Program):
    """The API in processes of its own."""

    port: int
    client: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def is_answering(self, path: str = "/health") -> bool:
        try:
            return (await self.client.get(path)).status_code == 200
        except httpx.TransportError:
            return False


class RunServer(Protocol):
    async def __call__(
        self,
        command: list[str] | None = None,
        *,
        workers: int | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path = SRC,
        wait_for: str | None = "/health",
    ) -> RunningServer: ...


@pytest.fixture
async def run_server(tmp_path: Path) -> AsyncIterator[RunServer]:
    """Start uvicorn, or gunicorn with `workers`, on a free port: `server = await run_server(environment={…})`.

    `command` (module and arguments, `{port}` is filled in) replaces both. `wait_for` is the path that must answer 200.
    """
    async with AsyncExitStack() as stack:

        async def run(
            command: list[str] | None = None,
            *,
            workers: int | None = None,
            environment: Mapping[str, str] | None = None,
            cwd: Path = SRC,
            wait_for: str | None = "/health",
        ) -> RunningServer:
            port = free_port()
            if command is None and workers is None:
                command = ["uvicorn", "app.main:app", "--host", HOST, "--port", "{port}"]
            elif command is None:
                command = ["gunicorn", "app.main:app", "-w", str(workers), "-k", "uvicorn.workers.UvicornWorker"]
                command += ["-b", f"{HOST}:{port}", "--no-control-socket"]
            words = [word.replace("{port}", str(port)) for word in command]
            with tempfile.NamedTemporaryFile(dir=tmp_path, suffix=".log", delete=False) as log:
                server = RunningServer(words, environment or {}, cwd, Path(log.name))
            stack.push_async_callback(server.stop)
            server.port = port
            server.client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False)
            )
            if wait_for is not None:
                path = wait_for
                await server.wait_until(lambda: server.is_answering(path), f"{path} did not answer 200")
            return server

        yield run


class RunProgram(Protocol):
    async def __call__(
        self, *command: str, environment: Mapping[str, str] | None = None, cwd: Path = SRC
    ) -> Program: ...


@pytest.fixture
async def run_program(tmp_path: Path) -> AsyncIterator[RunProgram]:
    """Start `python -m COMMAND …`: `program = await run_program("scripts.create_first_tier", environment={…})`."""
    async with AsyncExitStack() as stack:

        async def run(*command: str, environment: Mapping[str, str] | None = None, cwd: Path = SRC) -> Program:
            with tempfile.NamedTemporaryFile(dir=tmp_path, suffix=".log", delete=False) as log:
                program = Program([*command], environment or {}, cwd, Path(log.name))
            stack.push_async_callback(program.stop)
            return program

        yield run


class RunWorker(Protocol):
    async def __call__(
        self,
        settings: str = "app.worker.WorkerSettings",
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path = SRC,
    ) -> Program: ...


@pytest.fixture
def run_worker(run_program: RunProgram) -> RunWorker:
    """Start `arq app.worker.WorkerSettings` and wait until it takes jobs."""

    async def run(
        settings: str = "app.worker.WorkerSettings",
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path = SRC,
    ) -> Program:
        worker = await run_program("arq", settings, environment=environment, cwd=cwd)
        await worker.wait_for_output("redis_version")
        return worker

    return run

"""The fixtures of all tests. They replace no part of the application: its commits are real."""

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
from tests.environment import SPECIMEN_TEMPLATE, SRC, TEMPLATE, connected, create_database_async, drop_database_async
from tests.factories import make_admin, make_superuser, make_test_user, make_user
from tests.helper import sign_in, wait_until
from tests.specimen.main import app as the_specimen

START_SECONDS = 30.0

# -------- servers, emptied after each test --------


@dataclass(frozen=True)
class RedisRoles:
    """A Redis client for each role, on this worker's databases."""

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
    """A connection to this worker's database, independent of the application."""
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
    """Delete all rows and keys after the test."""
    yield
    if "unit" in request.path.parts:
        return
    # A used sequence shows that the test wrote rows. Checking is cheaper than truncating.
    if await postgres.fetchval("SELECT bool_or(last_value IS NOT NULL) FROM pg_sequences"):
        tables = await postgres.fetchval(_TABLES)
        await postgres.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
    for client in (redis.cache, redis.queue, redis.rate_limit):
        await client.flushdb()


@asynccontextmanager
async def own_database(template: str = TEMPLATE) -> AsyncIterator[str]:
    """Create a database from the template, yield its name, and drop it at the end."""
    name = f"test_{uuid4().hex}"
    await create_database_async(name, template)
    try:
        yield name
    finally:
        await drop_database_async(name)


@pytest.fixture
async def database() -> AsyncIterator[str]:
    """The name of the test's own migrated database. Set POSTGRES_DB to it for programs that the test starts."""
    async with own_database() as name:
        yield name


@pytest.fixture
async def specimen_database() -> AsyncIterator[str]:
    """The same with the tables of `tests.specimen`."""
    async with own_database(SPECIMEN_TEMPLATE) as name:
        yield name


@pytest.fixture
async def empty_database() -> AsyncIterator[str]:
    """The name of a database without tables."""
    async with own_database("template0") as name:
        yield name


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting but SECRET_KEY from the environment, for tests of the settings themselves."""
    for name in os.environ.keys() & {*Settings.model_fields, "LICENSE"} - {"SECRET_KEY"}:
        monkeypatch.delenv(name)


# -------- rows --------


@pytest.fixture
async def db() -> AsyncIterator[AsyncSession]:
    """A transaction that commits when the test ends. To commit earlier, open `transaction()` in the test."""
    async with transaction() as session:
        yield session


class Fetch(Protocol):
    async def __call__(self, query: str, *arguments: Any) -> list[dict[str, Any]]: ...


@pytest.fixture
def fetch(postgres: "asyncpg.Connection[Any]") -> Fetch:
    """Query the database directly: `await fetch('SELECT … WHERE id = $1', 1)` returns committed rows as dicts."""

    async def run(query: str, *arguments: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await postgres.fetch(query, *arguments)]

    return run


@pytest.fixture
async def user(request: pytest.FixtureRequest) -> User:
    """The user that TEST_* describe; in `tests/integration` a user with a unique name."""
    if "integration" in request.path.parts:
        return await make_user(name="Tester User", username="testeruser", email="test@tester.com")
    return await make_test_user()


@pytest.fixture
async def superuser(request: pytest.FixtureRequest) -> User:
    """The superuser that ADMIN_* describe; in `tests/integration` a superuser with a unique name."""
    if "integration" in request.path.parts:
        return await make_superuser(name="admin", username="admin", email="admin@admin.com")
    return await make_admin()


# -------- the application in this process --------


@pytest.fixture(scope="session")
async def app() -> AsyncIterator[FastAPI]:
    """The started application that `app.main` builds."""
    async with started(the_app):
        yield the_app


@pytest.fixture(scope="session")
async def specimen() -> AsyncIterator[FastAPI]:
    """The started application of `tests.specimen`. A module whose fixture `app` returns it has a `client` of it."""
    async with started(the_specimen):
        yield the_specimen


class _Transport(httpx.ASGITransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        await asyncio.sleep(0)  # the driver logs its statements in the next iteration of the loop
        return response


@asynccontextmanager
async def open_client(application: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client of an application in this process. Unexpected errors reach it as a 500, as on a real connection.

    An application other than `app.main`'s and the specimen's starts here, and stops at the end.
    """
    async with AsyncExitStack() as stack:
        if isinstance(application, FastAPI) and application not in (the_app, the_specimen):
            await stack.enter_async_context(started(application))
        transport = _Transport(application, raise_app_exceptions=False, **options)
        client = httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False)
        yield await stack.enter_async_context(client)


@asynccontextmanager
async def started(application: FastAPI) -> AsyncIterator[FastAPI]:
    """Start an application, wait until it trusts its cache, and stop it at the end."""
    logger = logging.getLogger("app")
    recorders = [handler for handler in logger.handlers if isinstance(handler, LogRecords)]
    async with application.router.lifespan_context(application):
        for recorder in recorders:  # the start has replaced the logger's handlers
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
    """The log records of the application since the test began."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def named(self, message: str) -> list[logging.LogRecord]:
        """Return the records of one event."""
        return [record for record in self.records if record.getMessage() == message]


@pytest.fixture
def logs() -> Iterator[LogRecords]:
    """The records of the logger `app`, which do not reach pytest's own `caplog`."""
    handler = LogRecords()
    logger = logging.getLogger("app")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@dataclass
class Statements:
    """The SQL of both engines in the order of execution, with BEGIN and COMMIT as the driver sends them."""

    all: list[tuple[str, str]] = field(default_factory=list)

    def clear(self) -> None:
        self.all.clear()

    @property
    def read(self) -> list[str]:
        """The statements of the reader's engine."""
        return [sql for name, sql in self.all if name == "read"]

    @property
    def written(self) -> list[str]:
        """The statements of the transactions' engine."""
        return [sql for name, sql in self.all if name == "write"]

    def assert_only_read(self, count: int) -> None:
        """Assert that a request made `count` statements, and none in a transaction."""
        assert len(self.read) == count, self.all
        assert self.written == []
        assert not any("BEGIN" in sql or "COMMIT" in sql for _, sql in self.all)

    def assert_written_in_one_transaction(self) -> None:
        """Assert that a request made two statements at most between BEGIN and COMMIT, and two at most outside."""
        first, *between, last = self.written
        assert (first, last) == ("BEGIN;", "COMMIT;")
        assert 1 <= len(between) <= 2
        assert len(self.read) <= 2


@pytest.fixture
def statements() -> Iterator[Statements]:
    recorded = Statements()
    with _recording("write", default_engines.write, recorded), _recording("read", default_engines.read, recorded):
        yield recorded


@contextmanager
def _recording(name: str, recorded_engine: AsyncEngine, recorded: Statements) -> Iterator[None]:
    # The driver's log has the queries without parameters, such as BEGIN and COMMIT; SQLAlchemy's event has the others.
    def log(query: Any) -> None:
        # A new connection asks once for the types of arrays and enums.
        if "typeinfo_tree" not in query.query and "set_config('jit'" not in query.query:
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
    """A command in its own process, which stops when the test ends."""

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
        """The output of the command so far."""
        return self._log.read_text(errors="replace")

    async def wait_for_output(self, text: str, seconds: float = START_SECONDS) -> None:
        await self.wait_until(lambda: _in_output(self, text), f"{text!r} was not printed", seconds)

    async def wait_until(
        self, condition: Callable[[], Awaitable[bool]], otherwise: str, seconds: float = START_SECONDS
    ) -> None:
        """Poll until the condition holds; fail after `seconds`, or when the process has ended."""
        deadline = time.monotonic() + seconds
        while not await condition():
            if self.process.returncode is not None or time.monotonic() > deadline:
                pytest.fail(f"{otherwise}; exit status {self.process.returncode}, output:\n{self.output}")
            await asyncio.sleep(0.02)

    async def wait(self, seconds: float = START_SECONDS) -> int:
        """Wait until the process ends; return its exit status."""
        return await asyncio.to_thread(self.process.popen.wait, seconds)

    async def stop(self) -> None:
        await asyncio.to_thread(self.process.stop)


async def _in_output(program: Program, text: str) -> bool:
    return text in program.output


class RunningServer(Program):
    """The API in one or more separate processes."""

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
        app: str = "app.main:app",
        workers: int | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path = SRC,
        wait_for: str | None = "/health",
    ) -> RunningServer: ...


@pytest.fixture
async def run_server(tmp_path: Path) -> AsyncIterator[RunServer]:
    """Start uvicorn, or gunicorn with `workers`, on a free port: `server = await run_server(environment={…})`.

    `app` may be `SPECIMEN`. `command` (module and arguments, with a placeholder `{port}`) replaces all three. Wait
    until the path `wait_for` answers 200.
    """
    async with AsyncExitStack() as stack:

        async def run(
            command: list[str] | None = None,
            *,
            app: str = "app.main:app",
            workers: int | None = None,
            environment: Mapping[str, str] | None = None,
            cwd: Path = SRC,
            wait_for: str | None = "/health",
        ) -> RunningServer:
            port = free_port()
            if command is None and workers is None:
                command = ["uvicorn", app, "--host", HOST, "--port", "{port}"]
            elif command is None:
                command = ["gunicorn", app, "-w", str(workers), "-k", "uvicorn.workers.UvicornWorker"]
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
    """Start `arq app.worker.WorkerSettings` and wait until it polls for jobs."""

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

"""Transactions, after-commit callbacks, the reader, and the translation of PostgreSQL's errors."""

import asyncio
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool
from starlette.types import Message, Receive, Scope, Send

from app.api.dependencies import ReaderDep, SessionDep
from app.core.config import settings
from app.core.database import Engines, async_get_db, database_url, default_engines, on_commit, transaction
from app.core.exceptions import (
    AppError,
    ConflictError,
    DatabaseUnavailableError,
    DuplicateValueError,
    InvalidValueError,
    MissingReferenceError,
    StillReferencedError,
)
from app.models.user import User
from scripts.servers import Postgres
from tests.factories import make_user
from tests.fixtures import Fetch, LogRecords, RunServer, Statements, open_client
from tests.helper import running, wait_until
from tests.integration.own_app import build, build_specimen
from tests.specimen.crud import crud_drawers
from tests.specimen.factories import make_drawer, make_moth, make_slip
from tests.specimen.schemas import DrawerCreate

DRAWERS = "SELECT name FROM drawer ORDER BY id"


async def write_drawer(db: AsyncSession, name: str = "new") -> None:
    await crud_drawers.create(db, DrawerCreate(name=name))


async def execute(*statements: str, **parameters: Any) -> None:
    async with transaction() as db:
        for statement in statements:
            await db.execute(text(statement), parameters if ":" in statement else {})


class TestTransaction:
    async def test_commits_at_its_end(self, fetch: Fetch) -> None:
        async with transaction() as db:
            await write_drawer(db)
            assert await fetch(DRAWERS) == []
        assert await fetch(DRAWERS) == [{"name": "new"}]

    @pytest.mark.parametrize("error", [RuntimeError, ConflictError, asyncio.CancelledError, KeyboardInterrupt])
    async def test_rolls_back_on_any_exception(self, fetch: Fetch, error: type[BaseException]) -> None:
        async def write_and_fail() -> None:
            async with transaction() as db:
                await write_drawer(db)
                raise error

        with pytest.raises(error):
            await write_and_fail()
        assert await fetch(DRAWERS) == []

    async def test_gives_its_connection_back(self) -> None:
        await execute("SELECT 1")
        with pytest.raises(ProgrammingError):
            await execute("SELECT 1", "SELEKT 1")
        assert "Current Checked out connections: 0" in default_engines.write.pool.status()

    async def test_one_that_does_nothing_sends_nothing(self, statements: Statements) -> None:
        async with transaction():
            pass
        assert statements.all == []

    async def test_rows_stay_readable_after_it(self) -> None:
        async with transaction() as db:
            row = await crud_drawers.create(db, DrawerCreate(name="new"))
        assert (row.id, row.name) == (1, "new")


class TestOnCommit:
    async def test_runs_in_order_after_the_commit(self, fetch: Fetch) -> None:
        seen: list[Any] = []

        async def look() -> None:
            seen.append(await fetch(DRAWERS))

        async def append() -> None:
            seen.append("second")

        async with transaction() as db:
            on_commit(db, look)
            on_commit(db, append)
            await write_drawer(db)
            assert seen == []
        assert seen == [[{"name": "new"}], "second"]

    async def test_is_dropped_by_a_rollback(self) -> None:
        seen: list[str] = []

        async def never() -> None:
            seen.append("ran")

        async def write_and_fail() -> None:
            async with transaction() as db:
                on_commit(db, never)
                await write_drawer(db)
                raise ConflictError

        with pytest.raises(ConflictError):
            await write_and_fail()
        async with transaction() as db:
            await write_drawer(db)
        assert seen == []

    async def test_is_dropped_when_the_commit_fails(self, deferred_table: None, fetch: Fetch, logs: LogRecords) -> None:
        seen: list[str] = []

        async def never() -> None:
            seen.append("ran")

        async def write() -> None:
            async with transaction() as db:
                on_commit(db, never)
                await write_drawer(db)
                await db.execute(text("INSERT INTO deferred (drawer_id) VALUES (99)"))

        with pytest.raises(MissingReferenceError):
            await write()
        assert (seen, await fetch(DRAWERS)) == ([], [])

    async def test_runs_after_an_unknown_outcome_if_told_so(
        self, postgres: "asyncpg.Connection[Any]", deferred_table: None
    ) -> None:
        seen: list[str] = []

        async def called() -> None:
            seen.append("ran")

        async def never() -> None:
            seen.append("ran without even_if_unknown")

        async def write_and_lose_the_connection() -> None:
            async with transaction() as db:
                on_commit(db, never)
                on_commit(db, called, even_if_unknown=True)
                await write_drawer(db)
                pid = await db.scalar(text("SELECT pg_backend_pid()"))
                await postgres.execute("SELECT pg_terminate_backend($1, 5000)", pid)

        # Not "try again": a repeated POST could be done twice.
        with pytest.raises(DatabaseUnavailableError, match="repeat it only if it was not"):
            await write_and_lose_the_connection()
        assert seen[:1] == ["ran"]
        await wait_until(functools.partial(has_length, seen, 2))
        assert seen == ["ran"] * 2

    async def test_runs_again_after_an_abandoned_commit(
        self, postgres: "asyncpg.Connection[Any]", slow_commit: None
    ) -> None:
        """The server may finish a commit after the request has abandoned it; the first run came too early."""
        seen: list[Any] = []
        engines = Engines(settings.model_copy(update={"POSTGRES_STATEMENT_TIMEOUT": 2}))

        async def look() -> None:
            # Not by the fixture's connection, which may still be busy with its COMMIT.
            seen.append(await default_engines.reader.fetch_all(text(DRAWERS), {}))

        async def write() -> None:
            async with transaction(engines) as db:
                on_commit(db, look, even_if_unknown=True)
                await db.execute(text("SET LOCAL lock_timeout = 0"))
                await db.execute(text("SET LOCAL statement_timeout = 0"))
                await write_drawer(db)

        async with postgres.transaction():
            await postgres.execute("SELECT pg_advisory_xact_lock(7)")
            with pytest.raises(DatabaseUnavailableError):
                await write()
            await asyncio.sleep(0.5)  # time for more runs, which would be too early
            assert seen == [[]]
        await wait_until(functools.partial(has_length, seen, 2))
        assert seen[1] == [("new",)]
        async with transaction(engines) as db:
            await db.execute(text("SELECT 1"))
        await engines.close()

    async def test_runs_after_a_commit_whose_request_is_cancelled(
        self, postgres: "asyncpg.Connection[Any]", slow_commit: None
    ) -> None:
        """A cancellation does not stop a task between its commit and the callbacks, or the cache would stay stale."""
        seen: list[Any] = []

        async def look() -> None:
            await asyncio.sleep(0)
            # Not by the fixture's connection, which may still be busy with its COMMIT.
            seen.append(await default_engines.reader.fetch_all(text(DRAWERS), {}))

        async def write() -> None:
            async with transaction() as db:
                on_commit(db, look)
                on_commit(db, look)
                await write_drawer(db)

        async with AsyncExitStack() as stack, postgres.transaction():
            await postgres.execute("SELECT pg_advisory_xact_lock(7)")
            (writing,) = await stack.enter_async_context(running(write()))
            await wait_until(functools.partial(is_waiting, postgres))
            writing.cancel()
        assert writing.cancelled()
        assert seen == [[("new",)]] * 2
        assert "Current Checked out connections: 0" in default_engines.write.pool.status()

    async def test_is_dropped_when_such_a_commit_fails(
        self, postgres: "asyncpg.Connection[Any]", slow_commit: None, deferred_table: None, fetch: Fetch
    ) -> None:
        seen: list[str] = []

        async def never() -> None:
            seen.append("ran")

        async def write() -> None:
            async with transaction() as db:
                on_commit(db, never)
                await write_drawer(db)
                await db.execute(text("INSERT INTO deferred (drawer_id) VALUES (99)"))

        async with AsyncExitStack() as stack, postgres.transaction():
            await postgres.execute("SELECT pg_advisory_xact_lock(7)")
            (writing,) = await stack.enter_async_context(running(write()))
            await wait_until(functools.partial(is_waiting, postgres))
            writing.cancel()
        assert writing.cancelled()
        assert (seen, await fetch(DRAWERS)) == ([], [])

    async def test_failure_is_logged_and_stops_no_other(self, fetch: Fetch, logs: LogRecords) -> None:
        seen: list[str] = []

        async def fail() -> None:
            raise RuntimeError("mail server away")

        async def append() -> None:
            seen.append("second")

        async with transaction() as db:
            on_commit(db, fail)
            on_commit(db, append)
            await write_drawer(db)
        assert await fetch(DRAWERS) == [{"name": "new"}]
        assert seen == ["second"]
        [record] = logs.named("after-commit callback failed")
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == "mail server away"


@pytest.fixture
async def deferred_table(postgres: "asyncpg.Connection[Any]") -> AsyncIterator[None]:
    """A table whose foreign key is checked at the commit."""
    await postgres.execute(
        "CREATE TABLE deferred (drawer_id int REFERENCES drawer (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED)"
    )
    yield
    await postgres.execute("DROP TABLE deferred")


@pytest.fixture
async def slow_commit(postgres: "asyncpg.Connection[Any]") -> AsyncIterator[None]:
    """Make each commit of a new drawer wait for the advisory lock 7."""
    await postgres.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$"
    )
    await postgres.execute(
        "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON drawer DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    yield
    await postgres.execute("DROP FUNCTION wait CASCADE")


async def has_length(seen: list[Any], length: int) -> bool:
    return len(seen) == length


async def is_waiting(postgres: "asyncpg.Connection[Any]") -> bool:
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted)"
    return bool(await postgres.fetchval(query))


# -------- requests --------

router = APIRouter()
PlainSession = Annotated[AsyncSession, Depends(async_get_db)]
ScopedSession = Annotated[AsyncSession, Depends(async_get_db, scope="function")]
RequestSession = Annotated[AsyncSession, Depends(async_get_db, scope="request")]
callbacks: list[str] = []


@router.post("/session")
async def with_session(name: str, db: SessionDep) -> str:
    return await _write(name, db)


@router.post("/plain")
async def with_plain(name: str, db: PlainSession) -> str:
    return await _write(name, db)


@router.post("/scoped")
async def with_scoped(name: str, db: ScopedSession) -> str:
    return await _write(name, db)


@router.post("/default")
async def with_default(name: str, db: AsyncSession = Depends(async_get_db)) -> str:  # noqa: B008, FAST002 (as the README of old had it)
    return await _write(name, db)


@router.post("/request")
async def with_request(name: str, db: RequestSession) -> str:
    return await _write(name, db)


async def _write(name: str, db: AsyncSession) -> str:
    async def called() -> None:
        callbacks.append(name)

    on_commit(db, called)
    await write_drawer(db, name)
    return name


@router.post("/wrong-answer", response_model=int)
async def with_wrong_answer(db: SessionDep) -> str:
    await write_drawer(db)
    return "no number"


@router.post("/http-exception")
async def with_http_exception(db: PlainSession) -> None:
    await write_drawer(db)
    raise HTTPException(418)


@router.post("/app-error")
async def with_app_error(db: PlainSession) -> None:
    await write_drawer(db)
    raise ConflictError


@router.post("/bug")
async def with_bug(db: SessionDep) -> None:
    await write_drawer(db)
    raise RuntimeError


@router.post("/deferred")
async def with_deferred(db: PlainSession) -> str:
    await write_drawer(db)
    await db.execute(text("INSERT INTO deferred (drawer_id) VALUES (99)"))
    return "never"


@router.post("/failing-callback")
async def with_failing_callback(db: SessionDep) -> str:
    async def fail() -> None:
        raise RuntimeError

    on_commit(db, fail)
    await write_drawer(db)
    return "saved"


@router.get("/reader")
async def with_reader(db: ReaderDep) -> int:
    return len(await db.fetch_all(text("SELECT id FROM drawer"), {}))


class Watched:
    """An application that records the result of `look` when its answer begins."""

    def __init__(self, app: FastAPI, look: Callable[[], Awaitable[Any]]) -> None:
        self.app = app
        self.look = look
        self.seen: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(await self.look())
            await send(message)

        await self.app(scope, receive, watch)


@pytest.fixture(scope="module")
def own_app() -> FastAPI:
    return build(router)


@pytest.fixture
async def watched(own_app: FastAPI, fetch: Fetch) -> Watched:
    callbacks.clear()

    async def look() -> Any:
        return [row["name"] for row in await fetch(DRAWERS)], [*callbacks]

    return Watched(own_app, look)


@pytest.fixture
async def own_client(watched: Watched) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(watched) as client:
        yield client


class TestRequest:
    @pytest.mark.parametrize("path", ["session", "plain", "scoped", "default", "request"])
    async def test_commit_and_callbacks_precede_the_answer(
        self, watched: Watched, own_client: httpx.AsyncClient, path: str
    ) -> None:
        response = await own_client.post(f"/{path}?name=new")
        assert (response.status_code, response.json()) == (200, "new")
        assert watched.seen == [(["new"], ["new"])]

    @pytest.mark.parametrize("path", ["session", "plain", "default", "request"])
    async def test_duplicate(self, watched: Watched, own_client: httpx.AsyncClient, path: str) -> None:
        await make_drawer("new")
        response = await own_client.post(f"/{path}?name=new")
        assert (response.status_code, response.json()) == (409, {"detail": "Name already taken"})
        assert watched.seen == [(["new"], [])]

    @pytest.mark.parametrize(
        ("path", "status_code"), [("wrong-answer", 500), ("http-exception", 418), ("app-error", 409), ("bug", 500)]
    )
    async def test_rolls_back_what_did_not_succeed(
        self, own_client: httpx.AsyncClient, fetch: Fetch, path: str, status_code: int
    ) -> None:
        response = await own_client.post(f"/{path}")
        assert response.status_code == status_code
        assert "detail" in response.json()
        assert await fetch(DRAWERS) == []

    async def test_commit_that_fails_is_no_success(
        self, own_client: httpx.AsyncClient, deferred_table: None, fetch: Fetch
    ) -> None:
        response = await own_client.post("/deferred")
        assert (response.status_code, list(response.json())) == (404, ["detail"])
        assert await fetch(DRAWERS) == []

    async def test_callback_that_fails_is_no_error(
        self, own_client: httpx.AsyncClient, fetch: Fetch, logs: LogRecords
    ) -> None:
        response = await own_client.post("/failing-callback")
        assert (response.status_code, response.json()) == (200, "saved")
        assert await fetch(DRAWERS) == [{"name": "new"}]
        assert len(logs.named("after-commit callback failed")) == 1

    async def test_unexpected_error_tells_nothing_and_is_logged(
        self, own_client: httpx.AsyncClient, logs: LogRecords
    ) -> None:
        response = await own_client.post("/bug", headers={"X-Request-ID": "abc"})
        assert response.json() == {"detail": "Internal server error", "request_id": "abc"}
        [record] = logs.named("unhandled error")
        assert record.exc_info is not None
        assert record.exc_info[0] is RuntimeError

    async def test_reader(self, own_client: httpx.AsyncClient, statements: Statements) -> None:
        await make_drawer()
        statements.clear()
        assert (await own_client.get("/reader")).json() == 1
        assert statements.all == [("read", "SELECT id FROM drawer")]


class TestReader:
    async def test_is_read_only_on_the_servers_side(self, fetch: Fetch) -> None:
        reader = default_engines.reader
        [row] = await reader.fetch_all(text("SELECT current_setting('transaction_read_only') AS value"), {})
        assert row.value == "on"
        with pytest.raises(AppError):
            await reader.fetch_all(text("INSERT INTO drawer (name, created_at) VALUES ('x', now()) RETURNING id"), {})
        assert await fetch(DRAWERS) == []

    async def test_uses_no_transaction(self, statements: Statements) -> None:
        await default_engines.reader.fetch_all(text("SELECT 1"), {})
        assert statements.all == [("read", "SELECT 1")]

    async def test_holds_no_connection_between_statements(self) -> None:
        await default_engines.reader.fetch_all(text("SELECT 1"), {})
        assert "Current Checked out connections: 0" in default_engines.read.pool.status()

    async def test_many_at_once_share_a_bounded_pool(self) -> None:
        reader = default_engines.reader
        query = text("SELECT pg_backend_pid() AS pid, pg_sleep(0.001)")
        rows = await asyncio.gather(*(reader.fetch_all(query, {}) for _ in range(200)))
        assert 1 <= len({row[0].pid for row in rows}) <= settings.POSTGRES_POOL_SIZE

    async def test_reads_from_the_replica(self, run_server: RunServer) -> None:
        """A missing replica fails only reads."""
        server = await run_server(environment={"POSTGRES_REPLICA_SERVER": "127.0.0.2"})
        read = await server.client.get("/api/v1/users")
        assert read.status_code == 503
        assert read.headers["Retry-After"].isdigit()
        body = {"name": "Ann Other", "username": "ann", "email": "ann@example.com", "password": "Str1ngst!"}
        assert (await server.client.post("/api/v1/user", json=body)).status_code == 201


class TestConnectionSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("TimeZone", "UTC"),
            ("jit", "off"),
            ("statement_timeout", f"{settings.POSTGRES_STATEMENT_TIMEOUT * 1000:.0f}ms"),
            ("lock_timeout", f"{settings.POSTGRES_LOCK_TIMEOUT * 1000:.0f}ms"),
            ("idle_in_transaction_session_timeout", f"{settings.POSTGRES_IDLE_TIMEOUT * 1000:.0f}ms"),
        ],
    )
    async def test_on_both_engines(self, name: str, value: str) -> None:
        query = text("SELECT setting || COALESCE(unit, '') AS value FROM pg_settings WHERE name = :name")
        async with transaction() as db:
            assert (await db.execute(query, {"name": name})).scalar_one() == value
        [row] = await default_engines.reader.fetch_all(query, {"name": name})
        assert row.value == value

    async def test_engines_say_who_they_are(self) -> None:
        query = text("SELECT current_setting('application_name') AS value")
        async with transaction() as db:
            assert (await db.execute(query)).scalar_one() == "app"
        [row] = await default_engines.reader.fetch_all(query, {})
        assert row.value == "app reader"


INSERT = (
    'INSERT INTO slip (name, drawer_id, path, "limit", period, created_at) '
    "VALUES (:name, :drawer_id, :path, 5, :period, now())"
)
GOOD = {"name": "new", "drawer_id": 1, "path": "new", "period": 60}


class TestErrors:
    @pytest.mark.parametrize(
        ("values", "error", "detail"),
        [
            ({"name": "taken"}, DuplicateValueError, "Name already taken"),
            ({"path": "taken"}, DuplicateValueError, "Drawer id and path already taken"),
            ({"drawer_id": 7}, MissingReferenceError, MissingReferenceError.detail),
            ({"name": "a" * 301}, InvalidValueError, InvalidValueError.detail),
            ({"name": "a\x00"}, InvalidValueError, InvalidValueError.detail),
            ({"name": "\ud800"}, InvalidValueError, InvalidValueError.detail),
            ({"drawer_id": 2**31}, InvalidValueError, InvalidValueError.detail),
            ({"drawer_id": 2**63}, InvalidValueError, InvalidValueError.detail),
            ({"period": 0}, InvalidValueError, InvalidValueError.detail),
        ],
    )
    async def test_of_an_insert(self, fetch: Fetch, values: dict[str, Any], error: type[AppError], detail: str) -> None:
        await make_slip(await make_drawer(), name="taken", path="taken")
        with pytest.raises(error) as raised:
            async with transaction() as db:
                await db.execute(text(INSERT), {**GOOD, **values})
        assert type(raised.value) is error
        assert raised.value.detail == detail
        assert len(await fetch("SELECT FROM slip")) == 1

    @pytest.mark.parametrize(("name", "message"), [(None, "null value in column"), (7, r"query argument \$1")])
    async def test_fault_of_the_code_passes_without_its_value(self, name: Any, message: str) -> None:
        with pytest.raises(DBAPIError, match=message) as raised:
            async with transaction() as db:
                await db.execute(text(INSERT), {**GOOD, "path": "secret", "name": name})
        causes: list[str] = []
        cause: BaseException | None = raised.value
        while cause is not None:
            causes.append(str(cause))
            cause = cause.__cause__ or cause.__context__
        assert not any("secret" in each or "7" in each for each in causes), causes
        assert any("name" in each for each in causes[1:])

    async def test_of_a_delete(self) -> None:
        drawer = await make_drawer()
        await make_moth(await make_user(), drawer_id=drawer.id)
        with pytest.raises(StillReferencedError):
            async with transaction() as db:
                await crud_drawers.db_delete(db, id=drawer.id)

    async def test_anything_else_passes_as_it_is(self) -> None:
        with pytest.raises(ProgrammingError, match="syntax error"):
            async with transaction() as db:
                await db.execute(text("SELEKT 1"))
        with pytest.raises(ProgrammingError, match="syntax error"):
            await default_engines.reader.fetch_all(text("SELEKT 1"), {})

    async def test_message_never_holds_the_values(self) -> None:
        with pytest.raises(ProgrammingError) as raised:
            async with transaction() as db:
                await db.execute(text("SELEKT :hash"), {"hash": "$bcrypt-sha256$secret"})
        assert "bcrypt" not in str(raised.value)

    async def test_lock_that_does_not_come(self, user: User) -> None:
        lock = 'SELECT id FROM "user" WHERE id = :id FOR UPDATE'
        async with transaction() as holder:
            await holder.execute(text(lock), {"id": user.id})
            with pytest.raises(DatabaseUnavailableError) as raised:
                await execute("SET LOCAL lock_timeout = 20", lock, id=user.id)
        assert raised.value.headers["Retry-After"].isdigit()

    async def test_statement_that_takes_too_long(self) -> None:
        with pytest.raises(DatabaseUnavailableError):
            await execute("SET LOCAL statement_timeout = 20", "SELECT pg_sleep(60)")

    async def test_deadlock(self) -> None:
        users = [await make_user(), await make_user()]
        update = text("UPDATE \"user\" SET name = 'locked' WHERE id = :id")
        both_hold_one = asyncio.Barrier(2)

        async def lock_both(first: User, second: User) -> None:
            async with transaction() as db:
                await db.execute(text("SET LOCAL lock_timeout = '20s'"))
                await db.execute(update, {"id": first.id})
                await both_hold_one.wait()
                await db.execute(update, {"id": second.id})

        results = await asyncio.gather(lock_both(*users), lock_both(*reversed(users)), return_exceptions=True)
        assert [type(result) for result in results if result is not None] == [DatabaseUnavailableError]

    async def test_connection_that_is_ended_in_a_transaction(self, postgres: "asyncpg.Connection[Any]") -> None:

        async def be_ended() -> None:
            async with transaction() as db:
                pid = (await db.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                await postgres.execute("SELECT pg_terminate_backend($1)", pid)
                await db.execute(text("SELECT 1"))

        with pytest.raises(DatabaseUnavailableError):
            await be_ended()
        await execute("SELECT 1")

    async def test_connections_that_are_ended_while_idle(
        self, client: httpx.AsyncClient, postgres: "asyncpg.Connection[Any]", logs: LogRecords
    ) -> None:
        """Pooled connections are closed, as by a restart of the server; no request fails."""
        await asyncio.gather(*(client.get("/api/v1/users") for _ in range(10)))
        body = {"name": "Ann Other", "username": "ann", "email": "ann@example.com", "password": "Str1ngst!"}
        assert (await client.post("/api/v1/user", json=body)).status_code == 201
        ended = await postgres.fetch(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert len(ended) > 2
        answers = await asyncio.gather(*(client.get("/api/v1/users") for _ in range(20)))
        assert [answer.status_code for answer in answers] == [200] * 20
        second = {**body, "username": "bob", "email": "bob@example.com"}
        assert (await client.post("/api/v1/user", json=second)).status_code == 201

    async def test_pool_without_a_free_connection(self, app: FastAPI) -> None:
        own = build_specimen(POSTGRES_POOL_SIZE=2, POSTGRES_POOL_TIMEOUT=0.3)
        async with open_client(own) as client:
            engines = own.state.resources.engines
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    db = await stack.enter_async_context(transaction(engines))
                    await db.execute(text("SELECT 1"))
                    await stack.enter_async_context(engines.read.connect())
                body = {"name": "Ann Other", "username": "ann", "email": "ann@example.com", "password": "Str1ngst!"}
                answers = await asyncio.gather(client.post("/api/v1/user", json=body), client.get("/api/v1/users"))
            for answer in answers:
                assert answer.status_code == 503
                assert answer.headers["Retry-After"].isdigit()
                assert answer.json() == {"detail": DatabaseUnavailableError.detail}
            assert (await client.get("/api/v1/users")).status_code == 200


@asynccontextmanager
async def connected() -> AsyncIterator[Any]:
    """Open a connection with the current settings."""
    own_engine = create_async_engine(database_url(settings), poolclass=NullPool)
    try:
        async with own_engine.connect() as connection:
            yield connection
    finally:
        await own_engine.dispose()


@pytest.fixture
def socket_directory() -> Iterator[Path]:
    """A folder for sockets that every user may write to. Its path is short: a socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


class TestAddress:
    @pytest.mark.parametrize(
        ("user", "password"),
        [("we:ird@us/er?#%41", 'p@ss:/w%rd#?&= +"\\é'), ("spa ce", "%"), ("Ünïcode", "😀"), ("plain", "[::1]")],
    )
    async def test_any_character_in_user_and_password(
        self, monkeypatch: pytest.MonkeyPatch, postgres: "asyncpg.Connection[Any]", user: str, password: str
    ) -> None:
        quoted = password.replace("'", "''")
        await postgres.execute(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{quoted}'")
        try:
            monkeypatch.setattr(settings, "POSTGRES_USER", user)
            monkeypatch.setattr(settings, "POSTGRES_PASSWORD", SecretStr(password))
            async with connected() as connection:
                assert (await connection.execute(text("SELECT current_user"))).scalar_one() == user
        finally:
            await postgres.execute(f'DROP ROLE "{user}"')

    async def test_socket_directory(self, monkeypatch: pytest.MonkeyPatch, socket_directory: Path) -> None:
        options = {"unix_socket_directories": str(socket_directory), "fsync": "off"}
        with Postgres(socket_directory / "server", settings=options) as server:
            monkeypatch.setattr(settings, "POSTGRES_SERVER", str(socket_directory))
            monkeypatch.setattr(settings, "POSTGRES_PORT", server.port)
            monkeypatch.setattr(settings, "POSTGRES_PASSWORD", SecretStr(server.password))
            monkeypatch.setattr(settings, "POSTGRES_DB", server.database)
            async with connected() as connection:
                by_socket = text("SELECT inet_client_addr() IS NULL")
                assert (await connection.execute(by_socket)).scalar_one() is True

    def test_is_not_printed_with_its_password(self) -> None:
        assert (
            settings.POSTGRES_PASSWORD.get_secret_value()
            not in f"{database_url(settings)} {database_url(settings)!r} {default_engines.write!r}"
        )

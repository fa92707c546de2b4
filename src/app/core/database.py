"""Two engines: one for transactions, one for single read-only statements. What each waits for is bounded."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, cast

import asyncpg
from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy import URL, Executable, MetaData, UniqueConstraint, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, MappedAsDataclass
from sqlalchemy.util import await_only, greenlet_spawn

from app.core.config import settings
from app.core.exceptions import (
    AppError,
    DatabaseUnavailableError,
    DuplicateValueError,
    InvalidValueError,
    MissingReferenceError,
    StillReferencedError,
)
from app.core.postgres import FairPool, connect, server_at, servers

logger = logging.getLogger(__name__)

_SESSION = "app.session"
_AFTER_COMMIT = "after_commit"
_SETTLE_SECONDS = 0.2  # between two looks at whether a commit whose answer did not come is over
AfterCommit = Callable[[], Awaitable[None]]
_unsettled: set[asyncio.Task[None]] = set()

# SQLSTATEs that say "not now", besides the classes 08 (connection) and 53 (resources):
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_NOT_NOW = {
    "25006",  # the server became a read-only standby
    "40001",  # serialization failure
    "40P01",  # deadlock
    "42P01",  # a table is missing: the migrations have not run yet
    "55P03",  # lock timeout
    "57014",  # statement timeout
    "57P01",  # administrator shutdown
    "57P02",  # crash of another server process
    "57P03",  # the server is starting up
}


class Base(MappedAsDataclass, DeclarativeBase):
    """Base of every model. Constraints get their names from here, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def database_url(server: str = settings.POSTGRES_SERVER) -> URL:
    """The address of the database; a server that starts with `/` is a socket directory, as in libpq."""
    return URL.create(
        "postgresql+asyncpg",
        username=settings.POSTGRES_USER,
        password=settings.POSTGRES_PASSWORD.get_secret_value(),
        host=server,
        port=settings.POSTGRES_PORT,
        database=settings.POSTGRES_DB,
    )


def _create_engine(server: str, server_settings: Mapping[str, str], **options: Any) -> AsyncEngine:
    milliseconds = {
        "statement_timeout": settings.POSTGRES_STATEMENT_TIMEOUT,
        "lock_timeout": settings.POSTGRES_LOCK_TIMEOUT,
        "idle_in_transaction_session_timeout": 2 * settings.POSTGRES_STATEMENT_TIMEOUT,
    }
    url = database_url(server)
    engine = create_async_engine(
        url,
        poolclass=FairPool,
        pool_size=settings.POSTGRES_POOL_SIZE,
        max_overflow=0,
        pool_timeout=settings.POSTGRES_POOL_TIMEOUT,
        hide_parameters=True,  # a password's hash may be among them, and errors are logged
        connect_args={
            "async_creator_fn": connect,
            "timeout": settings.POSTGRES_CONNECT_TIMEOUT,
            # The server ends a statement at its timeout; the client gives up a moment later, when the server is gone.
            "command_timeout": settings.POSTGRES_STATEMENT_TIMEOUT + 0.25,
            "statement_cache_size": settings.POSTGRES_STATEMENT_CACHE_SIZE,
            "prepared_statement_cache_size": settings.POSTGRES_STATEMENT_CACHE_SIZE,
            "server_settings": {
                "timezone": "UTC",
                "jit": "off",  # compiling takes longer than any statement here
                **{name: str(int(seconds * 1000)) for name, seconds in milliseconds.items()},
                **server_settings,
            },
        },
        **options,
    )
    event.listen(engine.sync_engine, "checkout", server_at(url.host, url.port).refuse_dead_connection)
    event.listen(engine.sync_engine, "handle_error", _translate_error)
    return engine


def _translate_error(context: ExceptionContext) -> None:
    """Turn what PostgreSQL refuses into errors of ours; anything else passes as it is."""
    original = context.original_exception
    if isinstance(original, TimeoutError):
        # The client has given up, the server may still be at it: nobody else may get this connection, and its end
        # is not waited for.
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
        if context.connection is not None and context.engine is not None:
            cast(Any, context.connection.connection.driver_connection).terminate()
            server_at(context.engine.url.host, context.engine.url.port).fell_silent(original)
    cause = original.__cause__ or original
    if getattr(cause, "detail", None):
        _forget_values(context, cause)
    translated = _translate(
        cause,
        is_disconnect=context.is_disconnect,
        is_delete=getattr(context.execution_context, "isdelete", False),
    )
    if translated is not None:
        raise translated from cause


def _translate(cause: BaseException, *, is_disconnect: bool, is_delete: bool) -> AppError | None:
    state: str = getattr(cause, "sqlstate", None) or ""
    if is_disconnect or state in _NOT_NOW or state.startswith(("08", "53")):
        return DatabaseUnavailableError()
    if state == "23505":
        return DuplicateValueError(_taken(getattr(cause, "constraint_name", None)))
    if state in {"23001", "23503"}:
        return StillReferencedError() if is_delete else MissingReferenceError()
    if state.startswith("22") or state in {"23502", "23514"} or isinstance(cause, asyncpg.DataError):
        return InvalidValueError()
    return None


def _forget_values(context: ExceptionContext, cause: Any) -> None:
    """PostgreSQL's DETAIL quotes rows, a password's hash among their values, and errors are logged."""
    cause.detail = None
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            error.args = tuple(str(part).partition("\nDETAIL:")[0] for part in error.args)


def _taken(constraint_name: str | None) -> str | None:
    for table in Base.metadata.tables.values():
        for constraint in table.constraints:
            if isinstance(constraint, UniqueConstraint) and constraint.name == constraint_name:
                return f"{' and '.join(column.name for column in constraint.columns)} already taken".capitalize()
    return None


engine = _create_engine(settings.POSTGRES_SERVER, {"application_name": "app"})
_OLDEST_TRANSACTION = text(
    "SELECT now(), min(xact_start) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'app' AND pid <> pg_backend_pid()"
)
local_session = async_sessionmaker(engine, expire_on_commit=False)

read_engine = _create_engine(
    settings.POSTGRES_REPLICA_SERVER or settings.POSTGRES_SERVER,
    {"application_name": "app reader", "default_transaction_read_only": "on"},
    isolation_level="AUTOCOMMIT",
    pool_reset_on_return=None,
)


BUILT_ONCE = {"built_once": True}
"""Execution options of a statement that is built once and used often: a `Reader` compiles it once, too."""


class Reader:
    """Reads outside a transaction: borrows a read-only connection for one statement at a time."""

    async def fetch_all(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run one statement and return its rows."""
        prepared = _prepare(statement) if "built_once" in statement.get_execution_options() else None
        try:
            if prepared is None:
                return await greenlet_spawn(_fetch_all, statement, parameters)
            return await greenlet_spawn(_fetch_prepared, prepared, parameters)
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError from error


def _fetch_all(statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
    # What `AsyncConnection` does in three greenlets (connect, execute, close) in one: a fifth of a small request.
    with read_engine.sync_engine.connect() as connection:
        return connection.execute(statement, parameters).all()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What SQLAlchemy makes of a statement for the driver; running it then takes none of SQLAlchemy's execution."""

    sql: str
    defaults: Mapping[str, Any]
    names: Sequence[str]
    to_driver: Mapping[str, Callable[[Any], Any]]
    from_driver: Sequence[Callable[[Any], Any] | None]

    def arguments(self, given: Mapping[str, Any]) -> list[Any]:
        values = {**self.defaults, **given}
        for name, process in self.to_driver.items():
            values[name] = process(values[name])
        return [values[name] for name in self.names]

    def rows(self, records: Sequence[Any]) -> Sequence[Any]:
        if not any(self.from_driver):
            return records
        return [
            tuple(process(value) if process else value for process, value in zip(self.from_driver, record, strict=True))
            for record in records
        ]


@lru_cache(maxsize=1024)
def _prepare(statement: Executable) -> _Prepared | None:
    """Compile a statement, unless its text depends on its values (as that of a list does)."""
    dialect = read_engine.dialect
    compiled = cast(Any, statement).compile(dialect=dialect)
    if compiled.literal_execute_params or compiled.post_compile_params:
        return None
    binds = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
    processors = {name: kind.bind_processor(dialect) for name, kind in binds.items()}
    columns = [column.type.dialect_impl(dialect) for column in cast(Any, statement).selected_columns]
    return _Prepared(
        sql=compiled.string,
        defaults=compiled.params,
        names=tuple(compiled.positiontup),
        to_driver={name: process for name, process in processors.items() if process is not None},
        from_driver=[column.result_processor(dialect, None) for column in columns],
    )


def _fetch_prepared(prepared: _Prepared, parameters: Mapping[str, Any]) -> Sequence[Any]:
    connection = read_engine.sync_engine.raw_connection()
    driver: Any = connection.driver_connection
    try:
        return prepared.rows(await_only(driver.fetch(prepared.sql, *prepared.arguments(parameters))))
    except Exception as error:
        if isinstance(error, TimeoutError):
            driver.terminate()
            url = read_engine.url
            server_at(url.host, url.port).fell_silent(error)
        if isinstance(error, asyncpg.PostgresError):
            error.detail = None  # it quotes values
        translated = _translate(error, is_disconnect=driver.is_closed(), is_delete=False)
        if translated is None:
            raise
        raise translated from error
    except BaseException:  # given up while the server is still at it
        driver.terminate()
        raise
    finally:
        connection.close()  # back to the pool, which looks at each connection that it lends


Database = AsyncSession | Reader


async def fetch_all(db: Database, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
    """Run one reading statement on a `Reader` or, inside its transaction, on a session."""
    if isinstance(db, Reader):
        return await db.fetch_all(statement, parameters)
    return (await db.execute(statement, parameters)).all()


@asynccontextmanager
async def transaction() -> AsyncIterator[AsyncSession]:
    """Open a unit of work: commit at the end, roll back on any exception, then run the after-commit callbacks."""
    try:
        async with local_session() as db:
            yield db
            ending = asyncio.create_task(_commit(db))
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:  # the request has been given up: not between a commit and what follows it
                while not ending.done():
                    with contextlib.suppress(asyncio.CancelledError):  # nor when it is given up once more
                        await asyncio.wait([ending])
                raise
    except PoolTimeoutError as error:
        raise DatabaseUnavailableError from error


async def _commit(db: AsyncSession) -> None:
    try:
        await db.commit()
    except BaseException as error:  # it may have been done, though its answer did not come
        callbacks = [callback for callback, even_if_unknown in db.info.pop(_AFTER_COMMIT, []) if even_if_unknown]
        await _call(callbacks)
        if callbacks and isinstance(error, DatabaseUnavailableError):
            again = asyncio.create_task(_call_when_settled(callbacks))
            _unsettled.add(again)
            again.add_done_callback(_unsettled.discard)
        raise
    await _call([callback for callback, _ in db.info.pop(_AFTER_COMMIT, [])])


async def _call_when_settled(callbacks: Sequence[AfterCommit]) -> None:
    """Call once no transaction that has begun can commit any more: the server may do it after it was given up."""
    since = None
    while True:
        try:
            async with engine.connect() as connection:
                now, oldest = (await connection.execute(_OLDEST_TRANSACTION)).one()
        except (DatabaseUnavailableError, PoolTimeoutError):
            pass
        else:
            since = since or now
            if oldest is None or oldest > since:
                break
        await asyncio.sleep(_SETTLE_SECONDS)
    await _call(callbacks)


def on_commit(db: AsyncSession, callback: AfterCommit, *, even_if_unknown: bool = False) -> None:
    """Call `callback` when `db` has committed, before the response leaves; never after a rollback.

    `even_if_unknown`: also when nobody knows whether it has committed, since the connection was lost over it; then a
    second time when that is decided.
    """
    db.info.setdefault(_AFTER_COMMIT, []).append((callback, even_if_unknown))


async def _call(callbacks: Sequence[AfterCommit]) -> None:
    for callback in callbacks:
        try:
            await callback()
        except Exception:  # the data is saved: what follows from it must not turn the answer into an error
            logger.exception("after-commit callback failed")


async def close_engines() -> None:
    """Close the connections, or leave them to the process's end when the server does not answer."""
    for server in servers.values():
        server.stop_trying()
    for task in _unsettled:
        task.cancel()
    for each in (engine, read_engine):
        try:
            async with asyncio.timeout(settings.POSTGRES_CONNECT_TIMEOUT):
                await each.dispose()
        except TimeoutError:
            await each.dispose(close=False)


async def async_get_db(connection: HTTPConnection) -> AsyncSession:
    """The request's transaction, committed before its response leaves however the dependency is declared.

    FastAPI ends a plain `yield` dependency after the response; what is entered on this stack ends before.
    """
    db = session_of(connection)
    if db is None:
        stack = cast(AsyncExitStack, connection.scope["fastapi_function_astack"])
        db = connection.scope[_SESSION] = await stack.enter_async_context(transaction())
    return db


def session_of(connection: HTTPConnection) -> AsyncSession | None:
    """The request's session, if anything in it has asked for one."""
    return cast(AsyncSession | None, connection.scope.get(_SESSION))


reader = Reader()


async def get_reader() -> Reader:
    return reader


SessionDep = Annotated[AsyncSession, Depends(async_get_db, scope="function")]
ReaderDep = Annotated[Reader, Depends(get_reader)]

"""The unit of work: one transaction, and the callbacks that run after its commit; the dependencies of endpoints."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, cast

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database.engines import WRITER, Engines, default_engines, engines_of
from app.core.database.reader import Reader
from app.core.exceptions import DatabaseUnavailableError, InvalidRequestError

logger = logging.getLogger(__name__)

AfterCommit = Callable[[], Awaitable[object]]
_AFTER_COMMIT = "after_commit"
_SESSION = "app.session"
_SETTLE_SECONDS = 0.2  # between two checks whether a commit with an unknown outcome is over
_OLDEST_TRANSACTION = text(
    "SELECT now(), min(xact_start) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = :writer AND pid <> pg_backend_pid()"
).bindparams(writer=WRITER)
_UNKNOWN_OUTCOME = (
    "The database did not confirm the change: check whether it was made, and repeat it only if it was not"
)


@asynccontextmanager
async def transaction(
    engines: Engines = default_engines, *, statement_timeout: float | None = None
) -> AsyncIterator[AsyncSession]:
    """Open a unit of work: commit at the end and run the callbacks of `on_commit`, or roll back on any exception.

    `statement_timeout`: the seconds that each statement may take, in place of POSTGRES_STATEMENT_TIMEOUT.
    """
    try:
        async with engines.session(statement_timeout) as db:
            yield db
            commit = asyncio.create_task(_commit(db, engines))
            try:
                await asyncio.shield(commit)
            except asyncio.CancelledError:  # a cancelled request must not stop between the commit and its callbacks
                while not commit.done():
                    with contextlib.suppress(asyncio.CancelledError):  # nor when it is cancelled again
                        await asyncio.wait([commit])
                raise
    except PoolTimeoutError as error:
        raise DatabaseUnavailableError from error


def on_commit(db: AsyncSession, callback: AfterCommit, *, even_if_unknown: bool = False) -> None:
    """Call `callback` when `db` has committed, before the response leaves.

    `even_if_unknown`: also when COMMIT fails. If the connection was lost, so that the outcome is unknown, the callback
    runs a second time when the outcome is decided.
    """
    db.info.setdefault(_AFTER_COMMIT, []).append((callback, even_if_unknown))


async def _commit(db: AsyncSession, engines: Engines) -> None:
    try:
        await db.commit()
    except BaseException as error:  # the server may have committed, although its answer did not arrive
        callbacks = [callback for callback, even_if_unknown in db.info.pop(_AFTER_COMMIT, []) if even_if_unknown]
        await _call(callbacks)
        if not isinstance(error, DatabaseUnavailableError):
            raise
        if callbacks:
            again = asyncio.create_task(_call_when_settled(callbacks, engines))
            engines.background.add(again)
            again.add_done_callback(engines.background.discard)
        raise DatabaseUnavailableError(_UNKNOWN_OUTCOME) from error
    await _call([callback for callback, _ in db.info.pop(_AFTER_COMMIT, [])])


async def _call_when_settled(callbacks: Sequence[AfterCommit], engines: Engines) -> None:
    """Call once every transaction that had begun is over: the server may commit one after the client gave up."""
    since = None
    while True:
        with contextlib.suppress(DatabaseUnavailableError, PoolTimeoutError):
            async with engines.write.connect() as connection:
                now, oldest = (await connection.execute(_OLDEST_TRANSACTION)).one()
            since = since or now
            if oldest is None or oldest > since:
                break
        await asyncio.sleep(_SETTLE_SECONDS)
    await _call(callbacks)


async def _call(callbacks: Sequence[AfterCommit]) -> None:
    for callback in callbacks:
        try:
            await callback()
        except Exception:  # the commit has succeeded: no error of a callback may change the response
            logger.exception("after-commit callback failed")


# -------- dependencies of endpoints --------
async def open_transaction(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Open the request's transaction, unless it is open already, and keep it in the scope for `session_of`."""
    if connection.scope["type"] == "websocket":
        raise InvalidRequestError(
            "a WebSocket has no transaction of its own: open one for each message, by "
            "`async with transaction(engines_of(websocket)) as db:`"
        )
    if (open_session := session_of(connection)) is not None:  # asked for again with `use_cache=False`
        yield open_session
        return
    async with transaction(engines_of(connection)) as db:
        connection.scope[_SESSION] = db
        yield db


async def async_get_db(db: Annotated[AsyncSession, Depends(open_transaction, scope="function")]) -> AsyncSession:
    """The request's transaction, committed before the response leaves, whichever scope the endpoint declares.

    FastAPI ends a plain `yield` dependency after the response has left, one of scope "function" before.
    """
    return db


def session_of(connection: HTTPConnection) -> AsyncSession | None:
    """The request's session, if anything in it has asked for one."""
    return cast(AsyncSession | None, connection.scope.get(_SESSION))


async def get_reader(connection: HTTPConnection) -> Reader:
    return engines_of(connection).reader

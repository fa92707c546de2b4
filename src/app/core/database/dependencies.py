"""The dependencies behind `SessionDep` and `ReaderDep`."""

from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database.engines import engines_of
from app.core.database.reader import Reader
from app.core.database.session import transaction
from app.core.exceptions import InvalidRequestError

_SESSION = "app.session"


async def open_transaction(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """Open the request's transaction, unless it is open already, and note it in the scope for `session_of`."""
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

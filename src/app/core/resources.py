"""The objects of an application (settings, engines, cache, …), as its requests find them."""

from collections.abc import Callable
from typing import TypeVar, cast

from fastapi.requests import HTTPConnection

T = TypeVar("T")

SCOPE_KEY = "app.resources"


def getter(kind: type[T]) -> Callable[[HTTPConnection], T]:
    """Return an accessor: it takes a request or WebSocket and returns the application's object of this class."""

    def get(connection: HTTPConnection) -> T:
        return cast(T, connection.scope[SCOPE_KEY][kind])

    return get

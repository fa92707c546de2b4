"""Limits of one request: the size of its body and the time that it may take."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import FastAPI
from fastapi.requests import HTTPConnection
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.http.context import matched_route, sent_status

logger = logging.getLogger(__name__)

Endpoint = TypeVar("Endpoint", bound=Callable[..., object])
_DEADLINE = "app.deadline"
_TOO_LARGE = "The body is too large: send no more than {} bytes"


def max_body_bytes(number: int) -> Callable[[Endpoint], Endpoint]:
    """Give an endpoint its own limit in place of MAX_BODY_BYTES; the time to send such a body is not limited.

    `@max_body_bytes(10**9)` stands below the decorator of the route.
    """

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.max_body_bytes = number  # type: ignore[attr-defined]  # read by `BodyLimit`
        return endpoint

    return mark


def request_timeout(seconds: float | None) -> Callable[[HTTPConnection], Awaitable[None]]:
    """Make a dependency that gives a route its own time in place of REQUEST_TIMEOUT; None: no limit."""

    async def set_deadline(connection: HTTPConnection) -> None:
        now = asyncio.get_running_loop().time()
        connection.scope[_DEADLINE].reschedule(None if seconds is None else now + seconds)

    return set_deadline


class BodyLimit:
    """Answer 413 to bodies of more than `max_bytes`, or than the endpoint's own limit.

    FastAPI's `max_body_size` answers in plain text, outside all other middleware.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        received = int(announced) if announced.isdigit() else 0
        if received > self.max_bytes and received > (largest := _largest_limit(scope["app"], self.max_bytes)):
            await JSONResponse({"detail": _TOO_LARGE.format(largest)}, 413)(scope, receive, send)
            return
        limit = time_left = None

        async def receive_and_count() -> Message:
            nonlocal received, limit, time_left
            deadline = scope[_DEADLINE]
            if limit is None:  # only now the route is known
                own = getattr(matched_route(scope).endpoint, "max_body_bytes", None) if "route" in scope else None
                limit = own or self.max_bytes
                _check(received, limit)
                received = 0
                if own and deadline.when() is not None:
                    time_left = deadline.when() - asyncio.get_running_loop().time()
                    deadline.reschedule(None)
            message = await receive()
            received += len(message.get("body", b""))
            _check(received, limit)
            if time_left is not None and not message.get("more_body"):
                deadline.reschedule(asyncio.get_running_loop().time() + time_left)
                time_left = None
            return message

        await self.app(scope, receive_and_count, send)


def _check(number: int, limit: int) -> None:
    if number > limit:
        raise HTTPException(413, _TOO_LARGE.format(limit))


def _largest_limit(app: FastAPI, default: int) -> int:
    """Return the largest limit of any route: beyond it, no body needs routing."""
    endpoints = [getattr(context.original_route, "endpoint", None) for context in iter_route_contexts(app.routes)]
    return max(default, *(getattr(endpoint, "max_body_bytes", 0) for endpoint in endpoints))


class RequestTimeout:
    """End a request after `seconds`: with 503, or by an error when the response has begun."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = asyncio.timeout(self.seconds if scope["type"] == "http" else None)
        scope[_DEADLINE] = deadline
        try:
            async with deadline:
                await self.app(scope, receive, send)
        except Exception:  # the cancellation may have become any error on its way
            if not deadline.expired() or sent_status(scope) is not None:
                raise
            logger.warning("request timed out", extra={"method": scope["method"], "path": scope["path"]})
            detail = "The request took too long: check what it has changed before you repeat it, with less at once"
            await JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})(scope, receive, send)

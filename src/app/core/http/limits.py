"""Limits of one request: the size of its body and the time that it may take."""

import asyncio
import logging

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.http.context import sent_status

logger = logging.getLogger(__name__)


class BodyLimit:
    """Answer 413 to bodies of more than `max_bytes`.

    FastAPI's `max_body_size` checks the announced length only when the body is read, and then answers in plain text
    outside all other middleware.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.detail = f"The body is too large: send no more than {max_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if announced.isdigit() and int(announced) > self.max_bytes:
            await JSONResponse({"detail": self.detail}, 413)(scope, receive, send)
            return
        received = 0

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, self.detail)
            return message

        await self.app(scope, receive_and_count, send)


class RequestTimeout:
    """End a request after `seconds`: with 503, or by an error when the response has begun."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = asyncio.timeout(self.seconds if scope["type"] == "http" else None)
        try:
            async with deadline:
                await self.app(scope, receive, send)
        except Exception:  # the cancellation may have become any error on its way
            if not deadline.expired() or sent_status(scope) is not None:
                raise
            logger.warning("request timed out", extra={"method": scope["method"], "path": scope["path"]})
            detail = "The request took too long: check what it has changed before you repeat it, with less at once"
            await JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})(scope, receive, send)

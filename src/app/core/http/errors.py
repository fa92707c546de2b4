"""Answer unexpected errors without closing the connection.

Starlette's ServerErrorMiddleware raises the error again for the server, which then closes the connection. The next
request on that connection would fail as well.
"""

import inspect
import logging

from fastapi import Request
from fastapi.exceptions import ValidationException
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.http.context import has_ended, sent_status
from app.core.logger import request_id

logger = logging.getLogger(__name__)


class UnexpectedErrors:
    """Log an unexpected error and answer it: by the handler registered for `Exception` or 500, else with 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if isinstance(error, ValidationException):  # it quotes values, such as a password's hash, and is logged
                for item in error.errors():
                    item.pop("input", None)
            if scope["type"] == "lifespan":
                raise
            logger.exception("unhandled error", extra={"method": scope.get("method"), "path": scope["path"]})
            if has_ended(scope):
                return
            if scope["type"] == "websocket" or sent_status(scope) is not None:
                raise  # the server closes the connection, which shows the client that the response is not whole
            handlers = scope["app"].exception_handlers
            handler = handlers.get(500) or handlers.get(Exception)
            if handler is None:
                response = JSONResponse({"detail": "Internal server error", "request_id": request_id.get()}, 500)
            elif inspect.iscoroutinefunction(handler):
                response = await handler(Request(scope), error)
            else:
                response = await run_in_threadpool(handler, Request(scope), error)
            await response(scope, receive, send)

"""What surrounds every request, in pure ASGI: a middleware that runs the application in a task of its own costs more
than the rest of a small request.
"""

import json
import logging
import re
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.logger import request_id

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_RESPONSE_HEADERS = "app.response_headers"


def add_response_headers(scope: Scope, headers: dict[str, str]) -> None:
    """Send these with whatever response the request gets, errors included."""
    scope[_RESPONSE_HEADERS].extend((name.lower().encode(), value.encode()) for name, value in headers.items())


class RequestMiddleware:
    """Gives each request an id, answers HEAD as GET without its body, refuses bodies of more than `max_body_bytes`,
    adds headers, and turns an unexpected error into a 500 without an end to the connection, which the next request on
    it would pay for.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        identity = given if _REQUEST_ID.fullmatch(given) else uuid4().hex.encode()
        request_id.set(identity.decode())
        extra: list[tuple[bytes, bytes]] = [*_SECURITY_HEADERS, (b"x-request-id", identity)]
        is_head = scope["method"] == "HEAD"
        # A copy: the server looks at its own to know that the answer to HEAD has no body.
        scope = {**scope, _RESPONSE_HEADERS: extra, "method": "GET" if is_head else scope["method"]}
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *extra]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        async def answer(status: int, content: dict[str, str]) -> None:
            body = json.dumps(content).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
            await send_with_headers({"type": "http.response.body", "body": body})

        if _announced(headers) > self.max_body_bytes:
            await answer(413, {"detail": self.too_large})
            return
        try:
            await self.app(scope, self._within_limit(receive), send_with_headers)
        except Exception:  # whatever it is, one request must not end the connection of the next
            if started:
                raise
            logger.exception("unhandled error", extra={"method": scope["method"], "path": scope["path"]})
            await answer(500, {"detail": "Internal server error", "request_id": identity.decode()})

    @property
    def too_large(self) -> str:
        return f"The body is too large: send no more than {self.max_body_bytes} bytes"

    def _within_limit(self, receive: Receive) -> Receive:
        """For a body whose length nobody announced."""
        received = 0

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise HTTPException(413, self.too_large)
            return message

        return receive_and_count


def _announced(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


class ClientCacheMiddleware:
    """Lets browsers and proxies keep successful answers to requests without credentials for `max_age` seconds, and
    nothing else. An endpoint that sets `Cache-Control` itself has the last word.
    """

    def __init__(self, app: ASGIApp, max_age: int) -> None:
        self.app = app
        self.public = (b"cache-control", b"public, max-age=%d" % max_age)
        self.private = (b"cache-control", b"private, no-store")
        self.vary = (b"vary", b"Authorization")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        shareable = scope["method"] in {"GET", "HEAD"} and not any(
            name in (b"authorization", b"cookie") for name, _ in scope["headers"]
        )

        async def send_with_cache_control(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = [*message.get("headers", ()), self.vary]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append(self.public if shareable and 200 <= message["status"] < 300 else self.private)
            await send(message)

        await self.app(scope, receive, send_with_cache_control)

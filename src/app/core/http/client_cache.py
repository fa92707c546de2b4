"""`Cache-Control` and ETags for browsers and proxies."""

import hashlib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ENTITY_TAG = re.compile(rb'(?:W/)?("[^"]*")')


class ClientCache:
    """Middleware that lets clients keep successful answers to GET requests without credentials for `max_age` seconds.

    These answers get an ETag, and a matching If-None-Match a 304. An endpoint's own `Cache-Control` is kept;
    `RequestContext` makes all other answers private.
    """

    def __init__(self, app: ASGIApp, max_age: int) -> None:
        self.app = app
        self.public = (b"cache-control", b"public, max-age=%d" % max_age)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] != "GET"
            or any(name in (b"authorization", b"cookie") for name, _ in scope["headers"])
        ):
            await self.app(scope, receive, send)
            return
        held: Message | None = None  # a response start whose ETag depends on the body

        async def send_with_cache_control(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message.get("headers", ())}
                if (200 <= status < 300 or status == 304) and b"cache-control" not in present:
                    message["headers"] = [*message.get("headers", ()), self.public]
                    if status == 200 and b"etag" not in present:
                        held = message
                        return
            elif held is not None:
                start, held = held, None
                if not message.get("more_body", False) and _is_unchanged(scope, start, message.get("body", b"")):
                    message = {**message, "body": b""}
                await send(start)
            await send(message)

        await self.app(scope, receive, send_with_cache_control)


def _is_unchanged(scope: Scope, start: Message, body: bytes) -> bool:
    """Add the ETag; make the response a 304 when the client has this body already."""
    tag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode()
    start["headers"].append((b"etag", tag))
    tags = b", ".join(value for name, value in scope["headers"] if name == b"if-none-match")
    if tags.strip() != b"*" and tag not in _ENTITY_TAG.findall(tags):
        return False
    start["status"] = 304
    start["headers"] = [
        (name, value) for name, value in start["headers"] if name not in (b"content-length", b"content-type")
    ]
    return True

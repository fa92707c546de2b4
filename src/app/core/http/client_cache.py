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
        if scope["type"] != "http" or scope["method"] != "GET" or _has_credentials(scope):
            await self.app(scope, receive, send)
            return
        held: Message | None = None  # a response start whose ETag depends on the body
        is_unchanged = False

        async def send_with_cache_control(message: Message) -> None:
            nonlocal held, is_unchanged
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message.get("headers", ()))
                if (200 <= status < 300 or status == 304) and b"cache-control" not in headers:
                    message["headers"] = [*message.get("headers", ()), self.public]
                    if status == 200 and b"etag" not in headers:
                        held = message
                        return
                if status == 200 and _is_known(scope, headers.get(b"etag", b"")):
                    is_unchanged = True
                    message = _not_modified(message)
            elif held is not None:
                start, held = held, None
                if not message.get("more_body", False):
                    start, message = _with_tag(scope, start, message)
                await send(start)
            elif is_unchanged:
                message = {**message, "body": b""}
            await send(message)

        await self.app(scope, receive, send_with_cache_control)


def _has_credentials(scope: Scope) -> bool:
    return any(name in (b"authorization", b"cookie") for name, _ in scope["headers"])


def _with_tag(scope: Scope, start: Message, message: Message) -> tuple[Message, Message]:
    """Add the ETag of a whole body; leave the body out when the client has it."""
    tag = b'"%s"' % hashlib.sha256(message.get("body", b"")).hexdigest()[:32].encode()
    start["headers"].append((b"etag", tag))
    return (_not_modified(start), {**message, "body": b""}) if _is_known(scope, tag) else (start, message)


def _is_known(scope: Scope, tag: bytes) -> bool:
    """Tell whether the client has the answer of this ETag already."""
    tags = b", ".join(value for name, value in scope["headers"] if name == b"if-none-match")
    return tag != b"" and (tags.strip() == b"*" or tag.removeprefix(b"W/") in _ENTITY_TAG.findall(tags))


def _not_modified(start: Message) -> Message:
    headers = [each for each in start["headers"] if each[0] not in (b"content-length", b"content-type")]
    return {**start, "status": 304, "headers": headers}

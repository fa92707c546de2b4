"""What surrounds every request, in pure ASGI: a middleware that runs the application in a task of its own costs more
than the rest of a small request.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Sequence

from fastapi.exceptions import ValidationException
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import audit
from app.core.config import ClientSideCacheSettings, EnvironmentOption, Settings, WebSecuritySettings
from app.core.logger import request_id

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+?)\.?(:[0-9]*)?")
_ENTITY_TAG = re.compile(rb'(?:W/)?("[^"]*")')
_PROBES = {"/health", "/health/ready"}  # who asks comes by address, and whenever it is
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_PRIVATE = (b"cache-control", b"private, no-store")
_VARY = (b"vary", b"Authorization")
_RESPONSE_HEADERS = "app.response_headers"


def _headers(settings: Settings) -> Headers:
    """What every answer has."""
    headers: Headers = [*_SECURITY_HEADERS]
    if isinstance(settings, WebSecuritySettings) and settings.ENVIRONMENT is not EnvironmentOption.LOCAL:
        headers.append((b"strict-transport-security", b"max-age=%d" % settings.HSTS_MAX_AGE))
    return headers


def _own_headers(settings: Settings) -> Headers:
    """What an answer has besides when it is made here."""
    headers: Headers = [(b"content-type", b"application/json")]
    return [*headers, _PRIVATE, _VARY] if isinstance(settings, ClientSideCacheSettings) else headers


def _identity(headers: dict[bytes, bytes]) -> bytes:
    given = headers.get(b"x-request-id", b"")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()


def add_response_headers(scope: Scope, headers: dict[str, str]) -> None:
    """Send these with whatever response the request gets, errors included."""
    scope[_RESPONSE_HEADERS].extend((name.lower().encode(), value.encode()) for name, value in headers.items())


class LoadShedding:
    """Answers 503 at once while `MAX_CONCURRENT_REQUESTS` are under way: one more would only make all of them later.

    After a calm of `CALM_SECONDS`, `BURST` times as many are let in for `BURST_SECONDS`: a burst can be worked off, who
    comes all the time cannot. It stands before all other middleware, since what it refuses must cost next to nothing.
    """

    BURST = 10
    BURST_SECONDS = 2.0
    CALM_SECONDS = 10.0
    LOG_SECONDS = 10.0

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.limit = settings.MAX_CONCURRENT_REQUESTS
        self.origins = settings.cors_origins if isinstance(settings, WebSecuritySettings) else []
        self.body = json.dumps({"detail": "The service has too much to do: try again"}).encode()
        self.headers: Headers = [*_headers(settings), *_own_headers(settings), (b"retry-after", b"1")]
        self.headers.append((b"content-length", str(len(self.body)).encode()))
        self._under_way = 0
        self._last_crowd = self._burst_ends = -math.inf
        self._refused = 0
        self._next_log = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self.app(scope, receive, send)
        elif self._under_way >= self.limit and not self._is_burst():
            self._log()
            headers = dict(scope["headers"])
            more = [*self.headers, (b"x-request-id", _identity(headers)), *self._cors(headers)]
            await send({"type": "http.response.start", "status": 503, "headers": more})
            await send({"type": "http.response.body", "body": self.body})
        else:
            self._under_way += 1
            try:
                await self.app(scope, self._outside(receive), send)
            finally:
                self._under_way -= 1

    def _is_burst(self) -> bool:
        now = time.monotonic()
        if now > self._last_crowd + self.CALM_SECONDS:
            self._burst_ends = now + self.BURST_SECONDS
        self._last_crowd = now
        return now < self._burst_ends and self._under_way < self.BURST * self.limit

    def _outside(self, receive: Receive) -> Receive:
        """Who sends slowly takes no place meanwhile: a thousand who never end would shut everybody out."""

        async def receive_outside() -> Message:
            self._under_way -= 1
            try:
                return await receive()
            finally:
                self._under_way += 1

        return receive_outside

    def _cors(self, headers: dict[bytes, bytes]) -> Headers:
        """What lets a page of another origin read the answer, as Starlette's middleware says it."""
        origin = headers.get(b"origin")
        if origin is None or not {"*", origin.decode("latin-1")}.intersection(self.origins):
            return []
        if "*" in self.origins:
            return [(b"access-control-allow-origin", b"*")]
        return [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]

    def _log(self) -> None:
        self._refused += 1
        if self._last_crowd >= self._next_log:
            logger.warning("too many requests at once", extra={"limit": self.limit, "refused": self._refused})
            self._refused = 0
            self._next_log = self._last_crowd + self.LOG_SECONDS


class RequestMiddleware:
    """Gives each request an id and an end after `REQUEST_TIMEOUT`, answers HEAD as GET without its body, refuses
    bodies of more than `MAX_BODY_BYTES` and foreign hosts, adds headers, writes the audit event, and turns an
    unexpected error into a 500 without an end to the connection, which the next request on it would pay for.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.max_body_bytes = settings.MAX_BODY_BYTES
        self.allowed_hosts: list[str] = []
        self.headers = _headers(settings)
        self.own_headers = _own_headers(settings)
        if isinstance(settings, WebSecuritySettings):
            self.allowed_hosts = settings.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        identity = _identity(headers)
        request_id.set(identity.decode())
        extra = [*self.headers, (b"x-request-id", identity)]
        method = scope["method"]
        is_head = method == "HEAD"
        # A copy: the server looks at its own to know that the answer to HEAD has no body.
        scope = {**scope, _RESPONSE_HEADERS: extra, "method": "GET" if is_head else method}
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        async def answer(code: int, content: dict[str, str], more: Sequence[tuple[bytes, bytes]] = ()) -> None:
            body = json.dumps(content).encode()
            headers = [*self.own_headers, (b"content-length", str(len(body)).encode()), *more]
            await send_with_headers({"type": "http.response.start", "status": code, "headers": headers})
            await send_with_headers({"type": "http.response.body", "body": body})

        if refusal := self._refusal(scope, headers):
            await answer(*refusal)
            return
        deadline = asyncio.timeout(self.settings.REQUEST_TIMEOUT)
        try:
            async with deadline:
                await self.app(scope, self._within_limit(receive), send_with_headers)
        except Exception as error:  # whatever it is, one request must not end the connection of the next
            _forget_input(error)
            if status is not None:
                raise
            await answer(*_failure(error, scope, is_late=deadline.expired()))
        finally:
            audit.write(scope, method, status, self.settings)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, dict[str, str]] | None:
        if self.allowed_hosts and scope["path"] not in _PROBES and not self._is_allowed_host(scope["headers"]):
            return 400, {"detail": "The service is not called by the name in the Host header"}
        if _announced(headers) > self.max_body_bytes:
            return 413, {"detail": self.too_large}
        return None

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

    def _is_allowed_host(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        given = [value.decode("latin-1") for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
        if match is None:
            return False
        host = match[1]
        return any(
            name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]) and host != name[1:])
            for name in self.allowed_hosts
        )


def _forget_input(error: Exception) -> None:
    """FastAPI quotes what a wrong answer was made of, a password's hash perhaps, and errors are logged."""
    if isinstance(error, ValidationException):
        for item in error.errors():
            item.pop("input", None)


def _failure(error: Exception, scope: Scope, *, is_late: bool) -> tuple[int, dict[str, str], Headers]:
    """Log the error; return what to answer to it."""
    values = {"method": scope["method"], "path": scope["path"]}
    if is_late:
        logger.warning("request timed out", extra=values)
        detail = "The request took too long: try again, with less at once or later"
        return 503, {"detail": detail}, [(b"retry-after", b"1")]
    logger.error("unhandled error", exc_info=error, extra=values)
    return 500, {"detail": "Internal server error", "request_id": request_id.get()}, []


def _announced(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


class ClientCacheMiddleware:
    """Lets browsers and proxies keep successful answers to requests without credentials for `CLIENT_CACHE_MAX_AGE`
    seconds, and nothing else; gives these an ETag, and 304 to who has the answer already. An endpoint that sets
    `Cache-Control` itself has the last word.
    """

    def __init__(self, app: ASGIApp, max_age: int) -> None:
        self.app = app
        self.public = (b"cache-control", b"public, max-age=%d" % max_age)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_shareable = scope["method"] == "GET" and not any(
            name in (b"authorization", b"cookie") for name, _ in scope["headers"]
        )
        held: Message | None = None  # a start whose tag depends on the body

        async def send_with_cache_control(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                headers = message["headers"] = [*message.get("headers", ()), _VARY]
                present = {name for name, _ in headers}
                if b"cache-control" not in present:
                    status = message["status"]
                    is_kept = is_shareable and (200 <= status < 300 or status == 304)
                    headers.append(self.public if is_kept else _PRIVATE)
                    if is_kept and status == 200 and b"etag" not in present:
                        held = message
                        return
            elif held is not None:
                start, held = held, None
                if not message.get("more_body", False) and _is_known(scope, start, message.get("body", b"")):
                    message = {**message, "body": b""}
                await send(start)
            await send(message)

        await self.app(scope, receive, send_with_cache_control)


def _is_known(scope: Scope, start: Message, body: bytes) -> bool:
    """Tag the answer; make it a 304 when the client has it already."""
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

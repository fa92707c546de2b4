"""The context of a request: the objects of its application, an id, and the headers of its response."""

import os
import re
from collections.abc import Mapping
from typing import Any

from fastapi.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import ClientSideCacheSettings, EnvironmentOption, Settings, WebSecuritySettings
from app.core.logger import request_id
from app.core.resources import SCOPE_KEY, getter
from app.core.security import PasswordHasher, TokenSigner

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_RESPONSE_HEADERS = "app.response_headers"
_STATUS = "app.status"
_ENDED = "app.ended"

settings_of = getter(Settings)
passwords_of = getter(PasswordHasher)
tokens_of = getter(TokenSigner)


def add_response_headers(scope: Scope, headers: Mapping[str, str]) -> None:
    """Send these with whatever response the request gets, errors included."""
    scope[_RESPONSE_HEADERS].extend((name.lower().encode(), value.encode()) for name, value in headers.items())


def sent_status(scope: Scope) -> int | None:
    """The status of the response, or None before it has begun."""
    status: int | None = scope[_STATUS]
    return status


def has_ended(scope: Scope) -> bool:
    """Tell whether the whole response has left, so that only background tasks of the endpoint still run."""
    return scope[_ENDED] is True


def matched_route(scope: Scope) -> Any:
    """The matched route, with prefixes and dependencies of the routers around it, which `scope["route"]` lacks."""
    included, route = scope.get("fastapi", {}).get("effective_route_context"), scope["route"]
    return included if included is not None and included.original_route is route else route


def route_template(connection: HTTPConnection) -> str:
    """The path of the matched route, with its prefixes and with `{names}` in place of values."""
    return str(matched_route(connection.scope).path)


class RequestContext:
    """Middleware that adds the application's objects (by class) and an id to the scope, and headers to the response."""

    def __init__(self, app: ASGIApp, settings: Settings, resources: Mapping[type, Any]) -> None:
        self.app = app
        self.resources = resources
        self.headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
        ]
        if isinstance(settings, WebSecuritySettings) and settings.ENVIRONMENT is not EnvironmentOption.LOCAL:
            self.headers.append((b"strict-transport-security", b"max-age=%d" % settings.HSTS_MAX_AGE))
        self.has_client_cache = isinstance(settings, ClientSideCacheSettings)
        if self.has_client_cache:
            self.headers.append((b"vary", b"Authorization"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        given: bytes = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        identity = (
            given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()
        )  # another may be unsafe to log
        request_id.set(identity.decode())
        extra = [*self.headers, (b"x-request-id", identity)]
        # A copy: the server's own scope stays as it was.
        scope = {**scope, SCOPE_KEY: self.resources, _RESPONSE_HEADERS: extra, _STATUS: None, _ENDED: False}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope[_STATUS] = message["status"]
                headers = message["headers"] = [*message.get("headers", ()), *extra]
                if self.has_client_cache and not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"private, no-store"))
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                scope[_ENDED] = True

        await self.app(scope, receive, send_with_headers)

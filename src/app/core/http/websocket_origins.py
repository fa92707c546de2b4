"""Refuse WebSockets that a page of a foreign origin opens: browsers apply CORS to requests only."""

from collections.abc import Sequence

from fastapi.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class WebSocketOrigins:
    """Answer 403 unless the Origin header is absent, names the host itself, or is one of `allowed_origins`."""

    def __init__(self, app: ASGIApp, allowed_origins: Sequence[str]) -> None:
        self.app = app
        self.allowed_origins = set(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket" or self._is_allowed(HTTPConnection(scope)):
            await self.app(scope, receive, send)
        else:
            detail = "Pages of this origin may not open WebSockets: see CORS_ORIGINS"
            await JSONResponse({"detail": detail}, 403)(scope, receive, send)

    def _is_allowed(self, connection: HTTPConnection) -> bool:
        origin = connection.headers.get("origin")
        if origin is None or not self.allowed_origins.isdisjoint(("*", origin)):
            return True
        return origin.partition("://")[2] == connection.headers.get("host")

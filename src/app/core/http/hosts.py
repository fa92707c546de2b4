"""Refuse requests with a foreign Host header.

Starlette's TrustedHostMiddleware answers in plain text, and takes the first of several Host headers. It refuses names
with a final dot. It also refuses health probes, which use the address.
"""

import re
from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PROBES = {"/health", "/health/ready"}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+?)\.?(:[0-9]*)?")


class TrustedHosts:
    """Answer 400 unless the Host header names one of `allowed_hosts`; `*.example.com` stands for all names below."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in PROBES or self._is_allowed(scope):
            await self.app(scope, receive, send)
        else:
            detail = "This host name is not served: check the Host header"
            await JSONResponse({"detail": detail}, 400)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        match = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
        if match is None:
            return False
        host = match[1]
        return any(
            name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]) and host != name[1:])
            for name in self.allowed_hosts
        )

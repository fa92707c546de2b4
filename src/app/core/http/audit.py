"""One log event for each noted request that changes something or uses a superuser's rights: who, what, from where.

Without a call of `note` there is no event: the dependencies that find the caller make one, and so do sign-ins.
"""

import logging
from typing import Any

from fastapi.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.config import AppSettings
from app.core.http.client_address import client_address
from app.core.http.context import sent_status
from app.core.logger import RECORD_FIELDS

logger = logging.getLogger("app.audit")

_NOTES = "app.audit"
_READING = {"GET", "HEAD", "OPTIONS"}


def note(scope: Scope, **values: Any) -> None:
    """Add values to the event of this request; `who` and `superuser=True` have a meaning, other names are free.

    Never a secret, a token or a hash. A later value replaces an earlier one of the same name.
    """
    if reserved := values.keys() & RECORD_FIELDS:
        raise ValueError(f"log records have {', '.join(sorted(reserved))} already: choose another name")
    scope[_NOTES].update(values)


class AuditLog:
    """Middleware that writes the event once the request is over; its `status` is None when nothing was answered."""

    def __init__(self, app: ASGIApp, settings: AppSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes = scope[_NOTES] = dict[str, Any]()
        method = scope.get("method")  # before `HeadRequests` changes it
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "http" and notes and (method not in _READING or notes.get("superuser") is True):
                values = {
                    "who": None,
                    "address": client_address(HTTPConnection(scope), self.settings),
                    "method": method,
                    "path": scope["path"],
                    "status": sent_status(scope),
                }
                logger.info(getattr(scope.get("route"), "name", "request"), extra={**values, **notes})

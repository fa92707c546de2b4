"""One log event for each request that changes something or uses a superuser's rights: who, what, from where."""

import logging
from typing import Any

from fastapi.requests import HTTPConnection
from starlette.types import Scope

from app.core.config import AppSettings
from app.core.rate_limit import client_address

logger = logging.getLogger("app.audit")

_NOTES = "app.audit"
_RESERVED = {*vars(logging.makeLogRecord({})), "message", "asctime"}
_ONLY_READ = {"GET", "HEAD", "OPTIONS"}


def note(scope: Scope, **values: Any) -> None:
    """Remember for the event of this request; `who` and `superuser=True` have a meaning, other names are your own.

    Never a secret, a token or a hash. A later value replaces an earlier one of the same name.
    """
    if reserved := values.keys() & _RESERVED:
        raise ValueError(f"log records have {', '.join(sorted(reserved))} already: choose another name")
    scope.setdefault(_NOTES, {}).update(values)


def write(scope: Scope, method: str, status: int | None, settings: AppSettings) -> None:
    """Write the event once the request is over; `status` is None when nothing was answered."""
    notes = scope.get(_NOTES)
    if notes is None or (method in _ONLY_READ and notes.get("superuser") is not True):
        return
    values = {
        "who": None,
        "address": client_address(HTTPConnection(scope), settings),
        "method": method,
        "path": scope["path"],
        "status": status,
    }
    logger.info(getattr(scope.get("route"), "name", "request"), extra={**values, **notes})

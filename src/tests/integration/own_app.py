"""Helpers for tests with their own routes: applications built like the real one, and many concurrent requests."""

import asyncio
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI

from app.api.dependencies import guard_docs
from app.api.exceptions import exception_handlers
from app.core.config import Settings, settings
from app.core.settings_group import SettingsGroup
from app.core.setup import create_application
from scripts.servers import HOST
from tests.environment import SRC
from tests.specimen import main as specimen


def build(*routers: APIRouter, **changes: Any) -> FastAPI:
    """Build an application with these routes and changed settings; `open_client` starts it."""

    def include_routers(app: FastAPI, _: Settings) -> None:
        for router in routers:
            app.include_router(router)

    return build_with(include_routers, **changes)


def build_specimen(*routers: APIRouter, **changes: Any) -> FastAPI:
    """Build the application of `tests.specimen` with additional routes and changed settings."""

    def include_all(app: FastAPI, settings: Settings) -> None:
        for router in routers:
            app.include_router(router)
        specimen.include_routers(app, settings)

    return build_with(include_all, **changes)


def build_without(group: type[SettingsGroup], *routers: APIRouter) -> FastAPI:
    """Build an application whose settings lack a group."""
    bases = tuple(base for base in Settings.__bases__ if base is not group)
    own_settings = type("SettingsWithout", bases, {}).model_construct(**settings.model_dump())  # type: ignore[attr-defined]
    router = APIRouter()
    for each in routers:
        router.include_router(each)
    return create_application(own_settings, router, exception_handlers=exception_handlers, docs_guard=guard_docs)


def build_with(include: Callable[[FastAPI, Settings], None], **changes: Any) -> FastAPI:
    own_settings = settings.model_copy(update=changes) if changes else settings
    return create_application(own_settings, include, exception_handlers=exception_handlers, docs_guard=guard_docs)


def copy_without(folder: Path, *groups: str) -> Path:
    """Copy the service without these settings groups."""
    copy = folder / "src"
    for name in ("app", "migrations", "scripts", "tests/specimen"):
        ignore = shutil.ignore_patterns("__pycache__", "*.log*")
        shutil.copytree(SRC / name, copy / name, ignore=ignore)
    shutil.copy(SRC / "alembic.ini", copy)
    config = copy / "app" / "core" / "config.py"
    before, start_of_class, rest = config.read_text().partition("class Settings(\n")
    for group in groups:
        rest, count = re.subn(rf"    {group},\n", "", rest, count=1)
        assert count == 1, f"{group} is not among the bases of Settings"
    config.write_text(before + start_of_class + rest)
    return copy


# A module that serves such routes in its own process. `{routes}` is the place for the code that adds them to `router`.
MODULE = '''
"""An application with routes of a test's own: `uvicorn own:app`."""

import asyncio
import os

from fastapi import APIRouter, Depends, Request

from app.api.dependencies import ReaderDep, SessionDep, guard_docs, rate_limiter
from app.api.exceptions import exception_handlers
from app.core import queue
from app.core.cache import cache
from app.core.config import settings
from app.core.setup import create_application
from tests.specimen import main

router = APIRouter()
{routes}

def include_all(app, settings):
    app.include_router(router)
    main.include_routers(app, settings)


app = create_application(settings, include_all, exception_handlers=exception_handlers, docs_guard=guard_docs)
'''


def sealed(key: str, answer: bytes) -> bytes:
    """Return the bytes that the service stores for this answer under this key."""
    return answer + bytes(specimen.app.state.resources.cache.seal(key, answer))


async def send(
    port: int, method: str, path: str, headers: Sequence[str] = (), body: str = ""
) -> tuple[int, str, bytes]:
    """Send a request on a new connection, cheaply enough for a thousand at once; return status, head and body."""
    reader, writer = await asyncio.open_connection(HOST, port)
    standard = [f"Host: {HOST}:{port}", f"Content-Length: {len(body)}", "Connection: close"]
    has_kind = any(header.startswith("Content-Type:") for header in headers)
    kind = ["Content-Type: application/json"] if body and not has_kind else []
    lines = [f"{method} {path} HTTP/1.1", *standard, *kind, *headers, "", body]
    try:
        writer.write("\r\n".join(lines).encode())
        answer = await reader.read()
    finally:
        writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), head.decode(), content


async def count_statuses(port: int, method: str, path: str, *, times: int, headers: Sequence[str] = ()) -> Counter[int]:
    """Send the same request many times at once; count the answers by status."""
    answers = await asyncio.gather(*(send(port, method, path, headers) for _ in range(times)))
    return Counter(status for status, _, _ in answers)

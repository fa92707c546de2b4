"""For tests that need routes of their own: applications built as the real one is, and many requests at once."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI

from app.api.dependencies import get_docs_reader
from app.api.exceptions import exception_handlers
from app.core.cache import seal
from app.core.config import settings
from app.core.setup import create_application
from scripts.servers import HOST
from tests.fixtures import LogRecords


def build(*routers: APIRouter, **changes: Any) -> FastAPI:
    """Build an application with these routes and changes of the settings; it uses the servers that the fixture `app`
    has opened.
    """
    logger = logging.getLogger("app")
    recorders = [handler for handler in logger.handlers if isinstance(handler, LogRecords)]
    router = APIRouter()
    for part in routers:
        router.include_router(part)
    own_settings = settings.model_copy(update=changes)
    application = create_application(
        router, own_settings, exception_handlers=exception_handlers, docs_guard=get_docs_reader
    )
    for recorder in recorders:  # building an application configures its logger anew
        logger.addHandler(recorder)
    return application


# What a program of its own needs to serve such routes: `router` is made in the text that follows.
MODULE = '''
"""An application with routes of a test's own: `uvicorn own:app`."""

import asyncio
import os

from fastapi import APIRouter, Depends, Request

from app.api import router as the_router
from app.api.dependencies import ReaderDep, SessionDep, get_docs_reader, rate_limiter
from app.api.exceptions import exception_handlers
from app.core import queue
from app.core.cache import cache
from app.core.config import settings
from app.core.setup import create_application

router = APIRouter()
{routes}
router.include_router(the_router)
app = create_application(router, settings, exception_handlers=exception_handlers, docs_guard=get_docs_reader)
'''


def sealed(key: str, answer: bytes) -> bytes:
    """What a process of the service stores for this answer under this key."""
    return answer + seal(key, answer)


async def send(
    port: int, method: str, path: str, headers: Sequence[str] = (), body: str = ""
) -> tuple[int, str, bytes]:
    """Send one request on a connection of its own, cheaply enough for a thousand at once; return status, head, body."""
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
    """Send the same request many times at once, and count what came back."""
    answers = await asyncio.gather(*(send(port, method, path, headers) for _ in range(times)))
    return Counter(status for status, _, _ in answers)

"""Refuse requests while too many are in progress."""

import logging
import math
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.http.hosts import PROBES

logger = logging.getLogger(__name__)


class LoadShedding:
    """Answer 503 at once while `limit` requests are in progress: one more would delay all of them.

    After `CALM_SECONDS` without a refusal, `BURST` times as many are accepted for `BURST_SECONDS`: a short burst can be
    worked off, a lasting overload cannot.
    """

    BURST = 10
    BURST_SECONDS = 2.0
    CALM_SECONDS = 10.0
    LOG_SECONDS = 10.0

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit
        self.response = JSONResponse({"detail": "The service has too much to do: try again"}, 503, {"Retry-After": "1"})
        self._in_progress = 0
        self._last_overload = self._burst_end = -math.inf
        self._refused = 0
        self._next_log = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
        elif self._in_progress >= self.limit and not self._is_burst():
            self._log()
            await self.response(scope, receive, send)
        else:
            self._in_progress += 1
            try:
                await self.app(scope, self._without_slot(receive), send)
            finally:
                self._in_progress -= 1

    def _is_burst(self) -> bool:
        now = time.monotonic()
        if now > self._last_overload + self.CALM_SECONDS:
            self._burst_end = now + self.BURST_SECONDS
        self._last_overload = now
        return now < self._burst_end and self._in_progress < self.BURST * self.limit

    def _without_slot(self, receive: Receive) -> Receive:
        """Free the slot while waiting for the client's body, so that slow uploads cannot use up the limit."""

        async def receive_without_slot() -> Message:
            self._in_progress -= 1
            try:
                return await receive()
            finally:
                self._in_progress += 1

        return receive_without_slot

    def _log(self) -> None:
        self._refused += 1
        if self._last_overload >= self._next_log:
            logger.warning("too many requests at once", extra={"limit": self.limit, "refused": self._refused})
            self._refused = 0
            self._next_log = self._last_overload + self.LOG_SECONDS

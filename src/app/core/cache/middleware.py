"""Stored answers are served before routing: routing costs more than the look-up."""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.cache.decorator import EARLY, LEASE, look_up
from app.core.cache.store import CacheStore

MAX_KNOWN_URLS = 4096
MAX_URL_LENGTH = 200


class StoredAnswers:
    """Remember the cache key of each URL that an endpoint with `@cache` has answered, and look there first.

    `decorator` says how it works together with `@cache`.
    """

    def __init__(self, app: ASGIApp, store: CacheStore) -> None:
        self.app = app
        self.store = store
        self.known: dict[tuple[str, bytes], tuple[str, int, int]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or not self.store.is_open:
            await self.app(scope, receive, send)
            return
        url = scope["path"], scope["query_string"]
        known = self.known.get(url)
        if known is not None:
            key, expiration, status = known
            body, scope[LEASE] = await look_up(self.store, key, expiration)
            if body is not None:
                await Response(body, status, media_type="application/json")(scope, receive, send)
                return
        await self.app(scope, receive, send)
        if known is None and EARLY in scope and sum(map(len, url)) <= MAX_URL_LENGTH:
            if len(self.known) >= MAX_KNOWN_URLS:
                self.known.clear()
            self.known[url] = scope[EARLY]

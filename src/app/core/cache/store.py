"""Stored answers on one Redis server. Once a write has answered, this server's answers are not older than the write.

On a miss, a request stores a *lease* under the key and reads the database. It stores its answer only if the lease is
still there. A write removes its keys after the commit, leases included: nothing read before the commit is stored after
it. A request that finds another's lease waits for that answer, so concurrent misses run the endpoint once.

Older answers may still come from a replica that lags behind, from the caches of clients, or from this server while it
cannot be reached by the process that writes (docs/decisions/0005-cache-leases.md).
"""

import asyncio
import contextlib
import hashlib
import math
import re
import time
from collections.abc import Iterable
from typing import cast

from app.core.cache.scripts import FETCH, INDEX, INDEXES, REMOVE, STORE
from app.core.config import RedisCacheSettings
from app.core.exceptions import RedisUnavailableError
from app.core.redis import RedisServer
from app.core.resources import getter

LEASE_MARGIN = 0.5
"""Seconds of a lease beyond the statement timeout: a waiter must not retry just before the database is found silent."""
MAX_LEASES_AWAITED = 2
"""After these a waiter runs the endpoint itself: the answer may be one that is not stored, such as a 404."""
MAX_ANSWER_BYTES = 256 * 1024  # larger answers are not stored: a few readers of long pages could fill the server
LEASE_START = b"\x00"  # JSON never begins with it
_SEAL_BYTES = 64
_WHITE_SPACE = bytes.maketrans(b"01", b" \t")
_LITERAL_START = re.compile(r"(?:[^*?\[\\]|\\.)*", re.DOTALL)
_BATCH = 100  # keys and patterns in one call of the script: the server does nothing else meanwhile


class CacheStore:
    """The cache of one application. While its server is away, or has just been, endpoints run without a cache."""

    RETRY_SECONDS = 0.1

    def __init__(self) -> None:
        self.server = RedisServer("cache")
        self._removals = RedisServer("cache invalidation", sends_many=True)

    @property
    def is_open(self) -> bool:
        return self.server.is_open

    def open(self, settings: RedisCacheSettings, secret_key: str, statement_timeout: float) -> None:
        """Prepare the connections. `secret_key` seals the answers, so that only this service's are served."""
        self.server.open(settings, "REDIS_CACHE", settings.REDIS_CACHE_TIMEOUT)
        self._removals.open(settings, "REDIS_CACHE", settings.REDIS_CACHE_REMOVAL_TIMEOUT)
        self._statement_timeout = statement_timeout
        # After an outage every worker must have the time to find that a removal failed, and to clear the cache.
        self._distrust_seconds = (self._removals.longest_guard or 0) + 1
        self._seal_key = hashlib.blake2b(secret_key.encode(), person=b"cached answers").digest()
        # The previous process may have been killed during a removal, or have ended while the server was away.
        self._must_clear = True
        self._clearing: asyncio.Task[None] | None = asyncio.create_task(self._clear())

    async def close(self) -> None:
        if self._clearing is not None:
            self._clearing.cancel()
        await self.server.close()
        await self._removals.close()

    async def fetch(self, key: str, lease: bytes, expiration: int) -> bytes | None:
        """Return the stored answer, or None and the right to store one under `lease`.

        Raises RedisUnavailableError when the cache cannot be used, or when the answer of another request does not come.
        """
        fetch = self.server.script(FETCH)
        keys = [key, _index(key), INDEXES]
        seconds = self._statement_timeout + LEASE_MARGIN
        args: list[bytes | int] = [lease, round(seconds * 1000), expiration + math.ceil(seconds) + 1]
        deadline, pause = time.monotonic() + seconds, 0.005
        leases = set[bytes]()
        while True:
            self._refuse_distrusted()
            async with self.server.guard():
                value = cast(bytes | None, await fetch(keys, args))
            self._refuse_distrusted()
            if value is None:
                return None
            answer = value[:-_SEAL_BYTES]
            if value[-_SEAL_BYTES:] == self.seal(key, answer):
                return answer
            is_lease = value.startswith(LEASE_START)
            if is_lease:
                leases.add(value)
            if time.monotonic() > deadline or len(leases) > MAX_LEASES_AWAITED:
                raise RedisUnavailableError("The answer that another request is preparing did not come")
            if is_lease:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.05)
            else:  # truncated, of another key, or foreign
                args[3:] = [value]

    async def store(self, key: str, lease: bytes, answer: bytes, expiration: int) -> None:
        """Keep the answer unless its lease was removed meanwhile; an empty answer gives the lease back."""
        value = answer + self.seal(key, answer) if answer else b""
        with contextlib.suppress(RedisUnavailableError):  # the lease ends by itself
            async with self.server.guard():
                await self.server.script(STORE)([INDEXES, key, _index(key)], [lease, value, expiration])

    async def remove(self, keys: Iterable[str], patterns: Iterable[str]) -> None:
        """Remove keys, and all that match a pattern. If that fails, clear the cache as soon as the server is back."""
        if not self.is_open:  # there is no cache among the settings
            return
        removed = False
        try:
            if not self._removals.is_away:  # during an outage the task that clears tries again and again
                async with self._removals.guard():
                    await self._remove(keys, patterns)
                removed = True
        except RedisUnavailableError:
            pass
        finally:  # also when the request is cancelled
            if not removed and self.is_open:
                self._must_clear = True
                self._clearing = self._clearing or asyncio.create_task(self._clear())

    def seal(self, key: str, answer: bytes) -> bytes:
        """The suffix of the answer stored under this key: a keyed hash of both, one white-space character per bit.

        JSON stays JSON with it, and a value that another program has stored is not served.
        """
        name = key.encode()
        message = b"%d:%b%b" % (len(name), name, answer)
        digest = hashlib.blake2b(message, key=self._seal_key, digest_size=_SEAL_BYTES // 8).digest()
        return f"{int.from_bytes(digest):0{_SEAL_BYTES}b}".encode().translate(_WHITE_SPACE)

    def is_trusted(self) -> bool:
        """Tell whether stored answers are served: not until this process, and after an outage all, could clear them."""
        return self._clearing is None and time.monotonic() >= self.server.back_since + self._distrust_seconds

    def _refuse_distrusted(self) -> None:
        if not self.is_trusted():
            raise RedisUnavailableError("The cache server has just been away")

    async def _clear(self) -> None:
        while self._must_clear:
            self._must_clear = False
            try:
                async with self._removals.guard(probe=True):
                    await self._removals.client.delete(INDEXES)  # a key that is not listed is not served
            except RedisUnavailableError:
                self._must_clear = True
                await asyncio.sleep(self.RETRY_SECONDS)
        self._clearing = None

    async def _remove(self, keys: Iterable[str], patterns: Iterable[str]) -> None:
        left = [(_index(key), key, b"") for key in keys]
        for pattern in patterns:
            left += [(index, pattern, b"0") for index in await self._indexes_of(pattern)]
        remove = self._removals.script(REMOVE)
        while left:
            indexes, names, cursors = zip(*left[:_BATCH], strict=True)
            cursors = await remove([INDEXES, *indexes], [*names, *cursors])
            unfinished = [each for each in zip(indexes, names, cursors, strict=True) if each[2] not in (b"", b"0")]
            left = left[_BATCH:] + unfinished

    async def _indexes_of(self, pattern: str) -> list[str]:
        """The indexes that may list matches of the pattern: one, if its literal start names it, or all."""
        start = _LITERAL_START.match(pattern)
        literal = re.sub(r"\\(.)", r"\1", start[0] if start else "")
        if ":" in literal:
            return [_index(literal)]
        return [name.decode() for name in await self._removals.client.zrange(INDEXES, 0, -1)]


def _index(key: str) -> str:
    return INDEX + key.partition(":")[0]


store_of = getter(CacheStore)

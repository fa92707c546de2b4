"""Password hashing in threads of its own: bcrypt takes a quarter of a second and releases the GIL."""

import asyncio
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from passlib.context import CryptContext

from app.core.config import CryptSettings
from app.core.exceptions import ServiceUnavailableError
from app.core.security.passwords import MAX_PASSWORD_LENGTH

T = TypeVar("T")
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")  # NUL, and surrogates, which have no encoding


class PasswordHasher:
    """Hash and verify passwords in as many threads as leave one processor to the event loop.

    bcrypt_sha256 uses the whole password; plain bcrypt uses its first 72 bytes. Hashes of plain bcrypt, or of another
    cost, are accepted and reported by `is_outdated`.
    """

    def __init__(self, settings: CryptSettings) -> None:
        cost = settings.BCRYPT_COST
        self._context = CryptContext(schemes=["bcrypt_sha256", "bcrypt"], deprecated="auto", bcrypt_sha256__rounds=cost)
        # A well-formed hash that matches no password: an unknown user takes as long to refuse as a wrong password.
        self._unmatched_hash = f"$bcrypt-sha256$v=2,t=2b,r={cost}${'.' * 22}${'.' * 31}"
        threads = max(1, (os.cpu_count() or 2) - 1)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="hashing")
        self._slots = threading.Semaphore(threads + settings.PASSWORD_HASH_QUEUE_SIZE)

    async def hash(self, password: str) -> str:
        return await self._run(self._context.hash, password)

    async def verify(self, password: str, hashed_password: str | None) -> bool:
        """Tell whether the hash is of this password; without a usable hash the answer is no, and takes as long."""
        unusable = len(password) > MAX_PASSWORD_LENGTH or _UNUSABLE.search(password)
        if unusable or hashed_password is None or self._context.identify(hashed_password) is None:
            await self._run(self._context.verify, "", self._unmatched_hash)
            return False
        # Plain bcrypt has always used 72 bytes; its library refuses longer input today.
        secret = password.encode()[:72] if hashed_password.startswith("$2") else password
        try:
            return await self._run(self._context.verify, secret, hashed_password)
        except ValueError:  # the hash is damaged
            return False

    def is_outdated(self, hashed_password: str) -> bool:
        """Tell whether the hash was made by an older scheme or at another cost than today's."""
        return self._context.needs_update(hashed_password)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        if not self._slots.acquire(blocking=False):
            raise ServiceUnavailableError("Too many sign-ins at once: try again", retry_after=5)
        future = self._executor.submit(function, *args)
        # Free the slot when the hash is done, not when the waiter is cancelled: the thread stays busy until then.
        future.add_done_callback(lambda _: self._slots.release())
        return await asyncio.wrap_future(future)

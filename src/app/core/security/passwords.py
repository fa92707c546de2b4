"""Passwords: the rule for new ones (schemas check the length), and hashing."""

import asyncio
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from passlib.context import CryptContext

from app.core.config import CryptSettings
from app.core.exceptions import ServiceUnavailableError

T = TypeVar("T")
MAX_PASSWORD_LENGTH = 128
_LIST = Path(__file__).with_name("common_passwords.txt")
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")  # NUL, and surrogates, which have no encoding


@cache
def _common_passwords() -> frozenset[str]:
    return frozenset(line for line in _LIST.read_text().splitlines() if not line.startswith("#"))


def weakness(password: str, *names: str) -> str | None:
    """Return why the password is easy to guess, or None; `names` are the owner's username and e-mail address."""
    folded = password.casefold()
    if folded in _common_passwords():
        return "This password is one of the most common ones: choose another"
    if folded in {part.casefold() for name in names for part in (name, name.partition("@")[0])}:
        return "The password is your username or e-mail address: choose another"
    return None


class PasswordHasher:
    """Hash and verify passwords in as many threads as leave one processor to the event loop.

    bcrypt takes a quarter of a second and releases the GIL. bcrypt_sha256 uses the whole password, plain bcrypt its
    first 72 bytes. Hashes of plain bcrypt, or of another cost, are accepted and reported by `is_outdated`.
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

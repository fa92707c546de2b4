"""Passwords and tokens. Hashing runs in threads of its own: bcrypt takes a quarter of a second and frees the GIL."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

from jose import jwt
from passlib.context import CryptContext

from app.core.config import settings
from app.core.exceptions import ServiceUnavailableError, UnauthorizedError
from app.core.models import now

MAX_PASSWORD_LENGTH = 128
MAX_TOKEN_LENGTH = 2048
CLOCK_SKEW_SECONDS = 10
TOKEN_TYPE = "access"  # noqa: S105  (a claim, not a secret)

T = TypeVar("T")

# bcrypt_sha256 hashes the whole password, plain bcrypt its first 72 bytes.
_passwords = CryptContext(schemes=["bcrypt_sha256"], bcrypt_sha256__rounds=settings.BCRYPT_COST)
# A well-formed hash that no password has: refusing an unknown user costs what refusing a wrong password does.
_NOBODYS_HASH = f"$bcrypt-sha256$v=2,t=2b,r={settings.BCRYPT_COST}${'.' * 22}${'.' * 31}"


class _HashingThreads:
    """As many threads as leave one processor to the event loop, and a bounded queue in front of them."""

    def __init__(self, threads: int, queue_size: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="hashing")
        self._places = threading.Semaphore(threads + queue_size)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        if not self._places.acquire(blocking=False):
            raise ServiceUnavailableError("Too many sign-ins at once: try again", retry_after=5)
        future = self._executor.submit(function, *args)
        # Not when the waiting ends: a request that is given up keeps its thread busy until the hash is done.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)


_hashing = _HashingThreads(max(1, (os.cpu_count() or 2) - 1), settings.PASSWORD_HASH_QUEUE_SIZE)


async def get_password_hash(password: str) -> str:
    return await _hashing.run(_passwords.hash, password)


async def verify_password(plain_password: str, hashed_password: str | None) -> bool:
    """Tell whether the hash is of this password; without a hash the answer is no, and takes as long."""
    usable = len(plain_password) <= MAX_PASSWORD_LENGTH and "\x00" not in plain_password and _encodable(plain_password)
    if not usable or hashed_password is None:
        await _hashing.run(_passwords.verify, "", _NOBODYS_HASH)
        return False
    return await _hashing.run(_passwords.verify, plain_password, hashed_password)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def create_access_token(subject: UUID) -> str:
    """Sign a token for the user with this uuid, valid for `ACCESS_TOKEN_EXPIRE_MINUTES`."""
    issued = now()
    claims = {
        "sub": str(subject),
        "iat": issued,
        "exp": issued + timedelta(minutes=settings.ACCESS_TOKEN_EXPIRE_MINUTES),
        "jti": uuid4().hex,
        "type": TOKEN_TYPE,
    }
    token: str = jwt.encode(claims, settings.secret_key, algorithm=settings.ALGORITHM)
    return token


def read_access_token(token: str) -> UUID:
    """Return the uuid of the user that the token was signed for; anything not exactly as we sign it is refused."""
    refused = UnauthorizedError(
        "The token is not valid or has expired: sign in again", challenge='Bearer error="invalid_token"'
    )
    if len(token) > MAX_TOKEN_LENGTH:
        raise refused
    try:
        claims = jwt.decode(
            token,
            settings.secret_key,
            algorithms=[settings.ALGORITHM],
            options={"require_exp": True, "require_iat": True, "require_sub": True, "verify_aud": False},
        )
        header = jwt.get_unverified_header(token)
        subject = UUID(claims["sub"])
        valid = (
            header.keys() <= {"alg", "typ"}
            and claims["type"] == TOKEN_TYPE
            and claims["iat"] <= now().timestamp() + CLOCK_SKEW_SECONDS
        )
    except Exception as error:  # python-jose lets RecursionError, TypeError and others of a forged token through
        raise refused from error
    if not valid:
        raise refused
    return subject

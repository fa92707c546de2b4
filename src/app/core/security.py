"""Passwords and tokens. Hashing runs in threads of its own: bcrypt takes a quarter of a second and frees the GIL."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

from jose import jwk, jws, jwt
from jose.backends.base import Key
from passlib.context import CryptContext

from app.core.config import settings
from app.core.exceptions import ServiceUnavailableError, UnauthorizedError
from app.core.models import now
from app.core.passwords import MAX_PASSWORD_LENGTH

MAX_TOKEN_LENGTH = 2048
CLOCK_SKEW_SECONDS = 10
TOKEN_TYPE = "access"  # noqa: S105  (a claim, not a secret)
CLAIMS = {"sub", "iat", "exp", "jti", "type", "sid"}

T = TypeVar("T")


def make_policy(cost: int) -> CryptContext:
    """How passwords are hashed: bcrypt_sha256 takes the whole password, plain bcrypt its first 72 bytes.

    Hashes of the later schemes, and those of another cost, are accepted and renewed at the next sign-in.
    """
    return CryptContext(schemes=["bcrypt_sha256", "bcrypt"], deprecated="auto", bcrypt_sha256__rounds=cost)


_passwords = make_policy(settings.BCRYPT_COST)
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
    """Tell whether the hash is of this password; without a usable hash the answer is no, and takes as long."""
    usable = len(plain_password) <= MAX_PASSWORD_LENGTH and "\x00" not in plain_password and _encodable(plain_password)
    if not usable or hashed_password is None or _passwords.identify(hashed_password) is None:
        await _hashing.run(_passwords.verify, "", _NOBODYS_HASH)
        return False
    # Plain bcrypt has always looked at 72 bytes; its library refuses more today.
    secret = plain_password.encode()[:72] if hashed_password.startswith("$2") else plain_password
    try:
        return await _hashing.run(_passwords.verify, secret, hashed_password)
    except ValueError:  # the hash is damaged
        return False


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_outdated(hashed_password: str) -> bool:
    """Whether the hash was made by an older scheme or at another cost than today's."""
    return _passwords.needs_update(hashed_password)


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What an access token says: whose it is, and of which session (None: signed without sessions)."""

    user: UUID
    session: UUID | None


def create_access_token(
    user: UUID, session: UUID | None = None, *, issued: datetime | None = None, jti: str | None = None
) -> str:
    """Sign a token for the user with this uuid, valid for `ACCESS_TOKEN_EXPIRE_MINUTES`."""
    issued = issued or now()
    claims = {
        "sub": str(user),
        "iat": issued,
        "exp": issued + timedelta(minutes=settings.ACCESS_TOKEN_EXPIRE_MINUTES),
        "jti": jti or uuid4().hex,
        "type": TOKEN_TYPE,
    }
    if session is not None:
        claims["sid"] = str(session)
    token: str = jwt.encode(claims, settings.secret_key, algorithm=settings.ALGORITHM)
    return token


def read_access_token(token: str, *, allow_expired: bool = False) -> AccessToken:
    """Return what a token of ours says; anything not exactly as we sign it is refused."""
    try:
        return _read(token, allow_expired)
    except Exception as error:  # python-jose lets RecursionError, TypeError and others of a forged token through
        raise UnauthorizedError(
            "The token is not valid or has expired: sign in again", challenge='Bearer error="invalid_token"'
        ) from error


def _read(token: str, allow_expired: bool) -> AccessToken:
    # The header is compared rather than read: it says nothing that we do not know.
    if len(token) > MAX_TOKEN_LENGTH or not token.startswith(_token_header()):
        raise ValueError
    claims = json.loads(jws.verify(token, _token_key(), [settings.ALGORITHM]))
    issued, expires, moment = claims["iat"], claims["exp"], time.time()
    if (
        not claims.keys() <= CLAIMS
        or claims["type"] != TOKEN_TYPE
        or type(issued) is not int
        or type(expires) is not int
        or issued > moment + CLOCK_SKEW_SECONDS
        or not (allow_expired or moment < expires)
    ):
        raise ValueError
    return AccessToken(UUID(claims["sub"]), UUID(claims["sid"]) if "sid" in claims else None)


@cache
def _token_key() -> Key:
    return jwk.construct(settings.secret_key, settings.ALGORITHM)


@cache
def _token_header() -> str:
    return jwt.encode({}, settings.secret_key, settings.ALGORITHM).partition(".")[0] + "."


def hash_of(secret: str) -> str:
    """The hash under which a random secret of ours is stored: it cannot be guessed, so a fast one will do."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    """256 random bits, in 43 characters that fit into a URL."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """Names its session and holds the secret that this session takes next."""

    session: UUID
    secret: str

    def __str__(self) -> str:
        return f"{self.session.hex}{self.secret}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        if not re.fullmatch(r"[0-9a-f]{32}[A-Za-z0-9_-]{43}", text):
            return None
        return cls(UUID(text[:32]), text[32:])

    def successor(self) -> Self:
        """The token that follows this one. It is computed, so that whoever asks twice gets the same."""
        digest = hmac.digest(settings.secret_key.encode(), f"refresh:{self}".encode(), "sha256")
        return type(self)(self.session, base64.urlsafe_b64encode(digest).rstrip(b"=").decode())

    def access_token(self, user: UUID, issued: datetime) -> str:
        """The access token that goes with this one, the same each time."""
        return create_access_token(user, self.session, issued=issued, jti=hash_of(f"access:{self}")[:32])

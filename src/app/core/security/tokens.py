"""Access tokens (signed, JWT), refresh tokens (random, one successor each) and other random secrets."""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self
from uuid import UUID, uuid4

from jose import jwk, jws, jwt

from app.core.config import CryptSettings
from app.core.exceptions import UnauthorizedError
from app.core.models import now

MAX_TOKEN_LENGTH = 2048
CLOCK_SKEW_SECONDS = 10
TOKEN_TYPE = "access"  # noqa: S105  (a claim, not a secret)
CLAIMS = {"sub", "iat", "exp", "jti", "type", "sid"}


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The uuids of a token's user and session (None: signed without sessions)."""

    user: UUID
    session: UUID | None


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """The uuid of its session, and the secret that this session accepts next."""

    session: UUID
    secret: str

    def __str__(self) -> str:
        return f"{self.session.hex}{self.secret}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        if not re.fullmatch(r"[0-9a-f]{32}[A-Za-z0-9_-]{43}", text):
            return None
        return cls(UUID(text[:32]), text[32:])


class TokenSigner:
    """Sign and read tokens with the key of the settings."""

    def __init__(self, settings: CryptSettings) -> None:
        self._secret = settings.secret_key
        self._algorithm = settings.ALGORITHM
        self._lifetime = timedelta(minutes=settings.ACCESS_TOKEN_EXPIRE_MINUTES)
        self._key = jwk.construct(self._secret, self._algorithm)
        self._header = jwt.encode({}, self._secret, self._algorithm).partition(".")[0] + "."

    def access_token(
        self, user: UUID, session: UUID | None = None, *, issued: datetime | None = None, jti: str | None = None
    ) -> str:
        """Sign a token for the user with this uuid, valid for `ACCESS_TOKEN_EXPIRE_MINUTES`."""
        issued = issued or now()
        claims = {"type": TOKEN_TYPE, "sub": str(user), "iat": issued, "exp": issued + self._lifetime}
        claims |= {"jti": jti or uuid4().hex, **({"sid": str(session)} if session else {})}
        return str(jwt.encode(claims, self._secret, algorithm=self._algorithm))

    def read(self, token: str, *, allow_expired: bool = False) -> AccessToken:
        """Return the content of a valid token; raises UnauthorizedError for any other."""
        try:
            return self._read(token, allow_expired)
        except Exception as error:  # python-jose lets RecursionError, TypeError and others of a forged token through
            raise UnauthorizedError(
                "The token is not valid or has expired: sign in again", challenge='Bearer error="invalid_token"'
            ) from error

    def _read(self, token: str, allow_expired: bool) -> AccessToken:
        # Every token of ours has the same header: comparing it is safer than parsing it.
        if len(token) > MAX_TOKEN_LENGTH or not token.startswith(self._header):
            raise ValueError
        claims = json.loads(jws.verify(token, self._key, [self._algorithm]))
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

    def successor(self, token: RefreshToken) -> RefreshToken:
        """Return the refresh token that follows: computed, so that a repeated request gets the same one."""
        digest = hmac.digest(self._secret.encode(), f"refresh:{token}".encode(), "sha256")
        return RefreshToken(token.session, base64.urlsafe_b64encode(digest).rstrip(b"=").decode())

    def access_token_for(self, token: RefreshToken, user: UUID, issued: datetime) -> str:
        """Sign the access token that goes with a refresh token: the same one each time."""
        return self.access_token(user, token.session, issued=issued, jti=hash_of(f"access:{token}")[:32])


def hash_of(secret: str) -> str:
    """Return the hash under which a random secret is stored. A fast one suffices: the secret cannot be guessed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    """Return 256 random bits, in 43 characters that fit into a URL."""
    return secrets.token_urlsafe(32)

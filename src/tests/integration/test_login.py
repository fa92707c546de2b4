"""Sign-in, and all kinds of tokens that must be refused."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from jose import jwt

from app.core.config import settings
from app.core.database import default_engines, transaction
from app.core.security import PasswordHasher, TokenSigner
from app.crud.crud_sessions import crud_sessions
from app.main import app as the_app
from app.models.user import User
from tests.factories import ADMIN_PASSWORD, CLIENT, PASSWORD, make_user
from tests.fixtures import Fetch, HeadersFor
from tests.helper import assert_unauthorized, own, running, wait_until

REFUSED = {"detail": "Wrong username, e-mail or password"}


class TestLogin:
    @pytest.mark.parametrize("name", ["testeruser", "test@tester.com", "TEST@Tester.com"])
    async def test_valid(self, client: httpx.AsyncClient, name: str) -> None:
        user = await make_user(username="testeruser", email="test@tester.com")
        response = await client.post("/api/v1/login", data={"username": name, "password": PASSWORD})
        assert response.status_code == 200
        assert response.json() == {"access_token": response.json()["access_token"], "token_type": "bearer"}
        headers = {"Authorization": f"Bearer {response.json()['access_token']}"}
        assert (await client.get("/api/v1/user/me", headers=headers)).json() == own(user)

    async def test_says_what_the_token_holds(self, client: httpx.AsyncClient, user: User) -> None:
        response = await client.post("/api/v1/login", data={"username": user.username, "password": PASSWORD})
        token = response.json()["access_token"]
        claims = jwt.get_unverified_claims(token)
        assert jwt.get_unverified_header(token) == {"alg": settings.ALGORITHM, "typ": "JWT"}
        assert claims.keys() == {"sub", "iat", "exp", "jti", "type", "sid"}
        assert (claims["sub"], claims["type"]) == (str(user.uuid), "access")
        assert claims["exp"] - claims["iat"] == settings.ACCESS_TOKEN_EXPIRE_MINUTES * 60

    @pytest.mark.parametrize(
        ("name", "password"),
        [
            ("testeruser", "wrong"),
            ("testeruser", ""),
            ("testeruser", PASSWORD.lower()),
            ("testeruser", PASSWORD + " "),
            ("testeruser", "a" * 5000),
            ("testeruser", "nul\x00"),
            ("nobody", PASSWORD),
            ("Testeruser", PASSWORD),
            ("test@nowhere.com", PASSWORD),
            ("a" * 5000, PASSWORD),
            ("nul\x00", PASSWORD),
            ("@", PASSWORD),
            ("' OR 1=1 --", PASSWORD),
            ("%", PASSWORD),
        ],
    )
    async def test_refused(self, client: httpx.AsyncClient, user: User, name: str, password: str) -> None:
        response = await client.post("/api/v1/login", data={"username": name, "password": password})
        if "" in (name, password):
            assert response.status_code in {401, 422}
            return
        assert_unauthorized(response)
        assert response.json() == REFUSED

    async def test_lone_surrogate(self, client: httpx.AsyncClient, user: User) -> None:
        for form in (b"username=%ED%A0%80&password=x", b"username=testeruser&password=%ED%A0%80"):
            response = await client.post(
                "/api/v1/login", content=form, headers={"Content-Type": "application/x-www-form-urlencoded"}
            )
            assert response.status_code in {401, 422}

    async def test_deleted_user(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        for name in (user.username, user.email):
            response = await client.post("/api/v1/login", data={"username": name, "password": PASSWORD})
            assert_unauthorized(response)
            assert response.json() == REFUSED

    @pytest.mark.parametrize("form", [{}, {"username": "testeruser"}, {"password": "x"}])
    async def test_missing_field(self, client: httpx.AsyncClient, form: dict[str, str]) -> None:
        response = await client.post("/api/v1/login", data=form)
        assert response.status_code == 422

    async def test_json_is_no_form(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/api/v1/login", json={"username": "testeruser", "password": PASSWORD})
        assert response.status_code == 422
        assert PASSWORD not in response.text

    async def test_answer_is_kept_nowhere(self, client: httpx.AsyncClient, user: User) -> None:
        response = await client.post("/api/v1/login", data={"username": user.username, "password": PASSWORD})
        assert response.headers["Cache-Control"] == "private, no-store"

    async def test_many_at_once(self, client: httpx.AsyncClient, user: User, superuser: User) -> None:
        forms = [
            {"username": user.username, "password": PASSWORD},
            {"username": superuser.email, "password": ADMIN_PASSWORD},
            {"username": user.username, "password": "wrong"},
            {"username": "nobody", "password": PASSWORD},
        ]
        answers = await asyncio.gather(*(client.post("/api/v1/login", data=form) for form in forms * 5))
        assert [answer.status_code for answer in answers] == [200, 200, 401, 401] * 5


class TestBusyProcessors:
    """With more passwords to hash than processors, a bounded queue forms, and other requests do not wait."""

    @pytest.fixture
    def gate(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """A hasher with one thread, busy until the gate opens, and a queue for two."""
        gate = threading.Event()
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        hasher = PasswordHasher(settings.model_copy(update={"PASSWORD_HASH_QUEUE_SIZE": 2}))
        # Requests use this in place of the application's own.
        monkeypatch.setattr(the_app.state.resources.passwords, "_slots", hasher._slots)
        monkeypatch.setattr(the_app.state.resources.passwords, "_executor", hasher._executor)
        hasher._slots.acquire()
        hasher._executor.submit(gate.wait).add_done_callback(lambda _: hasher._slots.release())
        yield gate
        gate.set()

    async def test_queue_is_bounded(self, client: httpx.AsyncClient, user: User, gate: threading.Event) -> None:
        form = {"username": user.username, "password": PASSWORD}
        async with running(*(client.post("/api/v1/login", data=form) for _ in range(2))) as waiting:
            await self._until_full()
            refused = await client.post("/api/v1/login", data=form)
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "5"
            assert list(refused.json()) == ["detail"]
            assert (await client.get("/api/v1/users")).status_code == 200
            gate.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]

    async def test_no_connection_is_held_meanwhile(
        self, client: httpx.AsyncClient, user: User, gate: threading.Event
    ) -> None:
        body = {"name": "Ann Other", "username": "ann", "email": "ann@example.com", "password": "Str1ngst!"}
        form = {"username": user.username, "password": PASSWORD}
        requests = client.post("/api/v1/user", json=body), client.post("/api/v1/login", data=form)
        async with running(*requests) as waiting:
            await self._until_full()
            for pool in (default_engines.write.pool, default_engines.read.pool):
                assert "Current Checked out connections: 0" in pool.status()
            gate.set()
        assert [answer.result().status_code for answer in waiting] == [201, 200]

    async def _until_full(self) -> None:
        async def is_full() -> bool:
            return bool(the_app.state.resources.passwords._slots._value == 0)

        await wait_until(is_full)


def _claims_of(user: User, **changes: Any) -> dict[str, Any]:
    """Return the claims of one of our tokens with changes; a change to None removes the claim."""
    now = datetime.now(UTC)
    claims = {
        "sub": str(user.uuid),
        "iat": int(now.timestamp()),
        "exp": int((now + timedelta(minutes=30)).timestamp()),
        "jti": uuid4().hex,
        "type": "access",
        "sid": str(uuid4()),
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def base64_of(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def sign(header: Any, claims: Any, *, key: str = settings.secret_key, digest: str = "sha256") -> str:
    """Sign an arbitrary header and arbitrary claims, which no library would."""
    signed = f"{base64_of(header)}.{base64_of(claims)}"
    signature = hmac.new(key.encode(), signed.encode(), digest).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


HEADER = {"alg": "HS256", "typ": "JWT"}
LATER, EARLIER = 10**10, 10**9


async def session_of(user: User) -> str:
    """Start a session; return its uuid for the token."""
    async with transaction() as db:
        session, _ = await crud_sessions.start(db, user.id, CLIENT, timedelta(days=1))
    return str(session.uuid)


def forged(user: User, session: str) -> dict[str, str]:
    """Return tokens with exactly one fault each, by fault; all must be refused."""

    def claims_of(user: User, **changes: Any) -> dict[str, Any]:
        return _claims_of(user, **{"sid": session, **changes})

    good = sign(HEADER, claims_of(user))
    head, body, signature = good.split(".")
    private = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----"
    return {
        "empty": "",
        "no token": "token",
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.{signature}",
        "dots": "..",
        "another key": sign(HEADER, claims_of(user), key="another key"),
        "empty key": sign(HEADER, claims_of(user), key=""),
        "public key as secret": sign(HEADER, claims_of(user), key=private),
        "no signature": f"{head}.{body}.",
        "another signature": f"{head}.{body}.{base64_of('signature')}",
        "another body": f"{head}.{base64_of(claims_of(user, sub=str(uuid4())))}.{signature}",
        "alg none": f"{base64_of({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        "alg None": f"{base64_of({'alg': 'None', 'typ': 'JWT'})}.{body}.{signature}",
        "alg HS512": sign({"alg": "HS512", "typ": "JWT"}, claims_of(user), digest="sha512"),
        "alg RS256": sign({"alg": "RS256", "typ": "JWT"}, claims_of(user)),
        "no alg": sign({"typ": "JWT"}, claims_of(user)),
        "alg of another type": sign({"alg": ["HS256"], "typ": "JWT"}, claims_of(user)),
        "crit": sign({**HEADER, "crit": ["exp"]}, claims_of(user)),
        "kid": sign({**HEADER, "kid": "../../etc/passwd"}, claims_of(user)),
        "jwk": sign({**HEADER, "jwk": {"kty": "oct", "k": "AAAA"}}, claims_of(user)),
        "header is a list": sign([], claims_of(user)),
        "header is no JSON": sign("header", claims_of(user)),
        "header of nested brackets": sign("[" * 1000 + "]" * 1000, claims_of(user)),
        "header of very many nested brackets": sign("[" * 30_000 + "]" * 30_000, claims_of(user)),
        "claims of nested brackets": sign(HEADER, "[" * 800 + "]" * 800),
        "claims are a list": sign(HEADER, []),
        "claims are null": sign(HEADER, "null"),
        "claims are no JSON": sign(HEADER, "claims"),
        "expired": sign(HEADER, claims_of(user, exp=EARLIER)),
        "expired now": sign(HEADER, claims_of(user, exp=int(datetime.now(UTC).timestamp()) - 1)),
        "no exp": sign(HEADER, claims_of(user, exp=None)),
        "exp is text": sign(HEADER, claims_of(user, exp="soon")),
        "exp is a list": sign(HEADER, claims_of(user, exp=[LATER])),
        "exp is true": sign(HEADER, claims_of(user, exp=True)),
        "exp is infinite": sign(HEADER, json.dumps(claims_of(user, exp=float("inf")))),
        "exp is not a number": sign(HEADER, json.dumps(claims_of(user, exp=float("nan")))),
        "no iat": sign(HEADER, claims_of(user, iat=None)),
        "iat in the future": sign(HEADER, claims_of(user, iat=LATER)),
        "iat is text": sign(HEADER, claims_of(user, iat="now")),
        "iat is a list": sign(HEADER, claims_of(user, iat=[EARLIER])),
        "iat is not a number": sign(HEADER, json.dumps(claims_of(user, iat=float("nan")))),
        "no sid": sign(HEADER, claims_of(user, sid=None)),
        "sid is nobody's": sign(HEADER, claims_of(user, sid=str(uuid4()))),
        "sid is a number": sign(HEADER, claims_of(user, sid=1)),
        "sid is a list": sign(HEADER, claims_of(user, sid=[session])),
        "sid has a NUL": sign(HEADER, claims_of(user, sid="\x00")),
        "nbf in the future": sign(HEADER, claims_of(user, nbf=LATER)),
        "nbf is text": sign(HEADER, claims_of(user, nbf="now")),
        "no type": sign(HEADER, claims_of(user, type=None)),
        "another type": sign(HEADER, claims_of(user, type="refresh")),
        "type is a list": sign(HEADER, claims_of(user, type=["access"])),
        "no sub": sign(HEADER, claims_of(user, sub=None)),
        "sub is a name": sign(HEADER, claims_of(user, sub=user.username)),
        "sub is an e-mail": sign(HEADER, claims_of(user, sub=user.email)),
        "sub is an id": sign(HEADER, claims_of(user, sub=str(user.id))),
        "sub is a number": sign(HEADER, claims_of(user, sub=user.id)),
        "sub is a list": sign(HEADER, claims_of(user, sub=[str(user.uuid)])),
        "sub is nobody's": sign(HEADER, claims_of(user, sub=str(uuid4()))),
        "sub has a NUL": sign(HEADER, claims_of(user, sub="\x00")),
        "sub is a lone surrogate": sign(HEADER, '{"sub": "\\ud800", "exp": 9999999999, "iat": 1, "type": "access"}'),
        "not base64": "!!!.???.---",
        "base64 of no UTF-8": f"{base64.urlsafe_b64encode(bytes([255] * 9)).decode()}.{body}.{signature}",
        "too long": sign(HEADER, claims_of(user, padding="x" * 3000)),
        "very long": "a" * 50_000,
        "another token type": base64_of({"ct": "x"}) + ".....",
    }


FORGED = sorted(forged(User(name="a", username="a", email="a", hashed_password=""), ""))


class TestForgedToken:
    async def test_token_without_a_forgery_is_accepted(self, client: httpx.AsyncClient, user: User) -> None:
        good = sign(HEADER, _claims_of(user, sid=await session_of(user)))
        response = await client.get("/api/v1/user/me", headers={"Authorization": f"Bearer {good}"})
        assert (response.status_code, response.json()) == (200, own(user))

    @pytest.mark.parametrize("kind", FORGED)
    async def test_refused(self, client: httpx.AsyncClient, user: User, kind: str) -> None:
        headers = {"Authorization": f"Bearer {forged(user, await session_of(user))[kind]}"}
        for path in ("/api/v1/user/me", f"/api/v1/user/{user.username}"):
            response = await client.get(path, headers=headers)
            if kind == "empty" and path != "/api/v1/user/me":
                continue
            assert_unauthorized(response)
        if kind != "empty":
            assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]

    @pytest.mark.parametrize("scheme", ["Basic", "Token", "bearer2", ""])
    async def test_another_scheme(self, client: httpx.AsyncClient, user: User, scheme: str) -> None:
        header = f"{scheme} {TokenSigner(settings).access_token(user.uuid)}".strip()
        assert_unauthorized(await client.get("/api/v1/user/me", headers={"Authorization": header}))

    async def test_scheme_has_no_case(self, client: httpx.AsyncClient, user: User) -> None:
        token = TokenSigner(settings).access_token(user.uuid, UUID(await session_of(user)))
        headers = {"Authorization": f"bearer {token}"}
        assert (await client.get("/api/v1/user/me", headers=headers)).status_code == 200

    async def test_header_of_odd_bytes(self, client: httpx.AsyncClient) -> None:
        for value in (b"Bearer \xff\xfe", "Bearer é.ü.ß".encode()):
            assert_unauthorized(await client.get("/api/v1/user/me", headers={b"Authorization": value}))


class TestTokenOfUser:
    async def test_dies_with_its_user(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        assert (await client.get("/api/v1/user/me", headers=user_headers)).status_code == 200
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        assert_unauthorized(await client.get("/api/v1/user/me", headers=user_headers))
        assert_unauthorized(await client.delete("/api/v1/user/me/sessions", headers=user_headers))

    async def test_tokens_of_one_user_differ(
        self, client: httpx.AsyncClient, user: User, headers_for: HeadersFor
    ) -> None:
        first, second = await headers_for(user), await headers_for(user)
        assert first != second
        for headers in (first, second):
            assert (await client.get("/api/v1/user/me", headers=headers)).status_code == 200


def test_library_accepts_tokens_signed_here() -> None:
    claims = {"sub": "x", "exp": LATER}
    ours = sign(HEADER, claims)
    assert jwt.decode(ours, settings.secret_key, algorithms=["HS256"]) == claims
    assert hashlib.sha256().digest_size == len(base64.urlsafe_b64decode(ours.split(".")[2] + "="))

import asyncio
import threading
from datetime import timedelta
from uuid import uuid4

import bcrypt
import pytest
from jose import jwt
from passlib.hash import bcrypt_sha256

from app.core import security
from app.core.config import settings
from app.core.exceptions import ServiceUnavailableError, UnauthorizedError
from app.core.models import now
from app.core.security import (
    AccessToken,
    RefreshToken,
    create_access_token,
    get_password_hash,
    is_outdated,
    new_secret,
    read_access_token,
    verify_password,
)


class TestPasswords:
    @pytest.mark.parametrize(
        "password", ["Str1ngst!", "pässwörd", "😀" * 40, "a" * 128, " " * 8, "a" * 72 + "b"], ids=len
    )
    async def test_right_one(self, password: str) -> None:
        hashed = await get_password_hash(password)
        assert password not in hashed
        assert await verify_password(password, hashed)

    async def test_every_character_counts(self) -> None:
        hashed = await get_password_hash("a" * 100 + "b")
        assert not await verify_password("a" * 100 + "c", hashed)
        assert not await verify_password("a" * 100, hashed)

    async def test_one_password_has_many_hashes(self) -> None:
        assert await get_password_hash("Str1ngst!") != await get_password_hash("Str1ngst!")

    @pytest.mark.parametrize("password", ["", "wrong", "nul\x00", "\ud800", "a" * 5000, "a" * 5_000_000])
    async def test_refused(self, password: str) -> None:
        assert not await verify_password(password, await get_password_hash("Str1ngst!"))

    async def test_nobodys(self) -> None:
        assert not await verify_password("", None)
        assert not await verify_password("Str1ngst!", None)

    @pytest.mark.parametrize("password", ["wrong", "nul\x00", "\ud800", "a" * 5000])
    @pytest.mark.parametrize("known", [True, False])
    async def test_each_refusal_costs_one_verification(
        self, monkeypatch: pytest.MonkeyPatch, password: str, known: bool
    ) -> None:
        hashed = await get_password_hash("Str1ngst!") if known else None
        verified: list[str] = []
        verify = security._passwords.verify

        def count(plain: str, stored: str) -> bool:
            verified.append(stored)
            return bool(verify(plain, stored))

        monkeypatch.setattr(security._passwords, "verify", count)
        assert not await verify_password(password, hashed)
        assert len(verified) == 1
        assert bcrypt_sha256.from_string(verified[0]).rounds == settings.BCRYPT_COST

    @pytest.mark.parametrize(
        "stored", ["", "!", "plain text", "$2b$broken", "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA"]
    )
    async def test_hash_that_is_none(self, stored: str) -> None:
        assert not await verify_password(stored, stored)

    @pytest.mark.parametrize("password", ["Str1ngst!", "a" * 72, "a" * 100])
    async def test_plain_bcrypt_is_accepted_and_outdated(self, password: str) -> None:
        stored = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(settings.BCRYPT_COST)).decode()
        assert await verify_password(password, stored)
        assert not await verify_password("wrong", stored)
        assert is_outdated(stored)

    @pytest.mark.parametrize("difference", [-1, 0, 1])
    async def test_hash_of_another_cost_is_outdated(self, difference: int) -> None:
        cost = settings.BCRYPT_COST + 1
        stored = security.make_policy(cost + difference).hash("Str1ngst!")
        assert security.make_policy(cost).needs_update(stored) is bool(difference)

    async def test_cost(self) -> None:
        assert bcrypt_sha256.from_string(await get_password_hash("Str1ngst!")).rounds == settings.BCRYPT_COST


class TestHashingThreads:
    async def test_leaves_the_event_loop_alone(self) -> None:
        threads = security._HashingThreads(1, 0)
        assert await threads.run(threading.current_thread) is not threading.current_thread()

    async def test_queue_is_bounded(self) -> None:
        threads, gate = security._HashingThreads(1, 2), threading.Event()
        waiting = [asyncio.create_task(threads.run(gate.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailableError) as refusal:
            await threads.run(gate.wait)
        assert refusal.value.headers["Retry-After"].isdigit()
        gate.set()
        assert await asyncio.gather(*waiting) == [True, True, True]
        assert await threads.run(gate.wait)

    async def test_error_leaves_its_place(self) -> None:
        threads = security._HashingThreads(1, 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await threads.run(lambda: 1 / 0)

    async def test_request_that_is_given_up_keeps_its_place_until_it_is_done(self) -> None:
        threads, gate = security._HashingThreads(1, 0), threading.Event()
        task = asyncio.create_task(threads.run(gate.wait))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ServiceUnavailableError):
            await threads.run(gate.wait)
        gate.set()


class TestRefreshTokens:
    def test_round_trip(self) -> None:
        token = RefreshToken(uuid4(), new_secret())
        assert RefreshToken.parse(str(token)) == token

    @pytest.mark.parametrize(
        "text", ["", "a" * 74, "a" * 76, "g" * 75, "a" * 74 + "\n", "a" * 74 + "é", "a" * 74 + "."]
    )
    def test_no_token(self, text: str) -> None:
        assert RefreshToken.parse(text) is None

    def test_successor_is_the_same_each_time_and_another_for_each_token(self) -> None:
        token, other = (RefreshToken(uuid4(), new_secret()) for _ in range(2))
        assert token.successor() == token.successor()
        assert RefreshToken.parse(str(token.successor())) == token.successor()
        successors = [
            token,
            token.successor(),
            token.successor().successor(),
            RefreshToken(token.session, other.secret),
        ]
        assert len({one.successor().secret for one in successors}) == 4
        assert {one.session for one in successors} == {token.session}


class TestTokens:
    def test_round_trip(self) -> None:
        user, session = uuid4(), uuid4()
        assert read_access_token(create_access_token(user, session)) == AccessToken(user, session)
        assert read_access_token(create_access_token(user)) == AccessToken(user, None)

    def test_expired(self) -> None:
        user, session = uuid4(), uuid4()
        token = create_access_token(user, session, issued=now() - timedelta(days=1))
        with pytest.raises(UnauthorizedError):
            read_access_token(token)
        assert read_access_token(token, allow_expired=True) == AccessToken(user, session)

    def test_is_signed_with_the_setting(self) -> None:
        token = create_access_token(uuid4())
        assert jwt.decode(token, settings.secret_key, algorithms=[settings.ALGORITHM])["type"] == "access"

    def test_every_one_has_an_id_of_its_own(self) -> None:
        uuid = uuid4()
        assert len({jwt.get_unverified_claims(create_access_token(uuid))["jti"] for _ in range(10)}) == 10

    @pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "[" * 30_000, "\x00", "\ud800", "é.é.é"])
    def test_no_token(self, token: str) -> None:
        with pytest.raises(UnauthorizedError) as refusal:
            read_access_token(token)
        assert refusal.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}

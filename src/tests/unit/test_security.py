import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import bcrypt
import pytest
from jose import jwt
from passlib.hash import bcrypt_sha256

from app.core.config import settings
from app.core.exceptions import ServiceUnavailableError, UnauthorizedError
from app.core.models import now
from app.core.security import AccessToken, PasswordHasher, RefreshToken, TokenSigner, new_secret

HASHER = PasswordHasher(settings)
SIGNER = TokenSigner(settings)


def hasher(**changes: int) -> PasswordHasher:
    return PasswordHasher(settings.model_copy(update=changes))


def one_thread(queue_size: int) -> PasswordHasher:
    """Return a hasher with one thread and a queue of `queue_size`."""
    one = hasher()
    one._executor = ThreadPoolExecutor(1)
    one._slots = threading.Semaphore(1 + queue_size)
    return one


class TestPasswords:
    @pytest.mark.parametrize(
        "password", ["Str1ngst!", "pässwörd", "😀" * 40, "a" * 128, " " * 8, "a" * 72 + "b"], ids=len
    )
    async def test_right_one(self, password: str) -> None:
        hashed = await HASHER.hash(password)
        assert password not in hashed
        assert await HASHER.verify(password, hashed)

    async def test_every_character_counts(self) -> None:
        hashed = await HASHER.hash("a" * 100 + "b")
        assert not await HASHER.verify("a" * 100 + "c", hashed)
        assert not await HASHER.verify("a" * 100, hashed)

    async def test_one_password_has_many_hashes(self) -> None:
        assert await HASHER.hash("Str1ngst!") != await HASHER.hash("Str1ngst!")

    @pytest.mark.parametrize("password", ["", "wrong", "nul\x00", "\ud800", "a" * 5000, "a" * 5_000_000])
    async def test_refused(self, password: str) -> None:
        assert not await HASHER.verify(password, await HASHER.hash("Str1ngst!"))

    async def test_nobodys(self) -> None:
        assert not await HASHER.verify("", None)
        assert not await HASHER.verify("Str1ngst!", None)

    @pytest.mark.parametrize("password", ["wrong", "nul\x00", "\ud800", "a" * 5000])
    @pytest.mark.parametrize("known", [True, False])
    async def test_each_refusal_costs_one_verification(
        self, monkeypatch: pytest.MonkeyPatch, password: str, known: bool
    ) -> None:
        hashed = await HASHER.hash("Str1ngst!") if known else None
        verified: list[str] = []
        verify = HASHER._context.verify

        def count(plain: str, stored: str) -> bool:
            verified.append(stored)
            return bool(verify(plain, stored))

        monkeypatch.setattr(HASHER._context, "verify", count)
        assert not await HASHER.verify(password, hashed)
        assert len(verified) == 1
        assert bcrypt_sha256.from_string(verified[0]).rounds == settings.BCRYPT_COST

    @pytest.mark.parametrize(
        "stored", ["", "!", "plain text", "$2b$broken", "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA"]
    )
    async def test_hash_that_is_none(self, stored: str) -> None:
        assert not await HASHER.verify(stored, stored)

    @pytest.mark.parametrize("password", ["Str1ngst!", "a" * 72, "a" * 100])
    async def test_plain_bcrypt_is_accepted_and_outdated(self, password: str) -> None:
        stored = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(settings.BCRYPT_COST)).decode()
        assert await HASHER.verify(password, stored)
        assert not await HASHER.verify("wrong", stored)
        assert HASHER.is_outdated(stored)

    @pytest.mark.parametrize("difference", [-1, 0, 1])
    async def test_hash_of_another_cost_is_outdated(self, difference: int) -> None:
        cost = settings.BCRYPT_COST + 1
        stored = await hasher(BCRYPT_COST=cost + difference).hash("Str1ngst!")
        assert hasher(BCRYPT_COST=cost).is_outdated(stored) is bool(difference)

    async def test_cost(self) -> None:
        assert bcrypt_sha256.from_string(await HASHER.hash("Str1ngst!")).rounds == settings.BCRYPT_COST


class TestHashingThreads:
    async def test_leaves_the_event_loop_alone(self) -> None:
        threads = one_thread(0)
        assert await threads._run(threading.current_thread) is not threading.current_thread()

    async def test_queue_is_bounded(self) -> None:
        threads, gate = one_thread(2), threading.Event()
        waiting = [asyncio.create_task(threads._run(gate.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailableError) as refusal:
            await threads._run(gate.wait)
        assert refusal.value.headers["Retry-After"].isdigit()
        gate.set()
        assert await asyncio.gather(*waiting) == [True, True, True]
        assert await threads._run(gate.wait)

    async def test_error_frees_its_slot(self) -> None:
        threads = one_thread(0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await threads._run(lambda: 1 / 0)

    async def test_cancelled_request_holds_its_slot_until_the_hash_is_done(self) -> None:
        threads, gate = one_thread(0), threading.Event()
        task = asyncio.create_task(threads._run(gate.wait))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ServiceUnavailableError):
            await threads._run(gate.wait)
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
        assert SIGNER.successor(token) == SIGNER.successor(token)
        assert RefreshToken.parse(str(SIGNER.successor(token))) == SIGNER.successor(token)
        successors = [
            token,
            SIGNER.successor(token),
            SIGNER.successor(SIGNER.successor(token)),
            RefreshToken(token.session, other.secret),
        ]
        assert len({SIGNER.successor(one).secret for one in successors}) == 4
        assert {one.session for one in successors} == {token.session}


class TestTokens:
    def test_round_trip(self) -> None:
        user, session = uuid4(), uuid4()
        assert SIGNER.read(SIGNER.access_token(user, session)) == AccessToken(user, session)
        assert SIGNER.read(SIGNER.access_token(user)) == AccessToken(user, None)

    def test_expired(self) -> None:
        user, session = uuid4(), uuid4()
        token = SIGNER.access_token(user, session, issued=now() - timedelta(days=1))
        with pytest.raises(UnauthorizedError):
            SIGNER.read(token)
        assert SIGNER.read(token, allow_expired=True) == AccessToken(user, session)

    def test_is_signed_with_the_setting(self) -> None:
        token = SIGNER.access_token(uuid4())
        assert jwt.decode(token, settings.secret_key, algorithms=[settings.ALGORITHM])["type"] == "access"

    def test_every_one_has_an_id_of_its_own(self) -> None:
        uuid = uuid4()
        assert len({jwt.get_unverified_claims(SIGNER.access_token(uuid))["jti"] for _ in range(10)}) == 10

    @pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "[" * 30_000, "\x00", "\ud800", "é.é.é"])
    def test_no_token(self, token: str) -> None:
        with pytest.raises(UnauthorizedError) as refusal:
            SIGNER.read(token)
        assert refusal.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}

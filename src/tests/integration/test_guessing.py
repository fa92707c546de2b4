"""Limits on password guesses, sign-ups and requests for mail, for the attacker and for the victim."""

import asyncio
from typing import Any

import httpx
import pytest

from app.core.config import settings
from app.main import app as the_app
from app.models.user import User
from tests.factories import PASSWORD, make_password_reset, make_user
from tests.fixtures import RedisRoles
from tests.helper import assert_error, assert_unauthorized

LOGIN = "/api/v1/login"
WALL = "Too many wrong passwords: wait as long as the Retry-After header says"


@pytest.fixture(autouse=True)
def _believed_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the proxy header, so that requests can come from many addresses."""
    monkeypatch.setattr(settings, "FORWARDED_ALLOW_IPS", "127.0.0.1")


async def attempt(client: httpx.AsyncClient, name: str, password: str, address: str = "203.0.113.1") -> httpx.Response:
    form = {"username": name, "password": password}
    return await client.post(LOGIN, data=form, headers={"X-Forwarded-For": address})


async def guess(client: httpx.AsyncClient, name: str, times: int, *addresses: str) -> list[int]:
    codes = []
    for number in range(times):
        address = addresses[number % len(addresses)] if addresses else "203.0.113.1"
        codes.append((await attempt(client, name, f"wrong{number}", address)).status_code)
    return codes


class TestSignIn:
    @pytest.mark.parametrize("known", [True, False])
    async def test_ten_failures_are_a_wall(self, client: httpx.AsyncClient, user: User, known: bool) -> None:
        name = user.username if known else "nobody"
        assert await guess(client, name, 12) == [401] * 10 + [429] * 2
        refused = await attempt(client, name, PASSWORD)
        assert_error(refused, 429, WALL)
        assert 0 < int(refused.headers["Retry-After"]) <= settings.LOGIN_PERIOD

    async def test_many_at_once_are_no_more(self, client: httpx.AsyncClient, user: User) -> None:
        answers = await asyncio.gather(*(attempt(client, user.username, f"wrong{number}") for number in range(60)))
        codes = [answer.status_code for answer in answers]
        assert (codes.count(401), codes.count(429)) == (10, 50)

    async def test_success_is_not_counted(self, client: httpx.AsyncClient, user: User) -> None:
        for _ in range(15):
            assert (await attempt(client, user.username, PASSWORD)).status_code == 200
        assert await guess(client, user.username, 11) == [401] * 10 + [429]

    async def test_name_and_address_are_one_account(self, client: httpx.AsyncClient, user: User) -> None:
        """The answers for the e-mail address give no hint of the account, or they would reveal its owner."""
        assert await guess(client, user.username, 10) == [401] * 10
        assert_unauthorized(await attempt(client, user.email.upper(), PASSWORD))
        assert_unauthorized(await attempt(client, "nobody@example.com", PASSWORD))
        assert await guess(client, user.email, 10) == [401] * 9 + [429]

    async def test_passes_again_when_the_time_is_over(
        self, client: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await guess(client, user.username, 10)
        assert (await attempt(client, user.username, PASSWORD)).status_code == 429
        monkeypatch.setattr(settings, "LOGIN_PERIOD", 1)  # only now, as the guesses may take longer
        await asyncio.sleep(1.1)
        assert (await attempt(client, user.username, PASSWORD)).status_code == 200

    async def test_owner_elsewhere_is_not_locked_out(self, client: httpx.AsyncClient, user: User) -> None:
        await guess(client, user.username, 11)
        assert (await attempt(client, user.username, PASSWORD, "198.51.100.7")).status_code == 200

    async def test_many_addresses_meet_the_account_s_wall_and_the_owner_does_not(
        self, client: httpx.AsyncClient, user: User
    ) -> None:
        home, abroad = "198.51.100.7", "192.0.2.33"
        assert (await attempt(client, user.username, PASSWORD, home)).status_code == 200
        crowd = [f"203.0.113.{number}" for number in range(1, 41)]
        codes = await guess(client, user.username, 120, *crowd)
        assert codes == [401] * 100 + [429] * 20
        assert_error(await attempt(client, user.username, PASSWORD, abroad), 429, WALL)
        assert (await attempt(client, user.username, PASSWORD, home)).status_code == 200
        assert await guess(client, user.username, 11, home) == [401] * 10 + [429]

    async def test_one_address_with_a_list_of_accounts_meets_a_wall(
        self, client: httpx.AsyncClient, user: User
    ) -> None:
        """An attacker tries one stolen password for each account; only the last one is right."""
        for number in range(100):
            assert_unauthorized(await attempt(client, f"somebody{number}", "from a leak"))
        assert_error(await attempt(client, user.username, PASSWORD), 429, WALL)

    async def test_limit_of_an_address_spares_accounts_that_signed_in_from_it(
        self, client: httpx.AsyncClient, user: User
    ) -> None:
        assert (await attempt(client, user.username, PASSWORD)).status_code == 200
        for number in range(100):
            await attempt(client, f"somebody{number}", "wrong")
        assert (await attempt(client, "somebody", "wrong")).status_code == 429
        assert (await attempt(client, user.username, PASSWORD)).status_code == 200

    async def test_ipv6_network_is_one_address(self, client: httpx.AsyncClient, user: User) -> None:
        hosts = [f"2001:db8:1:2::{number:x}" for number in range(1, 12)]
        assert await guess(client, user.username, 11, *hosts) == [401] * 10 + [429]
        assert (await guess(client, user.username, 1, "2001:db8:1:3::1")) == [401]

    async def test_refusal_looks_at_no_password(
        self, client: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await guess(client, user.username, 10)

        async def fail(*_: Any) -> bool:
            raise AssertionError

        monkeypatch.setattr(the_app.state.resources.passwords, "verify", fail)
        assert (await attempt(client, user.username, PASSWORD)).status_code == 429

    async def test_no_name_and_no_password_in_the_keys(
        self, client: httpx.AsyncClient, user: User, redis: RedisRoles
    ) -> None:
        await attempt(client, "my secret, typed into the wrong field", "another secret")
        keys = b" ".join(await redis.rate_limit.keys())
        assert keys.count(b"rate_limit:login:") == 5
        assert b"secret" not in keys
        assert all([await redis.rate_limit.ttl(key) > 0 for key in await redis.rate_limit.keys()])

    async def test_docs_of_staging_count_too(self, run_server: Any, user: User) -> None:
        server = await run_server(environment={"ENVIRONMENT": "staging"})
        auth = (user.username, "wrong")
        codes = [(await server.client.get("/docs", auth=auth)).status_code for _ in range(11)]
        assert codes == [401] * 10 + [429]


class TestSignUp:
    async def test_limit_by_address(self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings, "SIGN_UP_LIMIT", 3)
        codes = []
        for number in range(5):
            body = {"name": "Jane", "username": f"jane{number}", "email": f"{number}@example.com", "password": PASSWORD}
            response = await client.post("/api/v1/user", json=body, headers={"X-Forwarded-For": "203.0.113.1"})
            codes.append(response.status_code)
        assert codes == [201] * 3 + [429] * 2
        assert int(response.headers["Retry-After"]) > 3000
        elsewhere = await client.post("/api/v1/user", json=body, headers={"X-Forwarded-For": "203.0.113.2"})
        assert elsewhere.status_code == 201


class TestPasswordReset:
    @pytest.mark.parametrize(
        ("path", "body", "code"),
        [("forgot", {"email": "{}@example.com"}, 202), ("reset", {"token": "{}", "new_password": PASSWORD}, 401)],
    )
    async def test_limit_by_address(
        self, client: httpx.AsyncClient, path: str, body: dict[str, str], code: int
    ) -> None:
        codes = []
        for number in range(22):
            values = {name: value.replace("{}", f"number{number}") for name, value in body.items()}
            response = await client.post(f"/api/v1/password/{path}", json=values)
            codes.append(response.status_code)
        assert codes == [code] * 20 + [429] * 2
        assert "Retry-After" in response.headers

    async def test_few_mails_for_one_account(self, client: httpx.AsyncClient, user: User, redis: RedisRoles) -> None:
        """The answer stays the same, and the tokens in the first mails stay valid."""
        for number in range(6):
            response = await client.post(
                "/api/v1/password/forgot",
                json={"email": user.email},
                headers={"X-Forwarded-For": f"203.0.113.{number}"},
            )
            assert response.status_code == 202
        assert await redis.queue.zcard("arq:queue") == 3

    async def test_opens_the_way_to_an_account_under_attack(self, client: httpx.AsyncClient, user: User) -> None:
        crowd = [f"203.0.113.{number}" for number in range(1, 41)]
        await guess(client, user.username, 101, *crowd)
        home = "198.51.100.7"
        assert (await attempt(client, user.username, PASSWORD, home)).status_code == 429
        await make_password_reset(user, "token")
        body = {"token": "token", "new_password": "N3w&better"}
        assert (
            await client.post("/api/v1/password/reset", json=body, headers={"X-Forwarded-For": home})
        ).status_code == 200
        assert (await attempt(client, user.username, "N3w&better", home)).status_code == 200


async def test_limits_are_off_without_their_group(
    client: httpx.AsyncClient, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.password_checks.AbuseLimitSettings", type("Absent", (), {}))
    assert await guess(client, user.username, 15) == [401] * 15


async def test_two_users_do_not_share_a_limit(client: httpx.AsyncClient, user: User) -> None:
    other = await make_user()
    assert await guess(client, user.username, 11) == [401] * 10 + [429]
    assert await guess(client, other.username, 1) == [401]

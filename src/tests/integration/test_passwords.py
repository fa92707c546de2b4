"""Passwords: the accepted ones, their change and reset, and the operations that require them again."""

import asyncio
import re
from typing import Any

import bcrypt
import httpx
import pytest

from app.core.config import EnvironmentOption, settings
from app.core.database import transaction
from app.core.mail import Mail
from app.core.security import hash_of, passwords
from app.core.security.passwords import weakness
from app.crud.crud_password_resets import crud_password_resets
from app.crud.crud_users import crud_users
from app.models.user import User
from app.worker import send_password_reset
from tests.factories import PASSWORD, hasher, make_password_reset, make_user
from tests.fixtures import Fetch, HeadersFor, RunServer, RunWorker
from tests.helper import assert_error, assert_unauthorized

Headers = dict[str, str]
CHANGE, FORGOT, RESET = "/api/v1/user/me/password", "/api/v1/password/forgot", "/api/v1/password/reset"
NEW = "N3w&better"
TOKEN = "a-token-that-was-mailed"


async def can_sign_in(client: httpx.AsyncClient, user: User, password: str) -> bool:
    response = await client.post("/api/v1/login", data={"username": user.username, "password": password})
    assert response.status_code in {200, 401}
    return response.status_code == 200


async def let_session_age(postgres: Any, minutes: int = 16) -> None:
    await postgres.execute("UPDATE session SET created_at = created_at - make_interval(mins => $1)", minutes)


class TestPolicy:
    @pytest.mark.parametrize(
        "password",
        [
            "password",
            "12345678",
            "PassWord",
            "1qaz2wsx",
            "1234567",
            "a" * 129,
            "janeausten",
            "jane@example.com",
            "JaneAusten",
        ],
    )
    async def test_refused(self, client: httpx.AsyncClient, password: str) -> None:
        body = {"name": "Jane", "username": "janeausten", "email": "jane@example.com", "password": password}
        response = await client.post("/api/v1/user", json=body)
        assert response.status_code == 422
        [error] = response.json()["detail"]
        assert error.keys() == {"type", "loc", "msg"}
        assert f'"{password}"' not in response.text

    @pytest.mark.parametrize("password", ["password of mine", "p" * 128, "12345678é", "janeausten1"])
    async def test_taken(self, client: httpx.AsyncClient, password: str) -> None:
        body = {"name": "Jane", "username": "janeausten", "email": "jane@example.com", "password": password}
        assert (await client.post("/api/v1/user", json=body)).status_code == 201

    def test_list_has_three_thousand_that_are_long_enough(self) -> None:
        assert len(passwords._common_passwords()) == 3000
        assert min(map(len, passwords._common_passwords())) == 8
        assert all(password == password.casefold() for password in passwords._common_passwords())

    def test_part_before_the_at_sign(self) -> None:
        assert weakness("jane.austen", "jane", "Jane.Austen@example.com")
        assert weakness("jane.auste", "jane", "Jane.Austen@example.com") is None


class TestRenewal:
    async def test_older_scheme_is_renewed_at_sign_in(
        self, client: httpx.AsyncClient, user: User, fetch: Fetch
    ) -> None:
        old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        async with transaction() as db:
            await crud_users.update(db, {"hashed_password": old}, id=user.id)
        assert not await can_sign_in(client, user, "wrong")
        [row] = await fetch('SELECT hashed_password FROM "user"')
        assert row["hashed_password"] == old
        answers = await asyncio.gather(*(can_sign_in(client, user, PASSWORD) for _ in range(5)))
        assert all(answers)
        [row] = await fetch('SELECT hashed_password FROM "user"')
        assert not hasher.is_outdated(row["hashed_password"])
        assert await can_sign_in(client, user, PASSWORD)
        assert [row] == await fetch('SELECT hashed_password FROM "user"')


class TestChange:
    async def test_ends_all_other_sessions(
        self, client: httpx.AsyncClient, user: User, headers_for: HeadersFor, fetch: Fetch
    ) -> None:
        other, headers = await headers_for(user), await headers_for(user)
        somebody = await headers_for(await make_user())
        body = {"current_password": PASSWORD, "new_password": NEW}
        response = await client.post(CHANGE, json=body, headers=headers)
        assert (response.status_code, response.json()) == (200, {"message": "Password changed, other sessions ended"})
        assert_unauthorized(await client.get("/api/v1/user/me", headers=other))
        for active in (headers, somebody):
            assert (await client.get("/api/v1/user/me", headers=active)).status_code == 200
        assert await can_sign_in(client, user, NEW)
        assert not await can_sign_in(client, user, PASSWORD)

    async def test_withdraws_a_reset_under_way(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers
    ) -> None:
        await make_password_reset(user, TOKEN)
        body = {"current_password": PASSWORD, "new_password": NEW}
        assert (await client.post(CHANGE, json=body, headers=user_headers)).status_code == 200
        assert_unauthorized(await client.post(RESET, json={"token": TOKEN, "new_password": "An0ther!!"}))

    async def test_anonymous(self, client: httpx.AsyncClient) -> None:
        assert_unauthorized(await client.post(CHANGE, json={"current_password": PASSWORD, "new_password": NEW}))

    @pytest.mark.parametrize("wrong", ["wrong", "", PASSWORD + " ", "a" * 128])
    async def test_wrong_password(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, wrong: str
    ) -> None:
        body = {"current_password": wrong, "new_password": NEW}
        assert_error(await client.post(CHANGE, json=body, headers=user_headers), 403, "current_password is wrong")
        assert await can_sign_in(client, user, PASSWORD)

    async def test_guesses_run_out(self, client: httpx.AsyncClient, user: User, user_headers: Headers) -> None:
        """Guesses here count like those of the sign-in, so a stolen access token gives no further tries."""
        body = {"current_password": "wrong", "new_password": NEW}
        answers = [await client.post(CHANGE, json=body, headers=user_headers) for _ in range(11)]
        assert [answer.status_code for answer in answers] == [403] * 10 + [429]
        assert int(answers[-1].headers["Retry-After"]) > 200
        form = {"username": user.username, "password": PASSWORD}
        assert (await client.post("/api/v1/login", data=form)).status_code == 429

    @pytest.mark.parametrize("weak", ["testeruser", "TEST@tester.com", "iloveyou"])
    async def test_weak_new_one(self, client: httpx.AsyncClient, weak: str, headers_for: HeadersFor) -> None:
        user = await make_user(username="testeruser", email="test@tester.com")
        body = {"current_password": PASSWORD, "new_password": weak}
        response = await client.post(CHANGE, json=body, headers=await headers_for(user))
        assert response.status_code == 422
        assert await can_sign_in(client, user, PASSWORD)

    async def test_two_at_once(self, client: httpx.AsyncClient, user: User, user_headers: Headers) -> None:
        bodies = [{"current_password": PASSWORD, "new_password": f"N3w&better{number}"} for number in range(5)]
        answers = await asyncio.gather(*(client.post(CHANGE, json=body, headers=user_headers) for body in bodies))
        codes = [answer.status_code for answer in answers]
        assert codes.count(200) == 1
        assert {*codes} <= {200, 403, 409}
        signs_in = [await can_sign_in(client, user, body["new_password"]) for body in bodies]
        assert signs_in == [code == 200 for code in codes]


class TestReauthentication:
    """After a quarter of an hour, a session needs the password to change the e-mail address or delete the account."""

    async def test_email_in_a_young_session(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, postgres: Any
    ) -> None:
        await let_session_age(postgres, 14)
        path = f"/api/v1/user/{user.username}"
        response = await client.patch(path, json={"email": "new@example.com"}, headers=user_headers)
        assert (response.status_code, response.json()["email"]) == (200, "new@example.com")

    async def test_email_in_an_old_session(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, postgres: Any
    ) -> None:
        await let_session_age(postgres)
        path = f"/api/v1/user/{user.username}"
        response = await client.patch(path, json={"email": "new@example.com"}, headers=user_headers)
        assert_error(response, 403, "You signed in more than 15 minutes ago: send your current_password too")
        body = {"email": "new@example.com", "current_password": "wrong"}
        assert_error(await client.patch(path, json=body, headers=user_headers), 403, "current_password is wrong")
        assert (await client.get("/api/v1/user/me", headers=user_headers)).json()["email"] == user.email
        body["current_password"] = PASSWORD
        response = await client.patch(path, json=body, headers=user_headers)
        assert (response.status_code, response.json()["email"]) == (200, "new@example.com")

    async def test_refreshing_makes_it_no_younger(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, postgres: Any
    ) -> None:
        await let_session_age(postgres)
        token = (await client.post("/api/v1/refresh")).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        assert (await client.delete(f"/api/v1/user/{user.username}", headers=headers)).status_code == 403

    async def test_other_fields_in_an_old_session(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, postgres: Any
    ) -> None:
        await let_session_age(postgres)
        path = f"/api/v1/user/{user.username}"
        assert (await client.patch(path, json={"name": "New Name"}, headers=user_headers)).status_code == 200

    @pytest.mark.parametrize("path", ["user", "db_user"])
    async def test_deletion_in_an_old_session(
        self, client: httpx.AsyncClient, user: User, superuser_headers: Headers, postgres: Any, path: str
    ) -> None:
        """A superuser gives their own password to delete any account."""
        await let_session_age(postgres)
        url = f"/api/v1/{path}/{user.username}"
        for content, status in (
            (None, 403),
            ({}, 422),
            ({"current_password": PASSWORD}, 403),
            ({"current_password": settings.ADMIN_PASSWORD.get_secret_value()}, 200),
        ):
            response = await client.request("DELETE", url, json=content, headers=superuser_headers)
            assert response.status_code == status, content


class TestReset:
    async def test_ends_all_sessions(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, fetch: Fetch
    ) -> None:
        await make_password_reset(user, TOKEN)
        response = await client.post(RESET, json={"token": TOKEN, "new_password": NEW})
        assert response.status_code == 200
        assert response.json() == {"message": "Password changed, all sessions ended: sign in"}
        assert_unauthorized(await client.get("/api/v1/user/me", headers=user_headers))
        assert_unauthorized(await client.post("/api/v1/refresh"))
        assert await fetch("SELECT * FROM session") == []
        assert await can_sign_in(client, user, NEW)
        assert not await can_sign_in(client, user, PASSWORD)

    async def test_works_once(self, client: httpx.AsyncClient, user: User) -> None:
        await make_password_reset(user, TOKEN)
        bodies = [{"token": TOKEN, "new_password": f"N3w&better{number}"} for number in range(5)]
        answers = await asyncio.gather(*(client.post(RESET, json=body) for body in bodies))
        assert sorted(answer.status_code for answer in answers) == [200] + [401] * 4
        assert_unauthorized(await client.post(RESET, json=bodies[0]))

    async def test_expired(self, client: httpx.AsyncClient, user: User, fetch: Fetch) -> None:
        await make_password_reset(user, TOKEN, seconds=-1)
        assert_unauthorized(await client.post(RESET, json={"token": TOKEN, "new_password": NEW}))
        assert await can_sign_in(client, user, PASSWORD)
        async with transaction() as db:
            assert await crud_password_resets.purge(db, 10) == 1

    async def test_only_the_last_one_counts(self, client: httpx.AsyncClient, user: User) -> None:
        await make_password_reset(user, TOKEN)
        await make_password_reset(user, "later")
        assert_unauthorized(await client.post(RESET, json={"token": TOKEN, "new_password": NEW}))
        assert (await client.post(RESET, json={"token": "later", "new_password": NEW})).status_code == 200

    async def test_not_after_the_address_has_changed(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers
    ) -> None:
        await make_password_reset(user, TOKEN)
        body = {"email": "new@example.com"}
        await client.patch(f"/api/v1/user/{user.username}", json=body, headers=user_headers)
        assert_unauthorized(await client.post(RESET, json={"token": TOKEN, "new_password": NEW}))
        assert await can_sign_in(client, user, PASSWORD)

    async def test_deleted_user(self, client: httpx.AsyncClient, user: User, user_headers: Headers) -> None:
        await make_password_reset(user, TOKEN)
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        assert_unauthorized(await client.post(RESET, json={"token": TOKEN, "new_password": NEW}))

    @pytest.mark.parametrize("token", ["", "wrong", "a" * 200, "😀"])
    async def test_wrong_token(self, client: httpx.AsyncClient, user: User, token: str) -> None:
        await make_password_reset(user, TOKEN)
        assert_unauthorized(await client.post(RESET, json={"token": token, "new_password": NEW}))

    async def test_weak_password_does_not_use_the_token_up(self, client: httpx.AsyncClient, user: User) -> None:
        await make_password_reset(user, TOKEN)
        for weak in ("short", "password", user.email):
            assert (await client.post(RESET, json={"token": TOKEN, "new_password": weak})).status_code == 422
        assert (await client.post(RESET, json={"token": TOKEN, "new_password": NEW})).status_code == 200


class TestForgotten:
    async def test_same_answer_and_same_work_for_unknown_addresses(
        self, client: httpx.AsyncClient, user: User, statements: Any
    ) -> None:
        statements.clear()
        answers = [await client.post(FORGOT, json={"email": email}) for email in (user.email, "nobody@example.com")]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].content == answers[1].content
        assert statements.all == []

    async def test_malformed(self, client: httpx.AsyncClient) -> None:
        for email in ("", "nobody", "a@b\x00.c", None, 5):
            assert (await client.post(FORGOT, json={"email": email})).status_code == 422

    async def test_absent_where_no_mail_can_be_sent(self, run_server: RunServer) -> None:
        server = await run_server(environment={"ENVIRONMENT": "production"})
        assert (await server.client.post(FORGOT, json={"email": "a@example.com"})).status_code == 404
        server = await run_server(environment={"ENVIRONMENT": "production", "SMTP_HOST": "127.0.0.1"})
        assert (await server.client.post(FORGOT, json={"email": "a@example.com"})).status_code == 202

    async def test_no_mail_goes_to_the_default_address_outside_local(
        self, monkeypatch: pytest.MonkeyPatch, fetch: Fetch, superuser: User
    ) -> None:
        """The default mailbox may belong to a stranger, who must not become the superuser."""
        sent: list[Mail] = []

        class Mailer:
            async def send(self, mail: Mail) -> None:
                sent.append(mail)

        monkeypatch.setattr("app.worker.DEFAULT_ADMIN_EMAIL", superuser.email)
        context = {"transaction": transaction, "mailer": Mailer()}
        for environment in EnvironmentOption:
            monkeypatch.setattr(settings, "ENVIRONMENT", environment)
            await send_password_reset(context, superuser.email)
        assert len(sent) == len(await fetch("SELECT * FROM password_reset")) == 1

    async def test_the_whole_way(
        self, client: httpx.AsyncClient, user: User, run_worker: RunWorker, fetch: Fetch
    ) -> None:
        """Run the whole flow: request, queue, mail and new password. Only the mail contains the token."""
        worker = await run_worker()
        await client.post(FORGOT, json={"email": "nobody@example.com"})
        await client.post(FORGOT, json={"email": user.email.upper()})
        await worker.wait_for_output("do nothing.")
        assert worker.output.count("To: ") == 1
        assert f"To: {user.email}\n" in worker.output
        [token] = re.findall(r"^Your token: ([A-Za-z0-9_-]{43})$", worker.output, re.MULTILINE)
        assert worker.output.count(token) == 1
        assert (await fetch("SELECT token_hash FROM password_reset")) == [{"token_hash": hash_of(token)}]
        response = await client.post(RESET, json={"token": token, "new_password": NEW})
        assert response.status_code == 200
        assert await can_sign_in(client, user, NEW)
        assert NEW not in worker.output

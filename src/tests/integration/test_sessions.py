"""Sessions: their start, refresh, list and end, and the detection of stolen refresh tokens."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from jose import jwt

from app.core.config import settings
from app.core.database import transaction
from app.core.models import now
from app.core.security import RefreshToken, TokenSigner
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_users import crud_users
from app.models.user import User
from app.worker import WorkerSettings, purge_expired
from tests.factories import CLIENT, PASSWORD, make_password_reset, make_user
from tests.fixtures import Fetch, HeadersFor, RunServer
from tests.helper import assert_error, assert_unauthorized, is_recent, running
from tests.in_between import wait_for_locks

Headers = dict[str, str]
PATHS = ["/api/v1/logout", "/api/v1/refresh"]


async def sign_in(client: httpx.AsyncClient, user: User, **options: Any) -> httpx.Response:
    form = {"username": user.username, "password": PASSWORD}
    response = await client.post("/api/v1/login?refresh_in_body=true", data=form, **options)
    assert response.status_code == 200
    client.cookies.clear()
    return response


async def pair(client: httpx.AsyncClient, user: User) -> tuple[Headers, str]:
    """Sign in without cookies; return the headers to send and the refresh token."""
    body = (await sign_in(client, user)).json()
    return {"Authorization": f"Bearer {body['access_token']}"}, body["refresh_token"]


async def refresh(client: httpx.AsyncClient, token: str, **options: Any) -> httpx.Response:
    response = await client.post("/api/v1/refresh", json={"refresh_token": token}, **options)
    client.cookies.clear()
    return response


async def is_signed_in(client: httpx.AsyncClient, headers: Headers) -> bool:
    response = await client.get("/api/v1/user/me", headers=headers)
    if response.status_code != 200:
        assert_unauthorized(response)
    return response.status_code == 200


def cookies_of(response: httpx.Response) -> list[list[str]]:
    """Return the parts of each cookie, in the order of the paths."""
    cookies = [header.split("; ") for header in response.headers.get_list("Set-Cookie")]
    return sorted(cookies, key=lambda parts: next(part for part in parts if part.startswith("Path=")))


class TestLogin:
    async def test_writes_a_session(self, client: httpx.AsyncClient, user: User, fetch: Fetch) -> None:
        response = await sign_in(client, user, headers={"User-Agent": "A browser/1.0"})
        [row] = await fetch("SELECT * FROM session")
        assert (row["user_id"], row["user_agent"], row["address"]) == (user.id, "A browser/1.0", "127.0.0.1")
        assert is_recent(row["created_at"])
        assert row["last_used_at"] - row["created_at"] < timedelta(seconds=1)
        days = settings.REFRESH_TOKEN_EXPIRE_DAYS
        assert abs(row["expires_at"] - row["created_at"] - timedelta(days=days)) < timedelta(seconds=1)
        claims = jwt.get_unverified_claims(response.json()["access_token"])
        assert claims["sid"] == str(row["uuid"])

    async def test_stores_no_token(self, client: httpx.AsyncClient, user: User, fetch: Fetch) -> None:
        token = (await sign_in(client, user)).json()["refresh_token"]
        [row] = await fetch("SELECT s::text AS all FROM session s")
        assert token[32:] not in row["all"]

    async def test_cookie(self, client: httpx.AsyncClient, user: User) -> None:
        response = await client.post("/api/v1/login", data={"username": user.username, "password": PASSWORD})
        assert response.json().keys() == {"access_token", "token_type"}
        cookies = cookies_of(response)
        assert [next(part for part in cookie if part.startswith("Path=")) for cookie in cookies] == [
            f"Path={path}" for path in PATHS
        ]
        for cookie in cookies:
            assert RefreshToken.parse(cookie[0].removeprefix("refresh_token="))
            assert {"HttpOnly", "SameSite=strict", "Max-Age=604800"} <= {*cookie}
            assert "Secure" not in cookie

    async def test_cookie_is_secure_outside_local(self, run_server: RunServer, user: User) -> None:
        server = await run_server(environment={"ENVIRONMENT": "staging"})
        response = await server.client.post("/api/v1/login", data={"username": user.username, "password": PASSWORD})
        for answer in (response, await server.client.post("/api/v1/logout")):
            assert len(cookies_of(answer)) == 2
            assert all("Secure" in cookie for cookie in cookies_of(answer))
            assert all(cookie[0].startswith("__Secure-refresh_token=") for cookie in cookies_of(answer))
        token = cookies_of(response)[0][0]
        assert (await server.client.post("/api/v1/refresh", headers={"Cookie": token})).status_code == 200

    @pytest.mark.parametrize(
        ("site", "origins", "status"),
        [
            ("cross-site", "", 403),
            ("cross-site", "https://other.example", 403),
            ("cross-site", "https://page.example", 200),
            ("cross-site", "*", 403),
            ("same-site", "", 200),
            ("none", "", 200),
        ],
    )
    async def test_form_of_another_site_signs_nobody_in(
        self,
        client: httpx.AsyncClient,
        user: User,
        monkeypatch: pytest.MonkeyPatch,
        site: str,
        origins: str,
        status: int,
    ) -> None:
        monkeypatch.setattr(settings, "CORS_ORIGINS", origins)
        form = {"username": user.username, "password": PASSWORD}
        headers = {"Sec-Fetch-Site": site, "Origin": "https://page.example"}
        response = await client.post("/api/v1/login", data=form, headers=headers)
        assert response.status_code == status
        assert bool(cookies_of(response)) is (status == 200)

    @pytest.mark.parametrize("agent", [b"", b"x" * 4000, bytes(range(128, 256)), "é\t".encode()])
    async def test_odd_user_agent(self, client: httpx.AsyncClient, user: User, agent: bytes) -> None:
        await sign_in(client, user, headers={b"User-Agent": agent})

    async def test_password_that_is_changed_meanwhile_begins_no_session(
        self, client: httpx.AsyncClient, user: User, fetch: Fetch
    ) -> None:
        """A password change commits after the sign-in has checked the old password."""
        form = {"username": user.username, "password": PASSWORD}
        async with AsyncExitStack() as stack, transaction() as db:
            await crud_sessions.start(db, user.id, CLIENT, timedelta(days=1))
            await crud_users.update(db, {"hashed_password": "!"}, id=user.id)
            (late,) = await stack.enter_async_context(running(client.post("/api/v1/login", data=form)))
            await wait_for_locks(fetch)
            await crud_sessions.end_all(db, user.id)
            assert not late.done()
        assert_unauthorized(late.result())
        assert await fetch("SELECT * FROM session") == []


class TestRefresh:
    async def test_cookie(self, client: httpx.AsyncClient, user: User, user_headers: Headers) -> None:
        first = client.cookies.get("refresh_token", path="/api/v1/refresh")
        response = await client.post("/api/v1/refresh")
        assert response.status_code == 200
        assert response.json().keys() == {"access_token", "token_type"}
        assert len(cookies_of(response)) == 2
        assert client.cookies.get("refresh_token", path="/api/v1/refresh") != first
        assert await is_signed_in(client, {"Authorization": f"Bearer {response.json()['access_token']}"})
        assert (await client.post("/api/v1/refresh")).status_code == 200

    async def test_body(self, client: httpx.AsyncClient, user: User, fetch: Fetch) -> None:
        _, token = await pair(client, user)
        for _ in range(3):
            response = await refresh(client, token)
            assert response.status_code == 200
            assert response.headers["Cache-Control"] == "private, no-store"
            assert response.json().keys() == {"access_token", "token_type", "refresh_token"}
            assert response.json()["refresh_token"] != token
            token = response.json()["refresh_token"]
            assert await is_signed_in(client, {"Authorization": f"Bearer {response.json()['access_token']}"})
        [row] = await fetch("SELECT * FROM session")
        assert row["last_used_at"] > row["created_at"]
        assert row["expires_at"] - row["last_used_at"] > timedelta(days=6)

    async def test_answer_that_was_lost_comes_again(self, client: httpx.AsyncClient, user: User) -> None:
        _, token = await pair(client, user)
        first, second = await refresh(client, token), await refresh(client, token)
        assert first.status_code == second.status_code == 200
        assert first.json() == second.json()

    @pytest.mark.parametrize("header", [{"User-Agent": "another"}, {"X-Forwarded-For": "203.0.113.9"}])
    async def test_another_client_with_a_spent_token_ends_the_session(
        self, client: httpx.AsyncClient, user: User, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, header: Headers
    ) -> None:
        monkeypatch.setattr(settings, "FORWARDED_ALLOW_IPS", "127.0.0.1")
        headers, token = await pair(client, user)
        new = (await refresh(client, token)).json()
        assert_unauthorized(await refresh(client, token, headers=header))
        assert await fetch("SELECT * FROM session") == []
        assert_unauthorized(await refresh(client, new["refresh_token"]))
        assert not await is_signed_in(client, headers)
        assert not await is_signed_in(client, {"Authorization": f"Bearer {new['access_token']}"})

    async def test_after_the_grace_the_same_client_ends_it_too(
        self, client: httpx.AsyncClient, user: User, postgres: Any
    ) -> None:
        headers, token = await pair(client, user)
        await refresh(client, token)
        await postgres.execute("UPDATE session SET last_used_at = last_used_at - interval '11 seconds'")
        assert_unauthorized(await refresh(client, token))
        assert not await is_signed_in(client, headers)

    async def test_older_token_ends_it_at_once(self, client: httpx.AsyncClient, user: User) -> None:
        headers, token = await pair(client, user)
        second = (await refresh(client, token)).json()["refresh_token"]
        assert (await refresh(client, second)).status_code == 200
        assert_unauthorized(await refresh(client, token))
        assert not await is_signed_in(client, headers)

    async def test_fifty_at_once_give_one_pair(self, client: httpx.AsyncClient, user: User, fetch: Fetch) -> None:
        _, token = await pair(client, user)
        answers = await asyncio.gather(*(refresh(client, token) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        [new] = {answer.text for answer in answers}
        assert len(await fetch("SELECT * FROM session")) == 1
        assert (await refresh(client, answers[0].json()["refresh_token"])).status_code == 200
        assert token not in new

    async def test_fifty_of_two_clients_at_once_leave_no_two_alive(
        self, client: httpx.AsyncClient, user: User, fetch: Fetch
    ) -> None:
        _, token = await pair(client, user)
        agents = [{"User-Agent": f"client {number % 2}"} for number in range(50)]
        answers = await asyncio.gather(*(refresh(client, token, headers=agent) for agent in agents))
        assert {answer.status_code for answer in answers} == {200, 401}
        assert len({answer.text for answer in answers if answer.status_code == 200}) == 1
        assert await fetch("SELECT * FROM session") == []

    async def test_fifty_over_two_workers(self, run_server: RunServer, user: User) -> None:
        server = await run_server(workers=2)
        _, token = await pair(server.client, user)
        answers = await asyncio.gather(*(refresh(server.client, token) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1

    @pytest.mark.parametrize("token", ["", "a", "a" * 75, "g" * 75, "é" * 75, "a" * 200, "0" * 32 + "-" * 43])
    async def test_odd_token(self, client: httpx.AsyncClient, token: str) -> None:
        assert_unauthorized(await refresh(client, token))
        cookie = b"refresh_token=" + token.encode()
        assert_unauthorized(await client.post("/api/v1/refresh", headers={b"Cookie": cookie}))

    async def test_no_token(self, client: httpx.AsyncClient) -> None:
        assert_unauthorized(await client.post("/api/v1/refresh"))

    async def test_access_token_is_no_refresh_token(self, client: httpx.AsyncClient, user: User) -> None:
        headers, _ = await pair(client, user)
        assert_unauthorized(await client.post("/api/v1/refresh", headers=headers))
        response = await refresh(client, headers["Authorization"].removeprefix("Bearer "))
        assert response.status_code == 422

    async def test_malformed_body(self, client: httpx.AsyncClient) -> None:
        bodies: list[Any] = [
            {"refresh_token": 1},
            {"refresh_token": None},
            {"token": "a"},
            [],
            {"refresh_token": "\x00"},
        ]
        for body in bodies:
            assert (await client.post("/api/v1/refresh", json=body)).status_code == 422

    async def test_expired_session(self, client: httpx.AsyncClient, user: User, postgres: Any) -> None:
        headers, token = await pair(client, user)
        await postgres.execute("UPDATE session SET expires_at = now() - interval '1 second'")
        assert_unauthorized(await refresh(client, token))
        assert not await is_signed_in(client, headers)

    async def test_deleted_user(self, client: httpx.AsyncClient, user: User) -> None:
        headers, token = await pair(client, user)
        assert (await client.delete(f"/api/v1/user/{user.username}", headers=headers)).status_code == 200
        assert_unauthorized(await refresh(client, token))

    async def test_guess_ends_only_the_named_session(self, client: httpx.AsyncClient, user: User) -> None:
        """Only a holder of a session's token knows its uuid, so a wrong secret ends the session like a spent token."""
        first, token = await pair(client, user)
        second, _ = await pair(client, user)
        assert_unauthorized(await refresh(client, token[:32] + "A" * 43))
        assert not await is_signed_in(client, first)
        assert await is_signed_in(client, second)


class TestLogout:
    @pytest.mark.parametrize("with_cookie", [True, False])
    async def test_ends_the_session(self, client: httpx.AsyncClient, user: User, with_cookie: bool) -> None:
        headers, token = await pair(client, user)
        if with_cookie:
            response = await client.post("/api/v1/logout", headers={"Cookie": f"refresh_token={token}"})
        else:
            response = await client.post("/api/v1/logout", headers=headers)
        assert (response.status_code, response.content) == (204, b"")
        assert [cookie[0] for cookie in cookies_of(response)] == ['refresh_token=""'] * 2
        assert all("Max-Age=0" in cookie for cookie in cookies_of(response))
        assert not await is_signed_in(client, headers)
        assert_unauthorized(await refresh(client, token))
        again = await client.post("/api/v1/logout", headers=headers)
        assert again.status_code == 204

    async def test_token_in_the_body(self, client: httpx.AsyncClient, user: User) -> None:
        headers, token = await pair(client, user)
        assert (await client.post("/api/v1/logout", json={"refresh_token": token})).status_code == 204
        assert not await is_signed_in(client, headers)

    async def test_other_sessions_go_on(self, client: httpx.AsyncClient, user: User) -> None:
        first, _ = await pair(client, user)
        second, token = await pair(client, user)
        await client.post("/api/v1/logout", headers=first)
        assert await is_signed_in(client, second)
        assert (await refresh(client, token)).status_code == 200

    async def test_dead_at_once_on_every_worker(self, run_server: RunServer, user: User) -> None:
        server = await run_server(workers=2)
        for _ in range(5):
            headers, token = await pair(server.client, user)
            assert (await server.client.post("/api/v1/logout", headers=headers)).status_code == 204
            answers = await asyncio.gather(*(is_signed_in(server.client, headers) for _ in range(10)))
            assert not any(answers)
            assert_unauthorized(await refresh(server.client, token))

    async def test_expired_access_token(self, client: httpx.AsyncClient, user: User) -> None:
        headers, _ = await pair(client, user)
        session = jwt.get_unverified_claims(headers["Authorization"].removeprefix("Bearer "))["sid"]
        expired = TokenSigner(settings).access_token(user.uuid, UUID(session), issued=now() - timedelta(days=1))
        assert not await is_signed_in(client, {"Authorization": f"Bearer {expired}"})
        response = await client.post("/api/v1/logout", headers={"Authorization": f"Bearer {expired}"})
        assert response.status_code == 204
        assert not await is_signed_in(client, headers)

    async def test_nobody_is_signed_in(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("/api/v1/logout")).status_code == 204
        assert (await client.post("/api/v1/logout", headers={"Cookie": "refresh_token=odd"})).status_code == 204

    async def test_forged_access_token(self, client: httpx.AsyncClient, user: User) -> None:
        headers, _ = await pair(client, user)
        forged = {"Authorization": headers["Authorization"][:-4] + "AAAA"}
        assert_unauthorized(await client.post("/api/v1/logout", headers=forged))
        assert await is_signed_in(client, headers)


class TestOwnSessions:
    async def test_list(self, client: httpx.AsyncClient, user: User, superuser: User, headers_for: HeadersFor) -> None:
        await headers_for(superuser)
        await sign_in(client, user, headers={"User-Agent": "first"})
        headers, token = await pair(client, user)
        await refresh(client, token, headers={"User-Agent": "second, later"})
        body = (await client.get("/api/v1/user/me/sessions", headers=headers)).json()
        assert (body["total_count"], body["has_more"], body["page"], body["items_per_page"]) == (2, False, 1, 10)
        first, second = body["data"]
        assert first.keys() == {
            "id", "created_at", "last_used_at", "expires_at", "user_agent", "address", "is_current",
        }  # fmt: skip
        assert (first["user_agent"], first["address"], first["is_current"]) == ("first", "127.0.0.1", False)
        assert (second["user_agent"], second["is_current"]) == ("second, later", True)
        assert is_recent(first["created_at"])
        assert second["last_used_at"] > second["created_at"]

    async def test_pages(self, client: httpx.AsyncClient, user: User) -> None:
        for _ in range(3):
            headers, _ = await pair(client, user)
        params = {"page": 2, "items_per_page": 2}
        body = (await client.get("/api/v1/user/me/sessions", params=params, headers=headers)).json()
        assert (len(body["data"]), body["total_count"], body["has_more"]) == (1, 3, False)

    async def test_page_beyond_the_last(self, client: httpx.AsyncClient, user: User) -> None:
        headers, _ = await pair(client, user)
        body = (await client.get("/api/v1/user/me/sessions", params={"page": 3}, headers=headers)).json()
        assert body == {"data": [], "total_count": 1, "has_more": False, "page": 3, "items_per_page": 10}

    async def test_end_one(self, client: httpx.AsyncClient, user: User) -> None:
        first, _ = await pair(client, user)
        second, _ = await pair(client, user)
        sessions = (await client.get("/api/v1/user/me/sessions", headers=second)).json()["data"]
        path = f"/api/v1/user/me/sessions/{sessions[0]['id']}"
        response = await client.delete(path, headers=second)
        assert (response.status_code, response.json()) == (200, {"message": "Session ended"})
        assert not await is_signed_in(client, first)
        assert await is_signed_in(client, second)
        assert_error(await client.delete(path, headers=second), 404, "Session not found")

    async def test_not_somebody_elses(self, client: httpx.AsyncClient, user: User, fetch: Fetch) -> None:
        await pair(client, user)
        headers, _ = await pair(client, await make_user())
        [row] = await fetch("SELECT id FROM session WHERE user_id = $1", user.id)
        response = await client.delete(f"/api/v1/user/me/sessions/{row['id']}", headers=headers)
        assert_error(response, 404, "Session not found")
        assert len(await fetch("SELECT id FROM session")) == 2

    async def test_end_all_others(self, client: httpx.AsyncClient, user: User) -> None:
        others = [(await pair(client, user))[0] for _ in range(3)]
        somebody, _ = await pair(client, await make_user())
        headers, _ = await pair(client, user)
        response = await client.delete("/api/v1/user/me/sessions", headers=headers)
        assert (response.status_code, response.json()) == (200, {"message": "Other sessions ended: 3"})
        for other in others:
            assert not await is_signed_in(client, other)
        assert await is_signed_in(client, headers)
        assert await is_signed_in(client, somebody)


class TestPurge:
    def test_a_worker_does_it_every_ten_minutes(self) -> None:
        [job] = [job for job in WorkerSettings.cron_jobs if job.name == "cron:purge_expired"]
        assert job.minute == {0, 10, 20, 30, 40, 50}
        assert (job.hour, job.unique) == (None, True)

    async def test_expired_ones_and_those_of_deleted_users_go(
        self, user: User, fetch: Fetch, client: httpx.AsyncClient
    ) -> None:
        headers, _ = await pair(client, deleted := await make_user())
        await client.delete(f"/api/v1/user/{deleted.username}", headers=headers)
        async with transaction() as db:
            active, _ = await crud_sessions.start(db, user.id, CLIENT, timedelta(days=1))
            await crud_sessions.start(db, user.id, CLIENT, timedelta(seconds=-1))
        await make_password_reset(user, "late", seconds=-1)
        await purge_expired({"transaction": transaction})
        assert await fetch("SELECT * FROM password_reset") == []
        assert [row["id"] for row in await fetch("SELECT id FROM session")] == [active.id]

    async def test_all_of_them_go_in_parts(self, user: User, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
        """The purge is complete even if some expired sessions belong to deleted users."""
        monkeypatch.setattr("app.worker.PURGE_BATCH", 4)
        async with transaction() as db:
            for days in (-2, -1, 1, 1, 1, 1, 1):
                await crud_sessions.start(db, user.id, CLIENT, timedelta(days=days))
        await fetch('UPDATE "user" SET is_deleted = true')
        await purge_expired({"transaction": transaction})
        assert await fetch("SELECT * FROM session") == []

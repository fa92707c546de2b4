"""Concurrent requests that compete for the same rows."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable

import httpx
import pytest

from app.models.user import User
from tests.factories import make_post, make_superuser, make_tier, make_user
from tests.fixtures import Fetch, HeadersFor, RunServer
from tests.integration.own_app import send

API = "/api/v1"


async def statuses(*requests: Awaitable[httpx.Response]) -> Counter[int]:
    return Counter(response.status_code for response in await asyncio.gather(*requests))


class TestTwoWorkers:
    async def test_one_of_a_hundred_sign_ups_gets_the_name_and_the_address(
        self, run_server: RunServer, fetch: Fetch
    ) -> None:
        server = await run_server(workers=2, environment={"SIGN_UP_LIMIT": "1000"})

        async def sign_up(username: str, email: str) -> tuple[int, bytes]:
            body = {"name": "Some User", "username": username, "email": email, "password": "Str1ng$t"}
            status, _, content = await send(server.port, "POST", f"{API}/user", body=json.dumps(body))
            return status, content

        for people, column in (
            ([("wanted", "wanted@example.com")] * 100, None),
            ([("famous", f"other{number}@example.com") for number in range(100)], "username"),
            ([(f"other{number}", "One@Example.com") for number in range(100)], "email"),
        ):
            answers = await asyncio.gather(*(sign_up(*person) for person in people))
            assert Counter(status for status, _ in answers) == {201: 1, 409: 99}
            details = {json.loads(content)["detail"] for status, content in answers if status == 409}
            assert details <= {"Username already taken", "Email already taken"}
            assert column is None or details == {f"{column.capitalize()} already taken"}
        rows = await fetch('SELECT username, email FROM "user" ORDER BY id')
        assert [row["username"] for row in rows[:2]] == ["wanted", "famous"]
        assert [row["email"] for row in rows[::2]] == ["wanted@example.com", "one@example.com"]

    async def test_somebody_stays_superuser(self, run_server: RunServer, headers_for: HeadersFor, fetch: Fetch) -> None:
        """Two superusers delete themselves, or each other, by either route."""
        server = await run_server(workers=2)
        for number in range(12):
            pair = [await make_superuser(username=f"super{number}{letter}") for letter in "ab"]
            headers = [await headers_for(superuser) for superuser in pair]
            targets = pair[::-1] if number % 2 else pair
            route = "db_user" if number % 4 > 1 else "user"
            answers = await asyncio.gather(
                *(
                    send(server.port, "DELETE", f"{API}/{route}/{target.username}", [f"Authorization: {header}"])
                    for target, header in zip(targets, (h["Authorization"] for h in headers), strict=True)
                )
            )
            codes = sorted(status for status, _, _ in answers)
            # A caller that was deleted first gets a 401.
            assert codes in ([200, 409], [200, 401]), codes
            left = await fetch('SELECT username FROM "user" WHERE is_superuser AND NOT is_deleted')
            assert len(left) == 1
            await fetch('DELETE FROM "user"')


class TestOneProcess:
    async def test_two_users_take_one_name(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, fetch: Fetch
    ) -> None:
        users = [await make_user() for _ in range(10)]
        headers = [await headers_for(user) for user in users]
        counts = await statuses(
            *(
                client.patch(f"{API}/user/{user.username}", json={"username": "wanted"}, headers=header)
                for user, header in zip(users, headers, strict=True)
            )
        )
        assert counts == {200: 1, 409: 9}
        assert len(await fetch("""SELECT id FROM "user" WHERE username = 'wanted'""")) == 1

    async def test_one_limit_for_a_tier_and_a_path(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        tier = await make_tier()
        counts = await statuses(
            *(
                client.post(
                    f"{API}/tier/{tier.name}/rate_limit",
                    json={"name": f"limit{number}", "path": "api/v1/tasks/task", "limit": number, "period": 60},
                    headers=superuser_headers,
                )
                for number in range(20)
            )
        )
        assert counts == {201: 1, 409: 19}
        assert len(await fetch("SELECT id FROM rate_limit")) == 1

    async def test_one_tier_of_a_name(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        counts = await statuses(
            *(client.post(f"{API}/tier", json={"name": "gold"}, headers=superuser_headers) for _ in range(20))
        )
        assert counts == {201: 1, 409: 19}

    async def test_post_is_deleted_once(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        post = await make_post(user)
        path = f"{API}/{user.username}/post/{post.id}"
        counts = await statuses(*(client.delete(path, headers=user_headers) for _ in range(20)))
        assert counts == {200: 1, 404: 19}

    @pytest.mark.parametrize("route", ["user", "db_user"])
    async def test_posts_of_a_user_who_is_deleted_meanwhile(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        superuser_headers: dict[str, str],
        fetch: Fetch,
        route: str,
    ) -> None:
        body = {"title": "A title", "text": "text"}
        path = f"{API}/{user.username}/post"
        *posts, deleted = await asyncio.gather(
            *(client.post(path, json=body, headers=user_headers) for _ in range(20)),
            client.delete(f"{API}/{route}/{user.username}", headers=superuser_headers),
        )
        assert deleted.status_code == 200
        assert {post.status_code for post in posts} <= {201, 401, 404}
        assert (await client.get(f"{API}/{user.username}/posts")).status_code == 404
        if route == "db_user":
            assert await fetch("SELECT id FROM post") == []

    async def test_tier_that_is_deleted_while_a_user_gets_it(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        for _ in range(10):
            tier = await make_tier()
            put, deleted = await asyncio.gather(
                client.patch(f"{API}/user/{user.username}/tier", json={"tier_id": tier.id}, headers=superuser_headers),
                client.delete(f"{API}/tier/{tier.name}", headers=superuser_headers),
            )
            assert (put.status_code, deleted.status_code) in {(200, 409), (404, 200)}
            (row,) = await fetch('SELECT tier_id FROM "user" WHERE id = $1', user.id)
            assert (row["tier_id"] == tier.id) is (put.status_code == 200)

"""Concurrent requests that compete for the same rows."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable

import httpx
import pytest
from fastapi import FastAPI

from app.models.user import User
from tests.factories import make_superuser, make_user
from tests.fixtures import Fetch, HeadersFor, RunServer
from tests.integration.own_app import send
from tests.specimen.factories import make_drawer, make_moth
from tests.specimen.main import SPECIMEN

pytestmark = pytest.mark.drill

API = "/api/v1"


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


async def statuses(*requests: Awaitable[httpx.Response]) -> Counter[int]:
    return Counter(response.status_code for response in await asyncio.gather(*requests))


class TestTwoWorkers:
    async def test_one_of_a_hundred_sign_ups_gets_the_name_and_the_address(
        self, run_server: RunServer, fetch: Fetch
    ) -> None:
        server = await run_server(app=SPECIMEN, workers=2, environment={"SIGN_UP_LIMIT": "1000"})

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
        server = await run_server(app=SPECIMEN, workers=2)
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

    async def test_one_limit_for_a_drawer_and_a_path(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        drawer = await make_drawer()
        counts = await statuses(
            *(
                client.post(
                    f"{API}/drawer/{drawer.name}/slip",
                    json={"name": f"limit{number}", "path": "some_path", "limit": number, "period": 60},
                    headers=superuser_headers,
                )
                for number in range(20)
            )
        )
        assert counts == {201: 1, 409: 19}
        assert len(await fetch("SELECT id FROM slip")) == 1

    async def test_one_drawer_of_a_name(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        counts = await statuses(
            *(client.post(f"{API}/drawer", json={"name": "gold"}, headers=superuser_headers) for _ in range(20))
        )
        assert counts == {201: 1, 409: 19}

    async def test_moth_is_deleted_once(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        moth = await make_moth(user)
        path = f"{API}/{user.username}/moth/{moth.id}"
        counts = await statuses(*(client.delete(path, headers=user_headers) for _ in range(20)))
        assert counts == {200: 1, 404: 19}

    @pytest.mark.parametrize("route", ["user", "db_user"])
    async def test_moths_of_a_user_who_is_deleted_meanwhile(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        superuser_headers: dict[str, str],
        fetch: Fetch,
        route: str,
    ) -> None:
        body = {"title": "A title", "text": "text"}
        path = f"{API}/{user.username}/moth"
        *moths, deleted = await asyncio.gather(
            *(client.post(path, json=body, headers=user_headers) for _ in range(20)),
            client.delete(f"{API}/{route}/{user.username}", headers=superuser_headers),
        )
        assert deleted.status_code == 200
        assert {moth.status_code for moth in moths} <= {201, 401, 404}
        assert (await client.get(f"{API}/{user.username}/moths")).status_code == 404
        if route == "db_user":
            assert await fetch("SELECT id FROM moth") == []

"""Writes that commit during a request, after one of its statements.

The answer must have been right at some moment of the request. The rows must be as after a serial execution. An endpoint
with two statements must not combine different states of the database. Authentication is an exception: the token decides
at the beginning of the request who the caller is and what they may do. `test_names.py` and `test_races.py` also test
writes that wait for a lock until the request has committed.
"""

from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.models.user import User
from tests.factories import PASSWORD, make_superuser, make_user
from tests.fixtures import Fetch, HeadersFor
from tests.helper import assert_error, sign_in
from tests.in_between import in_turn
from tests.specimen.factories import make_drawer, make_moth, make_slip
from tests.specimen.models import Drawer

API = "/api/v1"
NO_DRAWER = "Drawer not found"
Headers = dict[str, str]


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


@pytest.fixture
async def alice() -> User:
    return await make_user(username="alice")


@pytest.fixture
async def heir() -> User:
    return await make_user(username="heir")


@pytest.fixture
async def drawer() -> Drawer:
    return await make_drawer("free")


RENAME_ALICE = """UPDATE "user" SET username = 'bobby' WHERE username = 'alice'"""
RENAME_HEIR = """UPDATE "user" SET username = 'alice' WHERE username = 'heir'"""
DELETE_ALICE = """UPDATE "user" SET is_deleted = true, deleted_at = now() WHERE username = 'alice'"""
RENAME_DRAWER = "UPDATE drawer SET name = 'old' WHERE name = 'free'"
RENAME_NEXT_DRAWER = "UPDATE drawer SET name = 'free' WHERE name = 'next'"
DELETE_DRAWER = "DELETE FROM drawer WHERE name = 'free'"
CHANGE_LIMIT = 'UPDATE slip SET "limit" = 99'


@pytest.mark.parametrize("statement", [1, 2])
class TestReads:
    """The answer equals the endpoint's answer before the writes, between two of them, or after the last one."""

    @pytest.mark.parametrize("query", ["", "?page=2&items_per_page=1", "?page=9"])
    async def test_moths_under_a_name_that_their_author_takes(self, check_read: Any, alice: User, query: str) -> None:
        for _ in range(3):
            await make_moth(alice)
        await check_read(f"bobby/moths{query}", RENAME_ALICE)

    async def test_moths_under_a_name_that_changes_hands(self, check_read: Any, alice: User, heir: User) -> None:
        await make_moth(heir)
        await check_read("alice/moths", RENAME_ALICE, RENAME_HEIR)

    async def test_moths_of_an_author_who_is_deleted(self, check_read: Any, alice: User) -> None:
        await make_moth(alice)
        await check_read("alice/moths", DELETE_ALICE)

    async def test_page_after_a_cursor(
        self, check_read: Any, client: httpx.AsyncClient, alice: User, heir: User
    ) -> None:
        for author in (alice, heir, alice, heir):
            await make_moth(author)
        cursor = (await client.get(f"{API}/alice/moths?items_per_page=1")).json()["next_cursor"]
        await check_read(f"alice/moths?cursor={cursor}", RENAME_ALICE, RENAME_HEIR)

    async def test_moth_under_a_name_that_its_author_takes(self, check_read: Any, alice: User) -> None:
        moth = await make_moth(alice)
        await check_read(f"bobby/moth/{moth.id}", RENAME_ALICE)

    async def test_moth_that_is_not_there(self, check_read: Any, alice: User) -> None:
        await check_read("alice/moth/99", RENAME_ALICE)

    async def test_user_by_the_former_owner_of_the_name(
        self, check_read: Any, headers_for: HeadersFor, alice: User, heir: User
    ) -> None:
        await check_read("user/alice", RENAME_ALICE, RENAME_HEIR, headers=await headers_for(alice))

    async def test_user_by_the_next_owner_of_the_name(
        self, check_read: Any, headers_for: HeadersFor, alice: User, heir: User
    ) -> None:
        await check_read("user/alice", RENAME_ALICE, RENAME_HEIR, headers=await headers_for(heir))

    @pytest.mark.parametrize("path", ["slips", "slips?page=2&items_per_page=1", "slip/1"])
    @pytest.mark.parametrize(
        "writes", [(DELETE_DRAWER,), (RENAME_DRAWER, CHANGE_LIMIT), (RENAME_DRAWER, RENAME_NEXT_DRAWER)]
    )
    async def test_slips_of_a_drawer(
        self, check_read: Any, superuser_headers: Headers, drawer: Drawer, path: str, writes: Sequence[str]
    ) -> None:
        for each in (drawer, await make_drawer("next")):
            await make_slip(each)
        await check_read(f"drawer/free/{path}", *writes, headers=superuser_headers)

    @pytest.mark.parametrize("path", ["user/me", "user/me/sessions"])
    async def test_own_account(self, check_read: Any, headers_for: HeadersFor, alice: User, path: str) -> None:
        headers = await headers_for(alice)
        await headers_for(alice)
        await check_read(path, RENAME_ALICE, "DELETE FROM session WHERE id = 2", headers=headers)

    @pytest.mark.parametrize("path", ["users", "drawers", "drawer/free"])
    async def test_others(
        self, check_read: Any, superuser_headers: Headers, alice: User, drawer: Drawer, path: str
    ) -> None:
        await check_read(path, DELETE_ALICE, RENAME_DRAWER, headers=superuser_headers)


@pytest.mark.parametrize("statement", [1, 2, 3])
class TestWrites:
    """The request writes the same rows as if it had run before the writes in between, or after them."""

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "user/alice", {"name": "New Name"}),
            ("DELETE", "user/alice", None),
            ("POST", "alice/moth", {"title": "New", "text": "x"}),
        ],
    )
    async def test_under_a_name_that_the_caller_takes(
        self, client: httpx.AsyncClient, meanwhile: Any, heir: User, method: str, path: str, body: Any
    ) -> None:
        """The name is unknown before the rename and the caller's after it, so no answer may be a 403."""
        headers = await sign_in(client, heir)
        response = await meanwhile(client.request(method, f"{API}/{path}", json=body, headers=headers), RENAME_HEIR)
        assert response.status_code in {200, 201, 404}, response.text

    @pytest.mark.parametrize("who", ["owner", "superuser"])
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "user/alice", {"name": "New Name"}),
            ("PATCH", "user/alice", {"email": "new@example.com", "current_password": PASSWORD}),
            ("DELETE", "user/alice", None),
            ("DELETE", "user/alice", {"current_password": PASSWORD}),
            ("DELETE", "db_user/alice", None),
            ("POST", "alice/moth", {"title": "New", "text": "x"}),
            ("PATCH", "alice/moth/1", {"title": "New"}),
            ("DELETE", "alice/moth/1", None),
            ("DELETE", "alice/db_moth/1", None),
        ],
    )
    async def test_under_a_name_that_changes_hands(
        self,
        client: httpx.AsyncClient,
        meanwhile: Any,
        fetch: Fetch,
        alice: User,
        heir: User,
        drawer: Drawer,
        who: str,
        method: str,
        path: str,
        body: Any,
    ) -> None:
        """The request changes rows of the former owner, of the next owner if the caller may, or none."""
        await make_moth(alice)
        superuser = await make_superuser(username="super", password=PASSWORD)

        async def rows(user: User) -> list[dict[str, Any]]:
            return await fetch(
                'SELECT name, email, "user".is_deleted, title, moth.is_deleted AS is_moth_deleted '
                'FROM "user" LEFT JOIN moth ON created_by_user_id = "user".id WHERE "user".id = $1',
                user.id,
            )

        before = [await rows(alice), await rows(heir)]
        headers = await sign_in(client, alice if who == "owner" else superuser)
        request = client.request(method, f"{API}/{path}", json=body, headers=headers)
        response = await meanwhile(request, RENAME_ALICE, RENAME_HEIR)
        is_changed = [now != then for now, then in zip([await rows(alice), await rows(heir)], before, strict=True)]
        assert response.status_code in {200, 201, 403, 404}, response.text
        assert is_changed.count(True) == (response.status_code < 400)
        assert not (is_changed[1] and who == "owner")

    async def test_limit_for_a_drawer_that_is_deleted(
        self, client: httpx.AsyncClient, meanwhile: Any, superuser_headers: Headers, drawer: Drawer
    ) -> None:
        body = {"name": "limit", "path": "some_path", "limit": 5, "period": 60}
        request = client.post(f"{API}/drawer/free/slip", json=body, headers=superuser_headers)
        response = await meanwhile(request, DELETE_DRAWER)
        if response.status_code != 201:
            assert_error(response, 404, NO_DRAWER)

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_limit_of_a_drawer_that_is_renamed(self, check_limit: Any, drawer: Drawer, method: str) -> None:
        """The write in between uses the drawer's new name, so no change under the old name may come after it."""
        await make_slip(drawer)
        await check_limit(method, "drawer/free/slip/1", "slip", RENAME_DRAWER, CHANGE_LIMIT)

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_drawer_whose_name_changes_hands(self, check_name: Any, drawer: Drawer, method: str) -> None:
        await make_drawer("next")
        await check_name(method, "drawer")

    async def test_password_that_is_changed_after_it_confirmed_a_request(
        self, client: httpx.AsyncClient, meanwhile: Any, alice: User, fetch: Fetch
    ) -> None:
        """Both writes change different columns, as if the confirmed request had come first."""
        headers = await sign_in(client, alice)
        body = {"email": "new@example.com", "current_password": PASSWORD}
        request = client.patch(f"{API}/user/alice", json=body, headers=headers)
        response = await meanwhile(request, "UPDATE \"user\" SET hashed_password = '!'")
        [row] = await fetch('SELECT email, hashed_password FROM "user"')
        assert row["hashed_password"] == "!"
        assert (response.status_code, row["email"]) in {(200, body["email"]), (403, alice.email)}

    @pytest.mark.parametrize("write", [DELETE_ALICE, RENAME_ALICE, 'DELETE FROM "user"'])
    async def test_sign_in_of_a_user_who_changes(
        self, client: httpx.AsyncClient, meanwhile: Any, alice: User, fetch: Fetch, write: str, statement: int
    ) -> None:
        """A sign-in never starts a session for a deleted user."""
        form = {"username": "alice", "password": PASSWORD}
        response = await meanwhile(client.post(f"{API}/login", data=form), write)
        is_gone = write != RENAME_ALICE and statement == 1
        assert response.status_code == (401 if is_gone else 200)
        query = 'SELECT 1 FROM session JOIN "user" ON "user".id = user_id AND NOT is_deleted'
        assert bool(await fetch(query)) is (write == RENAME_ALICE)


async def test_drawer_keeps_its_name_until_its_limit_is_written(
    client: httpx.AsyncClient, superuser_headers: Headers, drawer: Drawer, fetch: Fetch
) -> None:
    await make_slip(drawer)
    change = client.patch(f"{API}/drawer/free/slip/1", json={"limit": 7}, headers=superuser_headers)
    rename = client.patch(f"{API}/drawer/free", json={"name": "pro"}, headers=superuser_headers)
    async with in_turn(fetch, text("UPDATE slip SET period = 9"), change, rename) as answers:
        assert (await client.get(f"{API}/drawer/free", headers=superuser_headers)).status_code == 200
    assert [answer.result().status_code for answer in answers] == [200, 200]
    assert answers[0].result().json()["limit"] == 7

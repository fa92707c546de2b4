"""Writes under a username whose owner changes: the write and the cache invalidation use the same name."""

from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text, update

from app.core.database import transaction
from app.crud.crud_users import crud_users
from app.models.user import User
from app.schemas.user import UserCreateInternal
from tests.factories import make_superuser, make_user
from tests.fixtures import Fetch, HeadersFor
from tests.helper import assert_error, running
from tests.in_between import in_turn, wait_for_locks
from tests.specimen.crud import crud_moths
from tests.specimen.factories import make_moth
from tests.specimen.models import Moth
from tests.specimen.schemas import MothCreate

API = "/api/v1"
USER_ANN = """SELECT * FROM "user" WHERE username = 'ann'"""
MOTHS_OF = "SELECT * FROM moth WHERE created_by_user_id = :id"


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


@pytest.fixture
async def alice() -> User:
    return await make_user(username="alice")


async def run_behind_rename(user: User, name: str, request: Awaitable[httpx.Response], fetch: Fetch) -> httpx.Response:
    """Run a request that starts before an uncommitted rename of the user commits, and must wait for it."""
    async with in_turn(fetch, update(User).where(User.id == user.id).values(username=name), request) as [answer]:
        pass
    return answer.result()


class TestWriteUnderAFormerName:
    """A request is authorized under the old name; the user is renamed before it writes."""

    async def test_moth_is_not_written(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, alice: User, fetch: Fetch
    ) -> None:
        request = client.post(f"{API}/alice/moth", json={"title": "New", "text": "x"}, headers=await headers_for(alice))
        assert_error(await run_behind_rename(alice, "bobby", request, fetch), 404, "User not found")
        assert await fetch("SELECT id FROM moth") == []

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_moth_is_not_changed(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, alice: User, fetch: Fetch, method: str
    ) -> None:
        moth = await make_moth(alice, title="Old")
        body = {"title": "New"} if method == "PATCH" else None
        request = client.request(method, f"{API}/alice/moth/{moth.id}", json=body, headers=await headers_for(alice))
        assert_error(await run_behind_rename(alice, "bobby", request, fetch), 404, "Moth not found")
        assert (await client.get(f"{API}/bobby/moth/{moth.id}")).json()["title"] == "Old"

    @pytest.mark.parametrize("path", ["user", "db_user"])
    async def test_user_is_not_deleted(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], alice: User, fetch: Fetch, path: str
    ) -> None:
        request = client.delete(f"{API}/{path}/alice", headers=superuser_headers)
        assert_error(await run_behind_rename(alice, "bobby", request, fetch), 404, "User not found")
        assert (await client.get(f"{API}/user/bobby")).status_code == 200

    async def test_user_is_not_changed(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], alice: User, fetch: Fetch
    ) -> None:
        request = client.patch(f"{API}/user/alice", json={"name": "Changed"}, headers=superuser_headers)
        assert_error(await run_behind_rename(alice, "bobby", request, fetch), 404, "User not found")
        assert (await client.get(f"{API}/user/bobby")).json()["name"] == alice.name


class TestRenameDuringAWrite:
    async def test_rename_waits_until_the_moth_is_written(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, alice: User, fetch: Fetch
    ) -> None:
        """Otherwise a read could store the old text under the new name before the write replaces it."""
        moth = await make_moth(alice, title="Old")
        headers = await headers_for(alice)

        patch = client.patch(f"{API}/alice/moth/{moth.id}", json={"title": "New"}, headers=headers)
        rename = client.patch(f"{API}/user/alice", json={"username": "bobby"}, headers=headers)
        # lock the moth, so that the PATCH gets as far as its UPDATE
        async with in_turn(fetch, select(Moth.id).with_for_update(), patch, rename) as answers:
            assert (await client.get(f"{API}/bobby/moth/{moth.id}")).status_code == 404
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert (await client.get(f"{API}/bobby/moth/{moth.id}")).json()["title"] == "New"
        assert (await client.get(f"{API}/alice/moth/{moth.id}")).status_code == 404


class TestNameOfAnother:
    async def test_former_owner_does_not_write_into_the_row_of_the_next(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, alice: User
    ) -> None:
        headers = await headers_for(alice)
        assert (await client.patch(f"{API}/user/alice", json={"username": "bobby"}, headers=headers)).status_code == 200
        heir = await make_user(username="alice", email="heir@example.com")
        await make_superuser()
        for request in (
            client.patch(f"{API}/user/alice", json={"name": "Changed"}, headers=headers),
            client.delete(f"{API}/user/alice", headers=headers),
            client.post(f"{API}/alice/moth", json={"title": "New", "text": "x"}, headers=headers),
        ):
            assert (await request).status_code == 403
        assert (await client.get(f"{API}/user/alice")).json()["id"] == heir.id


class TestRenameMeanwhile:
    """While a request waits, its user is renamed and another user takes the old name. The other must not change."""

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "/user/ann", {"name": "New Name"}),
            ("DELETE", "/user/ann", None),
            ("DELETE", "/db_user/ann", None),
            ("DELETE", "/ann/db_moth/1", None),
        ],
    )
    async def test_of_a_superusers_request(
        self,
        client: httpx.AsyncClient,
        superuser_headers: dict[str, str],
        fetch: Fetch,
        method: str,
        path: str,
        body: Any,
    ) -> None:
        ann = await make_user(username="ann", email="ann@example.com")
        await make_moth(ann)
        request = client.request(method, f"/api/v1{path}", json=body, headers=superuser_headers)
        response, before, moths = await self._rename_while(request, fetch)
        assert response.status_code in {200, 404}, response.text
        assert await fetch(USER_ANN) == before
        assert await fetch(MOTHS_OF.replace(":id", "$1"), before[0]["id"]) == moths

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "/user/ann", {"name": "New Name"}),
            ("DELETE", "/user/ann", None),
            ("POST", "/ann/moth", {"title": "Mine", "text": "Not yours."}),
        ],
    )
    async def test_of_ones_own_request(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, fetch: Fetch, method: str, path: str, body: Any
    ) -> None:
        headers = await headers_for(await make_user(username="ann", email="ann@example.com"))
        request = client.request(method, f"/api/v1{path}", json=body, headers=headers)
        response, before, moths = await self._rename_while(request, fetch)
        assert response.status_code in {200, 201, 404}, response.text
        assert await fetch(USER_ANN) == before
        assert await fetch(MOTHS_OF.replace(":id", "$1"), before[0]["id"]) == moths

    async def _rename_while(
        self, request: Coroutine[Any, Any, httpx.Response], fetch: Fetch
    ) -> tuple[httpx.Response, list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the answer to the request, and the new owner's row and moths from before the answer."""
        async with AsyncExitStack() as stack, transaction() as db:
            await crud_users.update(db, {"username": "annother"}, username="ann")
            next_ann = UserCreateInternal(
                name="Next Ann", username="ann", email="next@example.com", hashed_password="x"
            )
            row = await crud_users.create(db, next_ann)
            await crud_moths.create(db, MothCreate(title="Next", text="Next."), created_by_user_id=row.id)
            before = [dict(found) for found in (await db.execute(text(USER_ANN))).mappings()]
            moths = [dict(found) for found in (await db.execute(text(MOTHS_OF), {"id": row.id})).mappings()]
            (answer,) = await stack.enter_async_context(running(request))

            await wait_for_locks(fetch)
        return answer.result(), before, moths

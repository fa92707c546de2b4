"""Writes under a username whose owner changes: the write and the cache invalidation use the same name."""

from collections.abc import Awaitable
from contextlib import AsyncExitStack

import httpx
import pytest
from sqlalchemy import select

from app.core.database import transaction
from app.crud.crud_users import crud_users
from app.models.post import Post
from app.models.user import User
from tests.factories import make_post, make_superuser, make_user
from tests.fixtures import Fetch, HeadersFor
from tests.helper import assert_error, running, wait_until

API = "/api/v1"
WAITING = (
    "SELECT count(*) AS waiting FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture
async def alice() -> User:
    return await make_user(username="alice")


async def run_behind_rename(user: User, name: str, request: Awaitable[httpx.Response], fetch: Fetch) -> httpx.Response:
    """Run a request that starts before an uncommitted rename of the user commits, and must wait for it."""

    async def is_waiting() -> bool:
        return bool((await fetch(WAITING))[0]["waiting"] == 1)

    async with AsyncExitStack() as stack, transaction() as db:
        await crud_users.update(db, {"username": name}, id=user.id)
        (answer,) = await stack.enter_async_context(running(request))
        await wait_until(is_waiting)
    return answer.result()


class TestWriteUnderAFormerName:
    """A request is authorized under the old name; the user is renamed before it writes."""

    async def test_post_is_not_written(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, alice: User, fetch: Fetch
    ) -> None:
        request = client.post(f"{API}/alice/post", json={"title": "New", "text": "x"}, headers=await headers_for(alice))
        assert_error(await run_behind_rename(alice, "bobby", request, fetch), 404, "User not found")
        assert await fetch("SELECT id FROM post") == []

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_post_is_not_changed(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, alice: User, fetch: Fetch, method: str
    ) -> None:
        post = await make_post(alice, title="Old")
        body = {"title": "New"} if method == "PATCH" else None
        request = client.request(method, f"{API}/alice/post/{post.id}", json=body, headers=await headers_for(alice))
        assert_error(await run_behind_rename(alice, "bobby", request, fetch), 404, "Post not found")
        assert (await client.get(f"{API}/bobby/post/{post.id}")).json()["title"] == "Old"

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
    async def test_rename_waits_until_the_post_is_written(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, alice: User, fetch: Fetch
    ) -> None:
        """Otherwise a read could store the old text under the new name before the write replaces it."""
        post = await make_post(alice, title="Old")
        headers = await headers_for(alice)

        async def are_waiting(number: int) -> bool:
            return bool((await fetch(WAITING))[0]["waiting"] == number)

        # lock the post, so that the PATCH gets as far as its UPDATE
        async with AsyncExitStack() as stack, transaction() as db:
            await db.execute(select(Post.id).where(Post.id == post.id).with_for_update())
            patch = running(client.patch(f"{API}/alice/post/{post.id}", json={"title": "New"}, headers=headers))
            (patched,) = await stack.enter_async_context(patch)
            await wait_until(lambda: are_waiting(1))
            rename = running(client.patch(f"{API}/user/alice", json={"username": "bobby"}, headers=headers))
            (renamed,) = await stack.enter_async_context(rename)
            await wait_until(lambda: are_waiting(2))
            assert (await client.get(f"{API}/bobby/post/{post.id}")).status_code == 404
        assert [patched.result().status_code, renamed.result().status_code] == [200, 200]
        assert (await client.get(f"{API}/bobby/post/{post.id}")).json()["title"] == "New"
        assert (await client.get(f"{API}/alice/post/{post.id}")).status_code == 404


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
            client.post(f"{API}/alice/post", json={"title": "New", "text": "x"}, headers=headers),
        ):
            assert (await request).status_code == 403
        assert (await client.get(f"{API}/user/alice")).json()["id"] == heir.id

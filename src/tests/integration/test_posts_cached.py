"""Every route that changes a post or a user invalidates the stored answers that contain it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import pytest

from app.core.cache import CacheStore
from app.models.post import Post
from app.models.user import User
from tests.factories import make_post, make_user
from tests.fixtures import HeadersFor, RedisRoles
from tests.helper import running

API = "/api/v1"


@dataclass
class Blog:
    """A user with a post, and another user's blog; the cache holds answers for both."""

    client: httpx.AsyncClient
    redis: RedisRoles
    user: User
    post: Post
    other: User
    headers: dict[str, str]
    admin: dict[str, str]

    @property
    def name(self) -> str:
        return self.user.username

    @property
    def stored(self) -> set[str]:
        """The keys of the user's stored answers."""
        return {f"{self.name}_post_cache:{self.post.id}", *self.lists}

    @property
    def lists(self) -> set[str]:
        pages = ("page_1:items_per_page:10", "page_1:items_per_page:1", "page_2:items_per_page:1")
        return {f"{self.name}_posts:{page}:{self.name}" for page in pages}

    async def keys(self) -> set[str]:
        keys = {key.decode() for key in await self.redis.cache.keys()}
        return {key for key in keys if not key.startswith("@cache:")}

    async def read_all(self, name: str) -> list[httpx.Response]:
        paths = ("posts", "posts?items_per_page=1", "posts?items_per_page=1&page=2", f"post/{self.post.id}")
        return [await self.client.get(f"{API}/{name}/{path}") for path in paths]

    async def titles(self) -> list[str]:
        response = await self.client.get(f"{API}/{self.name}/posts")
        return [post["title"] for post in response.json()["data"]]

    async def title(self) -> str | int:
        response = await self.client.get(f"{API}/{self.name}/post/{self.post.id}")
        return str(response.json()["title"]) if response.status_code == 200 else response.status_code


@pytest.fixture
async def blog(
    client: httpx.AsyncClient,
    redis: RedisRoles,
    headers_for: HeadersFor,
    user: User,
    superuser_headers: dict[str, str],
) -> Blog:
    other = await make_user()
    post = await make_post(user, title="before")
    await make_post(other, title="not mine")
    blog = Blog(client, redis, user, post, other, await headers_for(user), superuser_headers)
    responses = await blog.read_all(blog.name)
    assert [response.status_code for response in responses] == [200] * 4
    assert (await client.get(f"{API}/{other.username}/posts")).status_code == 200
    assert await blog.keys() == blog.stored | {others_list(blog)}
    return blog


def others_list(blog: Blog) -> str:
    return f"{blog.other.username}_posts:page_1:items_per_page:10:{blog.other.username}"


async def test_lists_are_kept_for_a_minute_and_posts_for_an_hour(blog: Blog) -> None:
    assert all([50 < await blog.redis.cache.ttl(key) <= 60 for key in blog.lists])
    assert 3590 < await blog.redis.cache.ttl(f"{blog.name}_post_cache:{blog.post.id}") <= 3600


class TestPosts:
    async def test_create(self, blog: Blog) -> None:
        body = {"title": "new", "text": "text"}
        response = await blog.client.post(f"{API}/{blog.name}/post", json=body, headers=blog.headers)
        assert response.status_code == 201
        assert await blog.keys() == {f"{blog.name}_post_cache:{blog.post.id}", others_list(blog)}
        assert await blog.titles() == ["before", "new"]

    async def test_patch(self, blog: Blog) -> None:
        path = f"{API}/{blog.name}/post/{blog.post.id}"
        response = await blog.client.patch(path, json={"title": "after"}, headers=blog.headers)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert (await blog.title(), await blog.titles()) == ("after", ["after"])

    async def test_delete(self, blog: Blog) -> None:
        response = await blog.client.delete(f"{API}/{blog.name}/post/{blog.post.id}", headers=blog.headers)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert (await blog.title(), await blog.titles()) == (404, [])

    async def test_db_delete(self, blog: Blog) -> None:
        response = await blog.client.delete(f"{API}/{blog.name}/db_post/{blog.post.id}", headers=blog.admin)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert (await blog.title(), await blog.titles()) == (404, [])

    @pytest.mark.parametrize("status", [401, 403, 404, 422])
    async def test_write_that_is_refused_ends_nothing(self, blog: Blog, headers_for: HeadersFor, status: int) -> None:
        headers = await headers_for(blog.other) if status == 403 else blog.headers if status != 401 else {}
        post_id = 1000 if status == 404 else blog.post.id
        body = {"title": None} if status == 422 else {"title": "after"}
        response = await blog.client.patch(f"{API}/{blog.name}/post/{post_id}", json=body, headers=headers)
        assert response.status_code == status
        assert await blog.keys() == blog.stored | {others_list(blog)}

    async def test_post_of_a_name_that_begins_alike(self, blog: Blog) -> None:
        longer = await make_user(username=f"{blog.name}0")
        await make_post(longer)
        await blog.client.get(f"{API}/{longer.username}/posts")
        body = {"title": "new", "text": "text"}
        await blog.client.post(f"{API}/{blog.name}/post", json=body, headers=blog.headers)
        assert f"{longer.username}_posts:page_1:items_per_page:10:{longer.username}" in await blog.keys()


class TestUsers:
    @pytest.mark.parametrize("who", ["self", "superuser"])
    async def test_rename(self, blog: Blog, headers_for: HeadersFor, who: str) -> None:
        headers = blog.admin if who == "superuser" else blog.headers
        response = await blog.client.patch(f"{API}/user/{blog.name}", json={"username": "renamed"}, headers=headers)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert [response.status_code for response in await blog.read_all(blog.name)] == [404] * 4
        assert [response.status_code for response in await blog.read_all("renamed")] == [200] * 4

    async def test_name_that_somebody_else_takes(self, blog: Blog, headers_for: HeadersFor) -> None:
        path = f"{API}/user/{blog.name}"
        await blog.client.patch(path, json={"username": "renamed"}, headers=blog.headers)
        path = f"{API}/user/{blog.other.username}"
        headers = await headers_for(blog.other)
        response = await blog.client.patch(path, json={"username": blog.name}, headers=headers)
        assert response.status_code == 200
        assert (await blog.title(), await blog.titles()) == (404, ["not mine"])

    async def test_delete(self, blog: Blog) -> None:
        response = await blog.client.delete(f"{API}/user/{blog.name}", headers=blog.headers)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert [response.status_code for response in await blog.read_all(blog.name)] == [404] * 4

    async def test_db_delete(self, blog: Blog) -> None:
        response = await blog.client.delete(f"{API}/db_user/{blog.name}", headers=blog.admin)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert [response.status_code for response in await blog.read_all(blog.name)] == [404] * 4

    async def test_signing_up_with_a_name_that_was_read_before(self, blog: Blog) -> None:
        assert (await blog.client.get(f"{API}/fresh/posts")).status_code == 404
        await make_user(username="fresh")
        assert (await blog.client.get(f"{API}/fresh/posts")).status_code == 200


class TestTakenOverName:
    """A user takes over a name before the rename that freed it has invalidated the answers stored under it."""

    @pytest.fixture
    def late(self, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
        """Hold the first removal: one event is set when it begins, it ends after the other is set."""
        (arrived, opened), remove = (asyncio.Event(), asyncio.Event()), CacheStore.remove

        async def remove_late(store: CacheStore, keys: Sequence[str], patterns: Sequence[str]) -> None:
            if not arrived.is_set():
                arrived.set()
                await opened.wait()
            await remove(store, keys, patterns)

        monkeypatch.setattr(CacheStore, "remove", remove_late)
        return arrived, opened

    @pytest.mark.parametrize("way", ["rename", "sign-up"])
    async def test_shows_nothing_of_the_former_owner(
        self,
        client: httpx.AsyncClient,
        user: User,
        superuser_headers: dict[str, str],
        late: tuple[asyncio.Event, asyncio.Event],
        way: str,
    ) -> None:
        post, other = await make_post(user), await make_user()
        paths = [f"{API}/{user.username}/{what}" for what in ("posts", f"post/{post.id}")]
        for path in paths:
            assert (await client.get(path)).status_code == 200
        giving_up = client.patch(f"{API}/user/{user.username}", json={"username": "renamed"}, headers=superuser_headers)
        async with running(giving_up) as (rename,):
            async with asyncio.timeout(10):
                await late[0].wait()
            if way == "rename":
                taken = await client.patch(
                    f"{API}/user/{other.username}", json={"username": user.username}, headers=superuser_headers
                )
                assert taken.status_code == 200
            else:
                body = {"name": "New", "username": user.username, "email": "n@example.com", "password": "Sense&Sensib"}
                assert (await client.post(f"{API}/user", json=body)).status_code == 201
            assert (await client.get(paths[0])).json()["data"] == []
            assert (await client.get(paths[1])).status_code == 404
            late[1].set()
            assert (await rename).status_code == 200

"""Every route that changes a moth or a user invalidates the stored answers that contain it."""

from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI

from app.models.user import User
from tests.factories import make_user
from tests.fixtures import HeadersFor, RedisRoles
from tests.integration.own_app import sealed
from tests.specimen.factories import make_moth
from tests.specimen.models import Moth

API = "/api/v1"


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


@dataclass
class Blog:
    """A user with a moth, and another user's blog; the cache holds answers for both."""

    client: httpx.AsyncClient
    redis: RedisRoles
    user: User
    moth: Moth
    other: User
    headers: dict[str, str]
    admin: dict[str, str]

    @property
    def name(self) -> str:
        return self.user.username

    @property
    def stored(self) -> set[str]:
        """The keys of the user's stored answers."""
        return {f"{self.name}_moth_cache:{self.moth.id}", *self.lists}

    @property
    def lists(self) -> set[str]:
        pages = ("page_1:items_per_page:10", "page_1:items_per_page:1", "page_2:items_per_page:1")
        return {f"{self.name}_moths:{page}:{self.name}" for page in pages}

    async def keys(self) -> set[str]:
        keys = {key.decode() for key in await self.redis.cache.keys()}
        return {key for key in keys if not key.startswith("@cache:")}

    async def read_all(self, name: str) -> list[httpx.Response]:
        paths = ("moths", "moths?items_per_page=1", "moths?items_per_page=1&page=2", f"moth/{self.moth.id}")
        return [await self.client.get(f"{API}/{name}/{path}") for path in paths]

    async def titles(self) -> list[str]:
        response = await self.client.get(f"{API}/{self.name}/moths")
        return [moth["title"] for moth in response.json()["data"]]

    async def title(self) -> str | int:
        response = await self.client.get(f"{API}/{self.name}/moth/{self.moth.id}")
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
    moth = await make_moth(user, title="before")
    await make_moth(other, title="not mine")
    blog = Blog(client, redis, user, moth, other, await headers_for(user), superuser_headers)
    responses = await blog.read_all(blog.name)
    assert [response.status_code for response in responses] == [200] * 4
    assert (await client.get(f"{API}/{other.username}/moths")).status_code == 200
    assert await blog.keys() == blog.stored | {others_list(blog)}
    return blog


def others_list(blog: Blog) -> str:
    return f"{blog.other.username}_moths:page_1:items_per_page:10:{blog.other.username}"


async def test_unchanged_answers_come_from_the_cache(blog: Blog) -> None:
    for key in blog.stored:
        await blog.redis.cache.set(key, sealed(key, b'"stored"'), ex=60)
    assert [response.json() for response in await blog.read_all(blog.name)] == ["stored"] * 4


async def test_lists_are_kept_for_a_minute_and_moths_for_an_hour(blog: Blog) -> None:
    assert all([50 < await blog.redis.cache.ttl(key) <= 60 for key in blog.lists])
    assert 3590 < await blog.redis.cache.ttl(f"{blog.name}_moth_cache:{blog.moth.id}") <= 3600


class TestNotes:
    async def test_create(self, blog: Blog) -> None:
        body = {"title": "new", "text": "text"}
        response = await blog.client.post(f"{API}/{blog.name}/moth", json=body, headers=blog.headers)
        assert response.status_code == 201
        assert await blog.keys() == {f"{blog.name}_moth_cache:{blog.moth.id}", others_list(blog)}
        assert await blog.titles() == ["before", "new"]

    async def test_patch(self, blog: Blog) -> None:
        path = f"{API}/{blog.name}/moth/{blog.moth.id}"
        response = await blog.client.patch(path, json={"title": "after"}, headers=blog.headers)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert (await blog.title(), await blog.titles()) == ("after", ["after"])

    async def test_delete(self, blog: Blog) -> None:
        response = await blog.client.delete(f"{API}/{blog.name}/moth/{blog.moth.id}", headers=blog.headers)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert (await blog.title(), await blog.titles()) == (404, [])

    async def test_db_delete(self, blog: Blog) -> None:
        response = await blog.client.delete(f"{API}/{blog.name}/db_moth/{blog.moth.id}", headers=blog.admin)
        assert response.status_code == 200
        assert await blog.keys() == {others_list(blog)}
        assert (await blog.title(), await blog.titles()) == (404, [])

    @pytest.mark.parametrize("status", [401, 403, 404, 422])
    async def test_write_that_is_refused_ends_nothing(self, blog: Blog, headers_for: HeadersFor, status: int) -> None:
        headers = await headers_for(blog.other) if status == 403 else blog.headers if status != 401 else {}
        moth_id = 1000 if status == 404 else blog.moth.id
        body = {"title": None} if status == 422 else {"title": "after"}
        response = await blog.client.patch(f"{API}/{blog.name}/moth/{moth_id}", json=body, headers=headers)
        assert response.status_code == status
        assert await blog.keys() == blog.stored | {others_list(blog)}

    async def test_moth_of_a_name_that_begins_alike(self, blog: Blog) -> None:
        longer = await make_user(username=f"{blog.name}0")
        await make_moth(longer)
        await blog.client.get(f"{API}/{longer.username}/moths")
        body = {"title": "new", "text": "text"}
        await blog.client.post(f"{API}/{blog.name}/moth", json=body, headers=blog.headers)
        assert f"{longer.username}_moths:page_1:items_per_page:10:{longer.username}" in await blog.keys()


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
        assert (await blog.client.get(f"{API}/fresh/moths")).status_code == 404
        await make_user(username="fresh")
        assert (await blog.client.get(f"{API}/fresh/moths")).status_code == 200

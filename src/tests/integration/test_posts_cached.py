"""Every route that changes a post or its author removes the stored answers that contain the post, and no others."""

from typing import Any

import httpx
import pytest

from app.models.post import Post
from app.models.user import User
from tests.factories import make_post, make_user
from tests.fixtures import RedisRoles

API = "/api/v1"
BODY = {"title": "new", "text": "text"}
PAGES = ("page_1:items_per_page:10", "page_2:items_per_page:1")
QUERY = "?items_per_page=1&page=2"
"""That of the second of these pages."""


class Reader:
    """Reads the posts of a user, by that name and by the next, and those of a user whose name begins alike."""

    def __init__(self, client: httpx.AsyncClient, redis: RedisRoles, post: Post, user: User, other: User) -> None:
        self.client, self.redis = client, redis
        lists = [f"{name}/posts{query}" for name in (user.username, "renamed") for query in ("", QUERY)]
        self.paths = [*lists, f"{user.username}/post/{post.id}", f"renamed/post/{post.id}", f"{other.username}/posts"]
        self.others = {f"{other.username}_posts:{PAGES[0]}:{other.username}"}
        self.lists = {f"{user.username}_posts:{page}:{user.username}" for page in PAGES}
        self.post = {f"{user.username}_post_cache:{post.id}"}

    async def read(self) -> list[tuple[int, Any]]:
        answers = [await self.client.get(f"{API}/{path}") for path in self.paths]
        return [(answer.status_code, answer.json()) for answer in answers]

    async def keys(self) -> set[str]:
        keys = {key.decode() for key in await self.redis.cache.keys()}
        return {key for key in keys if not key.startswith("@cache:")}


@pytest.fixture
async def reader(client: httpx.AsyncClient, redis: RedisRoles, user: User) -> Reader:
    other = await make_user(username=f"{user.username}0")
    post, *_ = [await make_post(author) for author in (user, user, other)]
    reader = Reader(client, redis, post, user, other)
    await reader.read()
    assert await reader.keys() == reader.others | reader.lists | reader.post
    return reader


@pytest.mark.parametrize(
    ("method", "path", "body", "who"),
    [
        ("POST", "{name}/post", BODY, "user"),
        ("PATCH", "{name}/post/1", {"title": "new"}, "user"),
        ("DELETE", "{name}/post/1", None, "user"),
        ("DELETE", "{name}/db_post/1", None, "superuser"),
        ("PATCH", "user/{name}", {"username": "renamed"}, "user"),
        ("PATCH", "user/{name}", {"username": "renamed"}, "superuser"),
        ("DELETE", "user/{name}", None, "user"),
        ("DELETE", "db_user/{name}", None, "superuser"),
    ],
)
async def test_write(
    reader: Reader,
    user: User,
    user_headers: dict[str, str],
    superuser_headers: dict[str, str],
    method: str,
    path: str,
    body: Any,
    who: str,
) -> None:
    before = await reader.read()
    headers = user_headers if who == "user" else superuser_headers
    url = f"{API}/{path.format(name=user.username)}"
    response = await reader.client.request(method, url, json=body, headers=headers)
    assert response.status_code == (201 if method == "POST" else 200)
    assert await reader.keys() == reader.others | (reader.post if method == "POST" else set())
    served = await reader.read()
    await reader.redis.cache.flushdb()
    assert served == await reader.read() != before


async def test_write_that_is_refused_removes_nothing(reader: Reader, user: User, user_headers: dict[str, str]) -> None:
    path = f"{API}/{user.username}/post"
    for url, body, status in ((f"{path}/1000", {"title": "new"}, 404), (f"{path}/1", {"title": None}, 422)):
        assert (await reader.client.patch(url, json=body, headers=user_headers)).status_code == status
    assert await reader.keys() == reader.others | reader.lists | reader.post


async def test_lists_are_kept_for_a_minute_and_posts_for_an_hour(reader: Reader) -> None:
    lives = [await reader.redis.cache.ttl(key) for key in (*reader.lists, *reader.post)]
    assert all(50 < seconds <= 60 for seconds in lives[:2])
    assert 3590 < lives[2] <= 3600

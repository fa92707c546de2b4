from datetime import datetime
from typing import Any

import httpx
import pytest

from app.models.post import Post
from app.models.user import User
from tests.factories import make_post, make_user
from tests.fixtures import Fetch, HeadersFor
from tests.helper import UUID, assert_error, assert_unauthorized, is_recent

NO_POST = "Post not found"
NO_USER = "User not found"
NOT_ALLOWED = "You are not allowed to do this"
SUPERUSERS_ONLY = "Only superusers are allowed to do this"

POST = {"title": "A title", "text": "Some text."}


def as_read(post: Post) -> dict[str, Any]:
    """Return the body of a post in answers."""
    return {
        "id": post.id,
        "title": post.title,
        "text": post.text,
        "media_url": post.media_url,
        "created_by_user_id": post.created_by_user_id,
        "created_at": post.created_at.isoformat().replace("+00:00", "Z"),
    }


class TestWritePost:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User, fetch: Fetch) -> None:
        assert_unauthorized(await client.post(f"/api/v1/{user.username}/post", json=POST))
        assert await fetch("SELECT FROM post") == []

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user: User, headers_for: HeadersFor, fetch: Fetch
    ) -> None:
        headers = await headers_for(await make_user())
        response = await client.post(f"/api/v1/{user.username}/post", json=POST, headers=headers)
        assert_error(response, 403, NOT_ALLOWED)
        assert await fetch("SELECT FROM post") == []

    async def test_not_allowed_for_superuser(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str]
    ) -> None:
        response = await client.post(f"/api/v1/{user.username}/post", json=POST, headers=superuser_headers)
        assert_error(response, 403, NOT_ALLOWED)

    async def test_not_found(
        self, client: httpx.AsyncClient, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        for headers in (user_headers, superuser_headers):
            assert_error(await client.post("/api/v1/nobody/post", json=POST, headers=headers), 404, NO_USER)

    async def test_valid(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        body = {**POST, "media_url": "https://www.example.com/post.png"}
        response = await client.post(f"/api/v1/{user.username}/post", json=body, headers=user_headers)
        assert response.status_code == 201
        answer = response.json()
        assert is_recent(answer["created_at"])
        created_at = datetime.fromisoformat(answer.pop("created_at"))
        assert answer == {"id": 1, **body, "created_by_user_id": user.id}
        [row] = await fetch("SELECT * FROM post")
        assert UUID.fullmatch(str(row.pop("uuid")))
        assert row == {**answer, "created_at": created_at, "updated_at": None, "deleted_at": None, "is_deleted": False}

    async def test_without_media(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        response = await client.post(f"/api/v1/{user.username}/post", json=POST, headers=user_headers)
        assert (response.status_code, response.json()["media_url"]) == (201, None)

    async def test_largest(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        body = {"title": "é" * 30, "text": "😀" * 63206}
        response = await client.post(f"/api/v1/{user.username}/post", json=body, headers=user_headers)
        assert response.status_code == 201
        assert {name: response.json()[name] for name in body} == body

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("title", None),
            ("title", "A"),
            ("title", "A" * 31),
            ("title", "A\x00B"),
            ("text", ""),
            ("text", None),
            ("text", "a" * 63207),
            ("text", 7),
            ("media_url", "ftp://example.com/post.png"),
            ("media_url", "https://example.com/a b"),
            ("created_by_user_id", 1),
            ("id", 7),
        ],
    )
    async def test_malformed(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        fetch: Fetch,
        field: str,
        value: Any,
    ) -> None:
        body = {**POST, field: value}
        response = await client.post(f"/api/v1/{user.username}/post", json=body, headers=user_headers)
        assert response.status_code == 422
        assert [error["loc"] for error in response.json()["detail"]] == [["body", field]]
        assert await fetch("SELECT FROM post") == []


class TestReadPosts:
    async def test_user_not_found(self, client: httpx.AsyncClient) -> None:
        assert_error(await client.get("/api/v1/nobody/posts"), 404, NO_USER)

    async def test_empty(self, client: httpx.AsyncClient, user: User) -> None:
        response = await client.get(f"/api/v1/{user.username}/posts")
        empty = {"data": [], "total_count": 0, "has_more": False, "page": 1, "items_per_page": 10, "next_cursor": None}
        assert (response.status_code, response.json()) == (200, empty)

    async def test_pages(self, client: httpx.AsyncClient, user: User) -> None:
        posts = [await make_post(user, title=f"Post {number}") for number in range(3)]
        await make_post(await make_user())
        first = (await client.get(f"/api/v1/{user.username}/posts?items_per_page=2")).json()
        second = (await client.get(f"/api/v1/{user.username}/posts?items_per_page=2&page=2")).json()
        assert first == {
            "data": [as_read(post) for post in posts[:2]],
            "total_count": 3,
            "has_more": True,
            "page": 1,
            "items_per_page": 2,
            "next_cursor": first["next_cursor"],
        }
        assert second == {
            "data": [as_read(posts[2])],
            "total_count": 3,
            "has_more": False,
            "page": 2,
            "items_per_page": 2,
            "next_cursor": None,
        }

    async def test_leaves_out_deleted_posts(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        deleted, kept = await make_post(user), await make_post(user)
        await client.delete(f"/api/v1/{user.username}/post/{deleted.id}", headers=user_headers)
        response = await client.get(f"/api/v1/{user.username}/posts")
        assert (response.json()["data"], response.json()["total_count"]) == ([as_read(kept)], 1)

    @pytest.mark.parametrize("query", ["page=0", "page=99999999999", "items_per_page=101", "items_per_page=x"])
    async def test_malformed_page(self, client: httpx.AsyncClient, user: User, query: str) -> None:
        assert (await client.get(f"/api/v1/{user.username}/posts?{query}")).status_code == 422


class TestReadPost:
    async def test_valid(self, client: httpx.AsyncClient, user: User) -> None:
        post = await make_post(user, media_url="https://www.example.com/post.png")
        response = await client.get(f"/api/v1/{user.username}/post/{post.id}")
        assert (response.status_code, response.json()) == (200, as_read(post))

    async def test_user_not_found(self, client: httpx.AsyncClient, user: User) -> None:
        post = await make_post(user)
        assert_error(await client.get(f"/api/v1/nobody/post/{post.id}"), 404, NO_USER)

    async def test_not_found(self, client: httpx.AsyncClient, user: User) -> None:
        for number in (1, 2**31 - 1):
            assert_error(await client.get(f"/api/v1/{user.username}/post/{number}"), 404, NO_POST)

    async def test_somebody_elses(self, client: httpx.AsyncClient, user: User) -> None:
        post = await make_post(await make_user())
        assert_error(await client.get(f"/api/v1/{user.username}/post/{post.id}"), 404, NO_POST)

    async def test_deleted(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        path = f"/api/v1/{user.username}/post/{(await make_post(user)).id}"
        await client.delete(path, headers=user_headers)
        assert_error(await client.get(path), 404, NO_POST)

    @pytest.mark.parametrize("number", ["0", "-1", "x", str(2**31), str(2**63), "1.5", "%00"])
    async def test_malformed_id(self, client: httpx.AsyncClient, user: User, number: str) -> None:
        assert (await client.get(f"/api/v1/{user.username}/post/{number}")).status_code == 422


class TestPatchPost:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        post = await make_post(user)
        assert_unauthorized(await client.patch(f"/api/v1/{user.username}/post/{post.id}", json={"title": "New"}))

    async def test_not_allowed(
        self,
        client: httpx.AsyncClient,
        user: User,
        headers_for: HeadersFor,
        superuser_headers: dict[str, str],
        fetch: Fetch,
    ) -> None:
        path = f"/api/v1/{user.username}/post/{(await make_post(user)).id}"
        for headers in (await headers_for(await make_user()), superuser_headers):
            assert_error(await client.patch(path, json={"title": "New"}, headers=headers), 403, NOT_ALLOWED)
        assert await fetch("SELECT title FROM post") == [{"title": "A title"}]

    async def test_not_found(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        body = {"title": "New"}
        response = await client.patch(f"/api/v1/{user.username}/post/1", json=body, headers=user_headers)
        assert_error(response, 404, NO_POST)
        for headers in (user_headers, superuser_headers):
            assert_error(await client.patch("/api/v1/nobody/post/1", json=body, headers=headers), 404, NO_USER)

    async def test_somebody_elses_under_ones_own_name(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        post = await make_post(await make_user())
        path = f"/api/v1/{user.username}/post/{post.id}"
        assert_error(await client.patch(path, json={"title": "New"}, headers=user_headers), 404, NO_POST)
        assert await fetch("SELECT title, updated_at FROM post") == [{"title": post.title, "updated_at": None}]

    async def test_deleted(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        path = f"/api/v1/{user.username}/post/{(await make_post(user)).id}"
        await client.delete(path, headers=user_headers)
        assert_error(await client.patch(path, json={"title": "New"}, headers=user_headers), 404, NO_POST)

    @pytest.mark.parametrize(
        "values",
        [
            {"title": "New title"},
            {"text": "New text."},
            {"media_url": "https://www.example.com/new.png"},
            {"media_url": None},
            {"title": "New title", "text": "New text.", "media_url": None},
            {},
        ],
    )
    async def test_valid(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        fetch: Fetch,
        values: dict[str, str | None],
    ) -> None:
        post = await make_post(user, media_url="https://www.example.com/old.png")
        untouched = await make_post(user)
        path = f"/api/v1/{user.username}/post/{post.id}"
        response = await client.patch(path, json=values, headers=user_headers)
        assert (response.status_code, response.json()) == (200, {**as_read(post), **values})
        assert (await client.get(path)).json() == response.json()
        row, other = await fetch("SELECT title, text, media_url, updated_at FROM post ORDER BY id")
        assert is_recent(row.pop("updated_at"))
        assert row == {"title": post.title, "text": post.text, "media_url": post.media_url, **values}
        assert (other["title"], other["updated_at"]) == (untouched.title, None)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("title", None),
            ("text", None),
            ("title", ""),
            ("text", "a\x00"),
            ("media_url", "nowhere"),
            ("created_by_user_id", 2),
            ("is_deleted", True),
            ("updated_at", "2020-01-01T00:00:00Z"),
        ],
    )
    async def test_malformed(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], field: str, value: Any
    ) -> None:
        path = f"/api/v1/{user.username}/post/{(await make_post(user)).id}"
        response = await client.patch(path, json={field: value}, headers=user_headers)
        assert response.status_code == 422
        assert [error["loc"] for error in response.json()["detail"]] == [["body", field]]


class TestErasePost:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        post = await make_post(user)
        assert_unauthorized(await client.delete(f"/api/v1/{user.username}/post/{post.id}"))

    async def test_not_allowed(
        self,
        client: httpx.AsyncClient,
        user: User,
        headers_for: HeadersFor,
        superuser_headers: dict[str, str],
        fetch: Fetch,
    ) -> None:
        path = f"/api/v1/{user.username}/post/{(await make_post(user)).id}"
        for headers in (await headers_for(await make_user()), superuser_headers):
            assert_error(await client.delete(path, headers=headers), 403, NOT_ALLOWED)
        assert await fetch("SELECT is_deleted FROM post") == [{"is_deleted": False}]

    async def test_not_found(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        response = await client.delete(f"/api/v1/{user.username}/post/1", headers=user_headers)
        assert_error(response, 404, NO_POST)
        for headers in (user_headers, superuser_headers):
            assert_error(await client.delete("/api/v1/nobody/post/1", headers=headers), 404, NO_USER)

    async def test_somebody_elses_under_ones_own_name(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        post = await make_post(await make_user())
        response = await client.delete(f"/api/v1/{user.username}/post/{post.id}", headers=user_headers)
        assert_error(response, 404, NO_POST)
        assert await fetch("SELECT is_deleted FROM post") == [{"is_deleted": False}]

    async def test_valid(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        post, other = await make_post(user), await make_post(user)
        path = f"/api/v1/{user.username}/post/{post.id}"
        response = await client.delete(path, headers=user_headers)
        assert (response.status_code, response.json()) == (200, {"message": "Post deleted"})
        row, other_row = await fetch("SELECT * FROM post ORDER BY id")
        assert row["is_deleted"]
        assert is_recent(row["deleted_at"])
        assert (other_row["id"], other_row["is_deleted"], other_row["deleted_at"]) == (other.id, False, None)
        assert_error(await client.delete(path, headers=user_headers), 404, NO_POST)


class TestEraseDbPost:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        post = await make_post(user)
        assert_unauthorized(await client.delete(f"/api/v1/{user.username}/db_post/{post.id}"))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        post = await make_post(user)
        response = await client.delete(f"/api/v1/{user.username}/db_post/{post.id}", headers=user_headers)
        assert_error(response, 403, SUPERUSERS_ONLY)
        assert len(await fetch("SELECT FROM post")) == 1

    async def test_not_found(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        post = await make_post(await make_user())
        for path in (f"{user.username}/db_post/7", f"{user.username}/db_post/{post.id}", f"nobody/db_post/{post.id}"):
            assert_error(await client.delete(f"/api/v1/{path}", headers=superuser_headers), 404, NO_POST)
        assert len(await fetch("SELECT FROM post")) == 1

    async def test_valid(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        post, other = await make_post(user), await make_post(user)
        response = await client.delete(f"/api/v1/{user.username}/db_post/{post.id}", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {"message": "Post deleted from the database"})
        assert await fetch("SELECT id FROM post") == [{"id": other.id}]

    async def test_deleted_before(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        superuser_headers: dict[str, str],
        fetch: Fetch,
    ) -> None:
        post = await make_post(user)
        await client.delete(f"/api/v1/{user.username}/post/{post.id}", headers=user_headers)
        response = await client.delete(f"/api/v1/{user.username}/db_post/{post.id}", headers=superuser_headers)
        assert response.status_code == 200
        assert await fetch("SELECT FROM post") == []

from datetime import datetime
from typing import Any

import httpx
import pytest

from app.models.post import Post
from app.models.user import User
from tests.factories import make_post, make_user
from tests.fixtures import Fetch, HeadersFor, Statements
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
        for name, number, what in (
            (user.username, 7, NO_POST),
            (user.username, post.id, NO_POST),
            ("nobody", post.id, NO_USER),
        ):
            response = await client.delete(f"/api/v1/{name}/db_post/{number}", headers=superuser_headers)
            assert_error(response, 404, what)
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


class TestOfADeletedUser:
    async def test_posts_are_no_longer_shown(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        post = await make_post(user)
        paths = [f"/api/v1/{user.username}/posts", f"/api/v1/{user.username}/post/{post.id}"]
        for path in paths:
            assert (await client.get(path)).status_code == 200
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        for path in paths:
            assert_error(await client.get(path), 404, NO_USER)
        assert len(await fetch("SELECT FROM post")) == 1

    async def test_really_deleted(
        self, client: httpx.AsyncClient, user: User, superuser: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        """Posts that were deleted before go, too."""
        mine, post = await make_post(superuser), await make_post(user)
        await make_post(user)
        await fetch("UPDATE post SET is_deleted = true WHERE id = $1", post.id)
        assert (await client.delete(f"/api/v1/db_user/{user.username}", headers=superuser_headers)).status_code == 200
        assert await fetch("SELECT id FROM post") == [{"id": mine.id}]


class TestCursors:
    async def test_from_the_first_page_to_the_last(self, client: httpx.AsyncClient, user: User) -> None:
        posts = [await make_post(user) for _ in range(3)]
        found: list[int] = []
        cursor: str | None = ""
        while cursor is not None:
            params: dict[str, Any] = {"items_per_page": 2, "cursor": cursor}
            page = (await client.get(f"/api/v1/{user.username}/posts", params=params)).json()
            found += [row["id"] for row in page["data"]]
            cursor = page["next_cursor"]
        assert found == [post.id for post in posts]

    async def test_of_another_author(self, client: httpx.AsyncClient, user: User) -> None:
        other = await make_user()
        for author in (user, user, other):
            await make_post(author)
        page = (await client.get(f"/api/v1/{user.username}/posts?items_per_page=1")).json()
        response = await client.get(f"/api/v1/{other.username}/posts", params={"cursor": page["next_cursor"]})
        assert response.status_code == 422


class TestStatements:
    @pytest.mark.parametrize("path", ["posts", "post/1"])
    async def test_read_and_its_cached_answer(
        self, client: httpx.AsyncClient, user: User, statements: Statements, path: str
    ) -> None:
        await make_post(user)
        for count in (1, 0):
            statements.clear()
            assert (await client.get(f"/api/v1/{user.username}/{path}")).status_code == 200
            statements.assert_only_read(count)

    @pytest.mark.parametrize(
        ("method", "path", "body", "who"),
        [
            ("POST", "post", POST, "user"),
            ("PATCH", "post/1", {"title": "New"}, "user"),
            ("DELETE", "post/1", None, "user"),
            ("DELETE", "db_post/1", None, "superuser"),
        ],
    )
    async def test_write(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        superuser_headers: dict[str, str],
        statements: Statements,
        method: str,
        path: str,
        body: Any,
        who: str,
    ) -> None:
        await make_post(user)
        headers = user_headers if who == "user" else superuser_headers
        statements.clear()
        response = await client.request(method, f"/api/v1/{user.username}/{path}", json=body, headers=headers)
        assert response.status_code in {200, 201}, response.text
        statements.assert_written_in_one_transaction()


RENAME_ALICE = """UPDATE "user" SET username = 'bobby' WHERE username = 'alice'"""
RENAME_HEIR = """UPDATE "user" SET username = 'alice' WHERE username = 'heir'"""


@pytest.mark.parametrize("statement", [1, 2, 3])
class TestNameThatChangesHands:
    """While a request runs, its author is renamed, and another user takes the name."""

    @pytest.fixture
    async def users(self) -> list[User]:
        users = [await make_user(username=name) for name in ("alice", "heir")]
        for user in users:
            await make_post(user)
        return users

    @pytest.mark.parametrize("path", ["posts", "posts?page=9", "post/1", "post/2", "post/99"])
    async def test_read(self, check_read: Any, users: list[User], path: str) -> None:
        await check_read(f"alice/{path}", RENAME_ALICE, RENAME_HEIR)

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [("POST", "post", POST), ("PATCH", "post/1", {"title": "New"}), ("DELETE", "post/1", None)],
    )
    async def test_write(
        self,
        client: httpx.AsyncClient,
        meanwhile: Any,
        headers_for: HeadersFor,
        fetch: Fetch,
        users: list[User],
        method: str,
        path: str,
        body: Any,
    ) -> None:
        rows = "SELECT * FROM post WHERE created_by_user_id = $1 ORDER BY id"
        headers = await headers_for(users[0])
        before = [await fetch(rows, user.id) for user in users]
        request = client.request(method, f"/api/v1/alice/{path}", json=body, headers=headers)
        response = await meanwhile(request, RENAME_ALICE, RENAME_HEIR)
        changed = [await fetch(rows, user.id) != then for user, then in zip(users, before, strict=True)]
        assert changed == [response.status_code < 400, False]

from typing import Any

import httpx
import pytest

from app.models.user import User
from app.schemas.user import RESERVED_USERNAMES
from tests.factories import hasher, make_superuser, make_user
from tests.fixtures import Fetch, HeadersFor
from tests.helper import UUID, assert_error, assert_unauthorized, is_recent, own, public

NOBODY = "User not found"
NOT_ALLOWED = "You are not allowed to do this"
SUPERUSERS_ONLY = "Only superusers are allowed to do this"
LAST_SUPERUSER = "The last superuser cannot be deleted: make another one first"

SIGN_UP = {"name": "Ann Other", "username": "ann", "email": "ann@example.com", "password": "Str1ngst!"}


class TestWriteUser:
    async def test_valid(self, client: httpx.AsyncClient, fetch: Fetch) -> None:
        response = await client.post("/api/v1/user", json=SIGN_UP)
        assert response.status_code == 201
        assert response.json() == {
            "id": 1,
            "name": "Ann Other",
            "username": "ann",
            "email": "ann@example.com",
            "profile_image_url": None,
            "tier_id": None,
            "is_superuser": False,
        }
        [row] = await fetch('SELECT * FROM "user"')
        assert await hasher.verify("Str1ngst!", row.pop("hashed_password"))
        assert UUID.fullmatch(str(row.pop("uuid")))
        assert is_recent(row.pop("created_at"))
        assert row == {**response.json(), "updated_at": None, "deleted_at": None, "is_deleted": False}

    async def test_with_image(self, client: httpx.AsyncClient) -> None:
        image = "https://www.example.com/ann.png"
        response = await client.post("/api/v1/user", json={**SIGN_UP, "profile_image_url": image})
        assert response.status_code == 201
        assert response.json()["profile_image_url"] == image

    async def test_can_sign_in(self, client: httpx.AsyncClient) -> None:
        await client.post("/api/v1/user", json=SIGN_UP)
        response = await client.post("/api/v1/login", data={"username": "ann", "password": "Str1ngst!"})
        assert response.status_code == 200

    async def test_duplicate_username(self, client: httpx.AsyncClient, fetch: Fetch) -> None:
        await make_user(username="ann", email="else@example.com")
        response = await client.post("/api/v1/user", json=SIGN_UP)
        assert (response.status_code, response.json()) == (409, {"detail": "Username already taken"})
        assert len(await fetch('SELECT FROM "user"')) == 1

    @pytest.mark.parametrize("email", ["ann@example.com", "Ann@Example.COM"])
    async def test_duplicate_email(self, client: httpx.AsyncClient, fetch: Fetch, email: str) -> None:
        await make_user(username="else", email="ann@example.com")
        response = await client.post("/api/v1/user", json={**SIGN_UP, "email": email})
        assert (response.status_code, response.json()) == (409, {"detail": "Email already taken"})
        assert len(await fetch('SELECT FROM "user"')) == 1

    async def test_name_and_email_of_deleted_user_stay_taken(
        self, client: httpx.AsyncClient, headers_for: HeadersFor
    ) -> None:
        user = await make_user(username="ann", email="ann@example.com")
        await client.delete("/api/v1/user/ann", headers=await headers_for(user))
        same_name = await client.post("/api/v1/user", json={**SIGN_UP, "email": "new@example.com"})
        same_email = await client.post(
            "/api/v1/user", json={**SIGN_UP, "username": "newann", "email": "ANN@example.com"}
        )
        assert (same_name.status_code, same_email.status_code) == (409, 409)

    @pytest.mark.parametrize("username", sorted(RESERVED_USERNAMES))
    async def test_reserved_username(self, client: httpx.AsyncClient, username: str) -> None:
        response = await client.post("/api/v1/user", json={**SIGN_UP, "username": username})
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["body", "username"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", "A"),
            ("name", "A" * 31),
            ("name", None),
            ("name", "A\x00B"),
            ("username", "a"),
            ("username", "a" * 21),
            ("username", "Ann"),
            ("username", "ann\n"),
            ("username", "a_b"),
            ("username", "änn"),
            ("email", "ann"),
            ("email", "ann@"),
            ("email", f"{'a' * 250}@example.com"),
            ("password", ""),
            ("password", "a"),
            ("password", "1234567"),
            ("password", "a" * 129),
            ("password", "1234567\x00"),
            ("profile_image_url", "javascript:alert(1)"),
            ("profile_image_url", "https://example.com/" + "a" * 2048),
        ],
    )
    async def test_malformed(self, client: httpx.AsyncClient, fetch: Fetch, field: str, value: Any) -> None:
        response = await client.post("/api/v1/user", json={**SIGN_UP, field: value})
        assert response.status_code == 422
        assert [error["loc"] for error in response.json()["detail"]] == [["body", field]]
        assert await fetch('SELECT FROM "user"') == []

    @pytest.mark.parametrize("field", ["name", "username", "email", "password"])
    async def test_missing_field(self, client: httpx.AsyncClient, field: str) -> None:
        body = {name: value for name, value in SIGN_UP.items() if name != field}
        response = await client.post("/api/v1/user", json=body)
        assert response.status_code == 422
        assert [error["loc"] for error in response.json()["detail"]] == [["body", field]]

    @pytest.mark.parametrize("field", ["is_superuser", "hashed_password", "id", "anything"])
    async def test_unknown_field_is_refused(self, client: httpx.AsyncClient, field: str) -> None:
        response = await client.post("/api/v1/user", json={**SIGN_UP, field: 1})
        assert response.status_code == 422
        assert response.json()["detail"][0]["type"] == "extra_forbidden"

    async def test_refusal_does_not_echo_password(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/api/v1/user", json={**SIGN_UP, "password": "hunter2"})
        assert response.status_code == 422
        assert "hunter2" not in response.text

    async def test_password_beyond_72_bytes_counts_whole(self, client: httpx.AsyncClient) -> None:
        password = "p" * 72 + "right"
        assert (await client.post("/api/v1/user", json={**SIGN_UP, "password": password})).status_code == 201
        wrong = await client.post("/api/v1/login", data={"username": "ann", "password": "p" * 72 + "wrong"})
        right = await client.post("/api/v1/login", data={"username": "ann", "password": password})
        assert (wrong.status_code, right.status_code) == (401, 200)


class TestReadUsers:
    async def test_empty(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/api/v1/users")
        assert response.status_code == 200
        assert response.json() == {
            "data": [],
            "total_count": 0,
            "has_more": False,
            "page": 1,
            "items_per_page": 10,
            "next_cursor": None,
        }

    async def test_shows_public_users_to_everybody(
        self, client: httpx.AsyncClient, user: User, superuser: User, superuser_headers: dict[str, str]
    ) -> None:
        for headers in ({}, superuser_headers):
            response = await client.get("/api/v1/users", headers=headers)
            assert response.json()["data"] == [public(user), public(superuser)]

    async def test_pages(self, client: httpx.AsyncClient) -> None:
        users = [await make_user() for _ in range(12)]
        first = (await client.get("/api/v1/users")).json()
        second = (await client.get("/api/v1/users", params={"page": 2})).json()
        beyond = (await client.get("/api/v1/users", params={"page": 3})).json()
        five = (await client.get("/api/v1/users", params={"page": 2, "items_per_page": 6})).json()
        assert first == {
            "data": [public(user) for user in users[:10]],
            "total_count": 12,
            "has_more": True,
            "page": 1,
            "items_per_page": 10,
            "next_cursor": first["next_cursor"],
        }
        assert second == {
            "data": [public(user) for user in users[10:]],
            "total_count": 12,
            "has_more": False,
            "page": 2,
            "items_per_page": 10,
            "next_cursor": None,
        }
        assert beyond == {**second, "data": [], "page": 3}
        assert (five["data"], five["has_more"]) == ([public(user) for user in users[6:]], False)

    async def test_order_is_stable(self, client: httpx.AsyncClient, headers_for: HeadersFor) -> None:
        """An UPDATE moves a row to the end of its table, but not to the end of the list."""
        first, second = await make_user(), await make_user()
        await client.patch(
            f"/api/v1/user/{first.username}", json={"name": "New Name"}, headers=await headers_for(first)
        )
        response = await client.get("/api/v1/users")
        assert [user["id"] for user in response.json()["data"]] == [first.id, second.id]

    async def test_leaves_out_deleted_users(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        other = await make_user()
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        response = await client.get("/api/v1/users")
        assert response.json()["data"] == [public(other)]
        assert response.json()["total_count"] == 1

    @pytest.mark.parametrize(
        "query",
        ["page=0", "page=-1", "page=x", "page=99999999999999999999", "items_per_page=0", "items_per_page=101"],
    )
    async def test_malformed_page(self, client: httpx.AsyncClient, query: str) -> None:
        assert (await client.get(f"/api/v1/users?{query}")).status_code == 422

    async def test_last_possible_page(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/api/v1/users", params={"page": 2**31 // 100, "items_per_page": 100})
        assert response.status_code == 200


class TestReadUsersMe:
    @pytest.mark.parametrize("path", ["/api/v1/user/me", "/api/v1/user/me/"])
    async def test_self(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], path: str) -> None:
        response = await client.get(path, headers=user_headers)
        assert (response.status_code, response.json()) == (200, own(user))

    @pytest.mark.parametrize("path", ["/api/v1/user/me", "/api/v1/user/me/"])
    async def test_anonymous(self, client: httpx.AsyncClient, path: str) -> None:
        assert_unauthorized(await client.get(path))


class TestReadUser:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        response = await client.get(f"/api/v1/user/{user.username}")
        assert (response.status_code, response.json()) == (200, public(user))

    async def test_self(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        response = await client.get(f"/api/v1/user/{user.username}", headers=user_headers)
        assert (response.status_code, response.json()) == (200, own(user))

    async def test_superuser(self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str]) -> None:
        response = await client.get(f"/api/v1/user/{user.username}", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, own(user))

    async def test_another_user_sees_what_anybody_sees(
        self, client: httpx.AsyncClient, user: User, headers_for: HeadersFor
    ) -> None:
        headers = await headers_for(await make_user())
        response = await client.get(f"/api/v1/user/{user.username}", headers=headers)
        assert (response.status_code, response.json()) == (200, public(user))

    async def test_not_found(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/api/v1/user/nobody")
        assert_error(response, 404, NOBODY)

    async def test_deleted(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        for headers in ({}, superuser_headers):
            response = await client.get(f"/api/v1/user/{user.username}", headers=headers)
            assert_error(response, 404, NOBODY)

    @pytest.mark.parametrize("username", ["A", "Ann", "a-b", "a%00", "%ED%A0%80ab", "a" * 21])
    async def test_malformed_name(self, client: httpx.AsyncClient, username: str) -> None:
        assert (await client.get(f"/api/v1/user/{username}")).status_code == 422


class TestPatchUser:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        assert_unauthorized(await client.patch(f"/api/v1/user/{user.username}", json={"name": "New Name"}))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user: User, headers_for: HeadersFor, fetch: Fetch
    ) -> None:
        headers = await headers_for(await make_user())
        response = await client.patch(f"/api/v1/user/{user.username}", json={"name": "New Name"}, headers=headers)
        assert_error(response, 403, NOT_ALLOWED)
        assert (await fetch('SELECT name FROM "user" WHERE id = $1', user.id)) == [{"name": user.name}]

    async def test_not_found(
        self, client: httpx.AsyncClient, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        for headers in (user_headers, superuser_headers):
            response = await client.patch("/api/v1/user/nobody", json={"name": "New Name"}, headers=headers)
            assert_error(response, 404, NOBODY)

    async def test_deleted(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        response = await client.patch(
            f"/api/v1/user/{user.username}", json={"name": "New Name"}, headers=superuser_headers
        )
        assert_error(response, 404, NOBODY)

    async def test_self(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        values = {
            "name": "New Name",
            "username": "newname",
            "email": "New@Example.com",
            "profile_image_url": "https://www.example.com/new.png",
        }
        response = await client.patch(f"/api/v1/user/{user.username}", json=values, headers=user_headers)
        assert response.status_code == 200
        assert response.json() == {**own(user), **values, "email": "new@example.com"}
        [row] = await fetch('SELECT * FROM "user"')
        assert is_recent(row["updated_at"])
        assert {key: row[key] for key in response.json()} == response.json()
        assert (row["uuid"], row["hashed_password"]) == (user.uuid, user.hashed_password)

    async def test_superuser(
        self, client: httpx.AsyncClient, user: User, superuser: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.patch(
            f"/api/v1/user/{user.username}", json={"name": "New Name"}, headers=superuser_headers
        )
        assert (response.status_code, response.json()) == (200, {**own(user), "name": "New Name"})
        rows = await fetch('SELECT name FROM "user" ORDER BY id')
        assert rows == [{"name": "New Name"}, {"name": superuser.name}]

    @pytest.mark.parametrize("field", ["name", "username", "email", "profile_image_url"])
    async def test_leaves_out_unnamed_fields(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, field: str
    ) -> None:
        user = await make_user(profile_image_url="https://www.example.com/old.png")
        new = {
            "name": "New Name",
            "username": "newname",
            "email": "new@example.com",
            "profile_image_url": "https://www.example.com/new.png",
        }[field]
        response = await client.patch(
            f"/api/v1/user/{user.username}", json={field: new}, headers=await headers_for(user)
        )
        assert (response.status_code, response.json()) == (200, {**own(user), field: new})

    async def test_nothing_named(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.patch(f"/api/v1/user/{user.username}", json={}, headers=user_headers)
        assert (response.status_code, response.json()) == (200, own(user))
        [row] = await fetch('SELECT updated_at FROM "user"')
        assert is_recent(row["updated_at"])

    async def test_own_values_are_no_duplicates(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        values = {"username": user.username, "email": user.email}
        response = await client.patch(f"/api/v1/user/{user.username}", json=values, headers=user_headers)
        assert (response.status_code, response.json()) == (200, own(user))

    @pytest.mark.parametrize(
        ("values", "detail"),
        [
            ({"username": "taken"}, "Username already taken"),
            ({"email": "taken@example.com"}, "Email already taken"),
            ({"email": "TAKEN@example.com", "name": "New Name"}, "Email already taken"),
        ],
    )
    async def test_duplicate(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        fetch: Fetch,
        values: dict[str, str],
        detail: str,
    ) -> None:
        await make_user(username="taken", email="taken@example.com")
        response = await client.patch(f"/api/v1/user/{user.username}", json=values, headers=user_headers)
        assert_error(response, 409, detail)
        [row] = await fetch('SELECT name, updated_at FROM "user" WHERE id = $1', user.id)
        assert row == {"name": user.name, "updated_at": None}

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", None),
            ("username", None),
            ("email", None),
            ("name", ""),
            ("username", "me"),
            ("username", "Capital"),
            ("email", "nowhere"),
            ("profile_image_url", "ftp://example.com"),
            ("password", "Str1ngst!"),
            ("is_superuser", True),
            ("tier_id", 1),
            ("id", 7),
            ("hashed_password", "x"),
        ],
    )
    async def test_malformed(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], field: str, value: Any
    ) -> None:
        response = await client.patch(f"/api/v1/user/{user.username}", json={field: value}, headers=user_headers)
        assert response.status_code == 422
        assert [error["loc"] for error in response.json()["detail"]] == [["body", field]]

    async def test_null_where_the_column_may_be_null(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, fetch: Fetch
    ) -> None:
        user = await make_user(profile_image_url="https://www.example.com/old.png")
        response = await client.patch(
            f"/api/v1/user/{user.username}", json={"profile_image_url": None}, headers=await headers_for(user)
        )
        assert (response.status_code, response.json()) == (200, {**own(user), "profile_image_url": None})
        assert await fetch('SELECT profile_image_url FROM "user"') == [{"profile_image_url": None}]

    async def test_token_survives_a_new_name_and_is_not_the_next_owners(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        old_name = user.username
        await client.patch(f"/api/v1/user/{old_name}", json={"username": "renamed"}, headers=user_headers)
        await make_user(username=old_name, email="next@example.com")
        me = await client.get("/api/v1/user/me", headers=user_headers)
        assert (me.json()["id"], me.json()["username"]) == (user.id, "renamed")
        response = await client.patch(f"/api/v1/user/{old_name}", json={"name": "New Name"}, headers=user_headers)
        assert_error(response, 403, NOT_ALLOWED)
        assert "email" not in (await client.get(f"/api/v1/user/{old_name}", headers=user_headers)).json()


class TestEraseUser:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        assert_unauthorized(await client.delete(f"/api/v1/user/{user.username}"))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user: User, headers_for: HeadersFor, fetch: Fetch
    ) -> None:
        headers = await headers_for(await make_user())
        assert_error(await client.delete(f"/api/v1/user/{user.username}", headers=headers), 403, NOT_ALLOWED)
        assert await fetch('SELECT FROM "user" WHERE is_deleted') == []

    async def test_not_found(
        self, client: httpx.AsyncClient, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        for headers in (user_headers, superuser_headers):
            assert_error(await client.delete("/api/v1/user/nobody", headers=headers), 404, NOBODY)

    async def test_twice(self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str]) -> None:
        path = f"/api/v1/user/{user.username}"
        assert (await client.delete(path, headers=superuser_headers)).status_code == 200
        assert_error(await client.delete(path, headers=superuser_headers), 404, NOBODY)

    async def test_self(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        other = await make_user()
        response = await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        assert (response.status_code, response.json()) == (200, {"message": "User deleted"})
        row, other_row = await fetch('SELECT * FROM "user" ORDER BY id')
        assert is_recent(row["deleted_at"])
        assert row["is_deleted"]
        assert (row["username"], row["email"]) == (user.username, user.email)
        assert (other_row["id"], other_row["is_deleted"], other_row["deleted_at"]) == (other.id, False, None)

    async def test_superuser(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.delete(f"/api/v1/user/{user.username}", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {"message": "User deleted"})
        assert await fetch('SELECT id FROM "user" WHERE is_deleted') == [{"id": user.id}]

    async def test_token_dies_at_once(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        await client.delete(f"/api/v1/user/{user.username}", headers=superuser_headers)
        assert_unauthorized(await client.get("/api/v1/user/me", headers=user_headers))
        assert_unauthorized(await client.get(f"/api/v1/user/{user.username}", headers=user_headers))
        assert (await client.get("/api/v1/user/me", headers=superuser_headers)).status_code == 200

    async def test_last_superuser(
        self, client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.delete(f"/api/v1/user/{superuser.username}", headers=superuser_headers)
        assert_error(response, 409, LAST_SUPERUSER)
        assert await fetch('SELECT is_deleted FROM "user"') == [{"is_deleted": False}]
        assert (await client.get("/api/v1/user/me", headers=superuser_headers)).status_code == 200

    async def test_deleted_superusers_do_not_count(
        self, client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str]
    ) -> None:
        second = await make_superuser(username="second")
        assert (await client.delete("/api/v1/user/second", headers=superuser_headers)).status_code == 200
        assert second.id != superuser.id
        response = await client.delete(f"/api/v1/user/{superuser.username}", headers=superuser_headers)
        assert_error(response, 409, LAST_SUPERUSER)

    async def test_one_of_two_superusers(
        self, client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str]
    ) -> None:
        await make_superuser(username="second")
        response = await client.delete(f"/api/v1/user/{superuser.username}", headers=superuser_headers)
        assert response.status_code == 200


class TestEraseDbUser:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        assert_unauthorized(await client.delete(f"/api/v1/db_user/{user.username}"))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.delete(f"/api/v1/db_user/{user.username}", headers=user_headers)
        assert_error(response, 403, SUPERUSERS_ONLY)
        assert len(await fetch('SELECT FROM "user"')) == 1

    async def test_not_found(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        assert_error(await client.delete("/api/v1/db_user/nobody", headers=superuser_headers), 404, NOBODY)

    async def test_valid(
        self, client: httpx.AsyncClient, user: User, superuser: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.delete(f"/api/v1/db_user/{user.username}", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {"message": "User deleted from the database"})
        assert await fetch('SELECT id FROM "user"') == [{"id": superuser.id}]

    async def test_deleted_before(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: dict[str, str],
        superuser_headers: dict[str, str],
        fetch: Fetch,
    ) -> None:
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        response = await client.delete(f"/api/v1/db_user/{user.username}", headers=superuser_headers)
        assert response.status_code == 200
        assert await fetch('SELECT FROM "user" WHERE id = $1', user.id) == []

    async def test_name_and_email_become_free(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str]
    ) -> None:
        await make_user(username="ann", email="ann@example.com")
        await client.delete("/api/v1/db_user/ann", headers=superuser_headers)
        assert (await client.post("/api/v1/user", json=SIGN_UP)).status_code == 201

    async def test_token_does_not_pass_on_to_the_next_owner_of_the_name(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, superuser_headers: dict[str, str]
    ) -> None:
        headers = await headers_for(await make_user(username="ann", email="ann@example.com"))
        await client.delete("/api/v1/db_user/ann", headers=superuser_headers)
        await client.post("/api/v1/user", json=SIGN_UP)
        assert_unauthorized(await client.get("/api/v1/user/me", headers=headers))

    async def test_last_superuser(
        self, client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.delete(f"/api/v1/db_user/{superuser.username}", headers=superuser_headers)
        assert_error(response, 409, LAST_SUPERUSER)
        assert len(await fetch('SELECT FROM "user"')) == 1

    async def test_deleted_superuser_beside_the_last_one(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        await make_superuser(username="second")
        await client.delete("/api/v1/user/second", headers=superuser_headers)
        assert (await client.delete("/api/v1/db_user/second", headers=superuser_headers)).status_code == 200
        assert len(await fetch('SELECT FROM "user"')) == 1

"""The number of statements of each request, and which of them run in a transaction."""

from typing import Any

import bcrypt
import httpx
import pytest
from fastapi import FastAPI

from app.core.database import transaction
from app.crud.crud_users import crud_users
from app.models.user import User
from tests.factories import PASSWORD, make_password_reset, make_user
from tests.fixtures import RedisRoles, Statements
from tests.specimen.factories import make_drawer, make_moth, make_slip

Headers = dict[str, str]


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


class TestReads:
    @pytest.fixture(autouse=True)
    async def _rows(self, user: User) -> None:
        for _ in range(30):
            await make_moth(user)
            await make_user()

    async def test_user(self, client: httpx.AsyncClient, user: User, statements: Statements) -> None:
        statements.clear()
        await client.get(f"/api/v1/user/{user.username}")
        statements.assert_only_read(1)

    async def test_user_with_token(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, statements: Statements
    ) -> None:
        statements.clear()
        await client.get(f"/api/v1/user/{user.username}", headers=user_headers)
        statements.assert_only_read(2)

    async def test_me(self, client: httpx.AsyncClient, user_headers: Headers, statements: Statements) -> None:
        statements.clear()
        await client.get("/api/v1/user/me", headers=user_headers)
        statements.assert_only_read(1)

    @pytest.mark.parametrize("query", ["", "?page=2&items_per_page=20", "?page=99"])
    async def test_users(self, client: httpx.AsyncClient, statements: Statements, query: str) -> None:
        statements.clear()
        response = await client.get(f"/api/v1/users{query}")
        assert response.json()["total_count"] == 31
        statements.assert_only_read(1)

    async def test_users_after_a_cursor(self, client: httpx.AsyncClient, statements: Statements) -> None:
        cursor = (await client.get("/api/v1/users")).json()["next_cursor"]
        statements.clear()
        assert (await client.get(f"/api/v1/users?cursor={cursor}")).json()["total_count"] == 31
        statements.assert_only_read(1)

    @pytest.mark.parametrize("name", ["{user}", "nobody"])
    @pytest.mark.parametrize("path", ["moths?page=9", "moth/99"])
    async def test_moths_that_are_not_there(
        self, client: httpx.AsyncClient, user: User, statements: Statements, name: str, path: str
    ) -> None:
        """The statement that reads the moths also finds out whether the author exists."""
        statements.clear()
        await client.get(f"/api/v1/{name.format(user=user.username)}/{path}")
        statements.assert_only_read(1)

    async def test_moths_and_their_cached_answer(
        self, client: httpx.AsyncClient, user: User, statements: Statements
    ) -> None:
        for path in (f"/api/v1/{user.username}/moths", f"/api/v1/{user.username}/moth/1"):
            statements.clear()
            await client.get(path)
            statements.assert_only_read(1)
            statements.clear()
            assert (await client.get(path)).status_code == 200
            statements.assert_only_read(0)

    async def test_login_hashes_without_a_connection(
        self, client: httpx.AsyncClient, user: User, statements: Statements
    ) -> None:
        """One statement finds the user. After hashing, a transaction locks the user's row and writes the session."""
        statements.clear()
        await client.post("/api/v1/login", data={"username": user.username, "password": PASSWORD})
        assert [sql.split()[0] for sql in statements.read] == ["SELECT"]
        words = [sql.split()[0] for sql in statements.written]
        assert words == ["BEGIN;", "SELECT", "INSERT", "COMMIT;"], statements.written
        assert statements.all[0][0] == "read"

    async def test_login_that_renews_the_hash(
        self, client: httpx.AsyncClient, user: User, statements: Statements
    ) -> None:
        """The renewal of the hash already locks the row."""
        async with transaction() as db:
            old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
            await crud_users.update(db, {"hashed_password": old}, id=user.id)
        statements.clear()
        await client.post("/api/v1/login", data={"username": user.username, "password": PASSWORD})
        assert [sql.split()[0] for sql in statements.written] == ["BEGIN;", "UPDATE", "INSERT", "COMMIT;"]

    async def test_change_and_reset_of_a_password(
        self, client: httpx.AsyncClient, user: User, user_headers: Headers, statements: Statements
    ) -> None:
        body = {"current_password": PASSWORD, "new_password": "N3w&better"}
        statements.clear()
        response = await client.post("/api/v1/user/me/password", json=body, headers=user_headers)
        assert response.status_code == 200
        assert [sql.split()[0] for sql in statements.written] == ["BEGIN;", "UPDATE", "DELETE", "DELETE", "COMMIT;"]
        await make_password_reset(user, "token")
        statements.clear()
        reset = {"token": "token", "new_password": "An0ther&"}
        assert (await client.post("/api/v1/password/reset", json=reset)).status_code == 200
        assert [sql.split()[0] for sql in statements.written] == ["BEGIN;", "DELETE", "UPDATE", "DELETE", "COMMIT;"]

    async def test_refresh(self, client: httpx.AsyncClient, user_headers: Headers, statements: Statements) -> None:
        """One statement locks the session and one writes it."""
        statements.clear()
        assert (await client.post("/api/v1/refresh")).status_code == 200
        assert [sql.split()[0] for sql in statements.written] == ["BEGIN;", "SELECT", "UPDATE", "COMMIT;"]
        assert not statements.read

    async def test_lists_of_drawers_and_slips(
        self, client: httpx.AsyncClient, user: User, superuser_headers: Headers, statements: Statements
    ) -> None:
        """One statement reads the caller, one the drawer or the page."""
        drawer = await make_drawer("free")
        for number in range(20):
            await make_slip(drawer, path=f"path{number}")
        for path in ("drawers", "drawer/free", "drawer/free/slips", "drawer/free/slip/1"):
            statements.clear()
            assert (await client.get(f"/api/v1/{path}", headers=superuser_headers)).status_code == 200
            statements.assert_only_read(2)


class TestRateLimiter:
    async def test_anonymous(self, client: httpx.AsyncClient, statements: Statements) -> None:
        assert (await client.post("/api/v1/specimen/job?message=x")).status_code == 201
        statements.assert_only_read(0)

    async def test_one_statement_reads_the_caller(
        self, client: httpx.AsyncClient, user_headers: Headers, statements: Statements
    ) -> None:
        statements.clear()
        assert (await client.post("/api/v1/specimen/job?message=x", headers=user_headers)).status_code == 201
        statements.assert_only_read(1)


SLIP = {"path": "api/v1/users", "limit": 5, "period": 60}
MOTH = {"title": "A title", "text": "Some text."}
ANN = {"name": "Ann Other", "username": "ann", "email": "ann@example.com", "password": "Str1ngst!"}
WRITES: list[tuple[str, str, Any, str]] = [
    ("POST", "/user", ANN, "nobody"),
    ("PATCH", "/user/{self}", {"name": "New Name"}, "user"),
    ("PATCH", "/user/{self}", {"name": "New Name"}, "superuser"),
    ("DELETE", "/user/{self}", None, "user"),
    ("DELETE", "/user/{self}", None, "superuser"),
    ("DELETE", "/db_user/{self}", None, "superuser"),
    ("POST", "/{self}/moth", MOTH, "user"),
    ("PATCH", "/{self}/moth/1", {"title": "New"}, "user"),
    ("DELETE", "/{self}/moth/1", None, "user"),
    ("DELETE", "/{self}/db_moth/1", None, "superuser"),
    ("POST", "/drawer", {"name": "pro"}, "superuser"),
    ("PATCH", "/drawer/free", {"name": "pro"}, "superuser"),
    ("DELETE", "/drawer/free", None, "superuser"),
    ("POST", "/drawer/free/slip", SLIP, "superuser"),
    ("PATCH", "/drawer/free/slip/1", {"limit": 7}, "superuser"),
    ("DELETE", "/drawer/free/slip/1", None, "superuser"),
]


class TestWrites:
    @pytest.mark.parametrize(("method", "path", "body", "who"), WRITES)
    async def test_two_at_most_between_begin_and_commit(
        self,
        client: httpx.AsyncClient,
        user: User,
        user_headers: Headers,
        superuser_headers: Headers,
        statements: Statements,
        method: str,
        path: str,
        body: Any,
        who: str,
    ) -> None:
        await make_moth(user)
        await make_slip(await make_drawer("free"))
        headers = {"user": user_headers, "superuser": superuser_headers, "nobody": {}}[who]
        statements.clear()
        path = path.replace("{self}", user.username)
        response = await client.request(method, f"/api/v1{path}", json=body, headers=headers)
        assert response.status_code in {200, 201}, response.text
        statements.assert_written_in_one_transaction()

    async def test_duplicate_is_found_by_the_insert_alone(
        self, app: FastAPI, client: httpx.AsyncClient, statements: Statements
    ) -> None:
        await make_user(username="ann")
        await app.state.resources.passwords.hash("warm")
        statements.clear()
        assert (await client.post("/api/v1/user", json=ANN)).status_code == 409
        assert statements.all == [("write", "BEGIN;"), ("write", "ROLLBACK;")]

    async def test_refused_before_the_database_is_asked(
        self, client: httpx.AsyncClient, user: User, statements: Statements, redis: RedisRoles
    ) -> None:
        statements.clear()
        assert (await client.post("/api/v1/user", json={})).status_code == 422
        assert (await client.patch(f"/api/v1/user/{user.username}", json={"name": "New"})).status_code == 401
        assert (await client.delete(f"/api/v1/{user.username}/moth/0")).status_code in {401, 422}
        assert statements.all == []

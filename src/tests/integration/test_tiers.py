import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import transaction
from app.crud.crud_tier import crud_tiers
from app.crud.crud_users import crud_users
from app.models.tier import Tier
from app.models.user import User
from app.schemas.user import UserReadOwn
from tests.factories import make_rate_limit, make_tier, make_user
from tests.fixtures import Fetch, LogRecords, Statements
from tests.helper import assert_error, assert_unauthorized, is_recent, own
from tests.in_between import in_turn
from tests.integration.large import Connection, large_database, statements_of, tables_read_whole

NO_TIER = "Tier not found"
NO_USER = "User not found"
SUPERUSERS_ONLY = "Only superusers are allowed to do this"


def as_read(tier: Tier) -> dict[str, Any]:
    return {"id": tier.id, "name": tier.name, "created_at": tier.created_at.isoformat().replace("+00:00", "Z")}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/tier"),
        ("GET", "/api/v1/tiers"),
        ("GET", "/api/v1/tier/free"),
        ("PATCH", "/api/v1/tier/free"),
        ("DELETE", "/api/v1/tier/free"),
    ],
)
class TestAccess:
    async def test_anonymous(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        await make_tier("free")
        assert_unauthorized(await client.request(method, path, json={"name": "pro"}))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user_headers: dict[str, str], fetch: Fetch, method: str, path: str
    ) -> None:
        await make_tier("free")
        response = await client.request(method, path, json={"name": "pro"}, headers=user_headers)
        assert_error(response, 403, SUPERUSERS_ONLY)
        assert await fetch("SELECT name FROM tier") == [{"name": "free"}]


class TestWriteTier:
    async def test_valid(self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch) -> None:
        response = await client.post("/api/v1/tier", json={"name": "free"}, headers=superuser_headers)
        assert response.status_code == 201
        [row] = await fetch("SELECT * FROM tier")
        created_at = row.pop("created_at")
        assert is_recent(created_at)
        assert row == {"id": 1, "name": "free", "updated_at": None}
        created = created_at.isoformat().replace("+00:00", "Z")
        assert response.json() == {"id": 1, "name": "free", "created_at": created}

    async def test_duplicate(self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch) -> None:
        await make_tier("free")
        response = await client.post("/api/v1/tier", json={"name": "free"}, headers=superuser_headers)
        assert_error(response, 409, "Name already taken")
        assert len(await fetch("SELECT FROM tier")) == 1

    @pytest.mark.parametrize("name", ["A", "Pro 2", "a.b-c_d", "x" * 50])
    async def test_every_name_has_an_address(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], name: str
    ) -> None:
        assert (await client.post("/api/v1/tier", json={"name": name}, headers=superuser_headers)).status_code == 201
        response = await client.get(f"/api/v1/tier/{name}", headers=superuser_headers)
        assert (response.status_code, response.json()["name"]) == (200, name)

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"name": None},
            {"name": ""},
            {"name": "a/b"},
            {"name": ".."},
            {"name": " a"},
            {"name": "a\n"},
            {"name": "a\x00"},
            {"name": "é"},
            {"name": "x" * 51},
            {"name": 1},
            {"name": "free", "id": 3},
            [],
        ],
    )
    async def test_malformed(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch, body: Any
    ) -> None:
        assert (await client.post("/api/v1/tier", json=body, headers=superuser_headers)).status_code == 422
        assert await fetch("SELECT FROM tier") == []


class TestReadTiers:
    async def test_pages(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        tiers = [await make_tier() for _ in range(3)]
        response = await client.get("/api/v1/tiers?items_per_page=2", headers=superuser_headers)
        assert response.status_code == 200
        assert response.json() == {
            "data": [as_read(tier) for tier in tiers[:2]],
            "total_count": 3,
            "has_more": True,
            "page": 1,
            "items_per_page": 2,
            "next_cursor": response.json()["next_cursor"],
        }

    @pytest.mark.parametrize("query", ["page=0", "items_per_page=0", "items_per_page=101"])
    async def test_malformed_page(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], query: str
    ) -> None:
        assert (await client.get(f"/api/v1/tiers?{query}", headers=superuser_headers)).status_code == 422


class TestReadTier:
    async def test_valid(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        tier = await make_tier("free")
        response = await client.get("/api/v1/tier/free", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, as_read(tier))

    async def test_not_found(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        assert_error(await client.get("/api/v1/tier/free", headers=superuser_headers), 404, NO_TIER)


class TestPatchTier:
    async def test_valid(self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch) -> None:
        tier, other = await make_tier("free"), await make_tier("other")
        response = await client.patch("/api/v1/tier/free", json={"name": "pro"}, headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {**as_read(tier), "name": "pro"})
        row, other_row = await fetch("SELECT * FROM tier ORDER BY id")
        assert is_recent(row["updated_at"])
        assert row["name"] == "pro"
        assert (other_row["name"], other_row["updated_at"]) == (other.name, None)

    async def test_nothing_named(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        tier = await make_tier("free")
        response = await client.patch("/api/v1/tier/free", json={}, headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, as_read(tier))

    async def test_duplicate(self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch) -> None:
        await make_tier("free")
        await make_tier("pro")
        response = await client.patch("/api/v1/tier/free", json={"name": "pro"}, headers=superuser_headers)
        assert_error(response, 409, "Name already taken")
        assert await fetch("SELECT name FROM tier ORDER BY id") == [{"name": "free"}, {"name": "pro"}]

    async def test_not_found(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        response = await client.patch("/api/v1/tier/free", json={"name": "pro"}, headers=superuser_headers)
        assert_error(response, 404, NO_TIER)

    @pytest.mark.parametrize("body", [{"name": None}, {"name": "a/b"}, {"title": "pro"}])
    async def test_malformed(self, client: httpx.AsyncClient, superuser_headers: dict[str, str], body: Any) -> None:
        await make_tier("free")
        assert (await client.patch("/api/v1/tier/free", json=body, headers=superuser_headers)).status_code == 422


class TestEraseTier:
    async def test_valid_with_its_rate_limits(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        kept = await make_rate_limit(await make_tier("pro"))
        await make_rate_limit(await make_tier("free"))
        response = await client.delete("/api/v1/tier/free", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {"message": "Tier deleted"})
        assert await fetch("SELECT name FROM tier") == [{"name": "pro"}]
        assert await fetch("SELECT id FROM rate_limit") == [{"id": kept.id}]

    async def test_not_found(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        assert_error(await client.delete("/api/v1/tier/free", headers=superuser_headers), 404, NO_TIER)

    async def test_deleted_users_leave_it(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        tier = await make_tier("free")
        user = await make_user(tier_id=tier.id)
        await client.delete(f"/api/v1/user/{user.username}", headers=superuser_headers)
        assert (await client.delete("/api/v1/tier/free", headers=superuser_headers)).status_code == 200
        assert await fetch('SELECT tier_id FROM "user" WHERE id = $1', user.id) == [{"tier_id": None}]

    async def test_still_in_use(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        tier = await make_tier("free")
        await make_rate_limit(tier)
        await make_user(tier_id=tier.id)
        response = await client.delete("/api/v1/tier/free", headers=superuser_headers)
        assert_error(response, 409, "Still in use: other rows refer to it")
        assert len(await fetch("SELECT FROM tier")) == 1
        assert len(await fetch("SELECT FROM rate_limit")) == 1


class TestRaces:
    async def test_one_tier_of_a_name(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        answers = await asyncio.gather(
            *(client.post("/api/v1/tier", json={"name": "gold"}, headers=superuser_headers) for _ in range(20))
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19

    async def test_tier_that_is_deleted_while_a_user_gets_it(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        for _ in range(10):
            tier = await make_tier()
            put, deleted = await asyncio.gather(
                client.patch(
                    f"/api/v1/user/{user.username}/tier", json={"tier_id": tier.id}, headers=superuser_headers
                ),
                client.delete(f"/api/v1/tier/{tier.name}", headers=superuser_headers),
            )
            assert (put.status_code, deleted.status_code) in {(200, 409), (404, 200)}
            (row,) = await fetch('SELECT tier_id FROM "user" WHERE id = $1', user.id)
            assert (row["tier_id"] == tier.id) is (put.status_code == 200)


SIGN_UP = {"name": "Ann Other", "username": "ann", "email": "ann@example.com", "password": "Str1ngst!"}


class TestWriteUser:
    async def test_superuser_sets_the_tier(
        self, client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        tier = await make_tier()
        response = await client.post("/api/v1/user", json={**SIGN_UP, "tier_id": tier.id}, headers=superuser_headers)
        assert (response.status_code, response.json()["tier_id"]) == (201, tier.id)
        assert await fetch("SELECT tier_id FROM \"user\" WHERE username = 'ann'") == [{"tier_id": tier.id}]

    async def test_superuser_names_a_tier_that_is_not_there(
        self, client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.post("/api/v1/user", json={**SIGN_UP, "tier_id": 7}, headers=superuser_headers)
        assert response.status_code == 404
        assert len(await fetch('SELECT FROM "user"')) == 1

    @pytest.mark.parametrize("signed_in", [True, False])
    async def test_nobody_else_sets_the_tier(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch, signed_in: bool
    ) -> None:
        tier = await make_tier()
        headers = user_headers if signed_in else {}
        response = await client.post("/api/v1/user", json={**SIGN_UP, "tier_id": tier.id}, headers=headers)
        assert response.status_code == 422
        message = "Only superusers may set the tier_id of a new user"
        assert response.json() == {"detail": [{"type": "value_error", "loc": ["body", "tier_id"], "msg": message}]}
        assert len(await fetch('SELECT FROM "user"')) == 1
        response = await client.post("/api/v1/user", json={**SIGN_UP, "tier_id": None}, headers=headers)
        assert (response.status_code, response.json()["tier_id"]) == (201, None)


class TestPatchUserTier:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        assert_unauthorized(await client.patch(f"/api/v1/user/{user.username}/tier", json={"tier_id": 1}))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], fetch: Fetch
    ) -> None:
        tier = await make_tier()
        path = f"/api/v1/user/{user.username}/tier"
        response = await client.patch(path, json={"tier_id": tier.id}, headers=user_headers)
        assert_error(response, 403, SUPERUSERS_ONLY)
        assert await fetch('SELECT tier_id FROM "user"') == [{"tier_id": None}]

    async def test_user_not_found(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        tier = await make_tier()
        body = {"tier_id": tier.id}
        assert_error(await client.patch("/api/v1/user/nobody/tier", json=body, headers=superuser_headers), 404, NO_USER)
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        response = await client.patch(f"/api/v1/user/{user.username}/tier", json=body, headers=superuser_headers)
        assert_error(response, 404, NO_USER)

    async def test_tier_not_found(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str]
    ) -> None:
        path = f"/api/v1/user/{user.username}/tier"
        response = await client.patch(path, json={"tier_id": 7}, headers=superuser_headers)
        assert_error(response, 404, "Tier not found")

    async def test_valid(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        tier = await make_tier()
        path = f"/api/v1/user/{user.username}/tier"
        response = await client.patch(path, json={"tier_id": tier.id}, headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {**own(user), "tier_id": tier.id})
        [row] = await fetch('SELECT tier_id, updated_at FROM "user" WHERE id = $1', user.id)
        assert row["tier_id"] == tier.id
        assert is_recent(row["updated_at"])

    async def test_out_of_every_tier(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        user = await make_user(tier_id=(await make_tier()).id)
        path = f"/api/v1/user/{user.username}/tier"
        response = await client.patch(path, json={"tier_id": None}, headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {**own(user), "tier_id": None})
        assert await fetch('SELECT tier_id FROM "user" WHERE id = $1', user.id) == [{"tier_id": None}]

    @pytest.mark.parametrize("body", [{}, {"tier_id": 0}, {"tier_id": 2**31}, {"tier_id": "x"}, {"tier": 1}, [], None])
    async def test_malformed(
        self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str], body: Any
    ) -> None:
        response = await client.patch(f"/api/v1/user/{user.username}/tier", json=body, headers=superuser_headers)
        assert response.status_code == 422

    async def test_is_in_the_audit_log(
        self,
        client: httpx.AsyncClient,
        user: User,
        superuser: User,
        superuser_headers: dict[str, str],
        logs: LogRecords,
    ) -> None:
        tier = await make_tier()
        path = f"/api/v1/user/{user.username}/tier"
        assert (await client.patch(path, json={"tier_id": tier.id}, headers=superuser_headers)).status_code == 200
        [record] = [record for record in logs.records if record.name == "app.audit" and record.msg == "patch_user_tier"]
        found = {name: getattr(record, name) for name in ("who", "target", "tier")}
        assert found == {"who": superuser.id, "target": user.id, "tier": tier.id}


class TestCursors:
    async def test_from_the_first_page_to_the_last(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str]
    ) -> None:
        tiers = [await make_tier() for _ in range(3)]
        first = (await client.get("/api/v1/tiers?items_per_page=2", headers=superuser_headers)).json()
        params = {"items_per_page": 2, "cursor": first["next_cursor"]}
        second = (await client.get("/api/v1/tiers", params=params, headers=superuser_headers)).json()
        assert [row["id"] for row in first["data"] + second["data"]] == [tier.id for tier in tiers]
        assert second["next_cursor"] is None


class TestStatements:
    @pytest.mark.parametrize("path", ["tiers", "tier/free"])
    async def test_read(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], statements: Statements, path: str
    ) -> None:
        """One statement reads the caller, one the tier or the page."""
        await make_tier("free")
        statements.clear()
        assert (await client.get(f"/api/v1/{path}", headers=superuser_headers)).status_code == 200
        statements.assert_only_read(2)

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "tier", {"name": "pro"}),
            ("PATCH", "tier/free", {"name": "pro"}),
            ("DELETE", "tier/free", None),
            ("PATCH", "user/{self}/tier", {"tier_id": 1}),
        ],
    )
    async def test_write(
        self,
        client: httpx.AsyncClient,
        user: User,
        superuser_headers: dict[str, str],
        statements: Statements,
        method: str,
        path: str,
        body: Any,
    ) -> None:
        await make_tier("free")
        statements.clear()
        path = f"/api/v1/{path.replace('{self}', user.username)}"
        response = await client.request(method, path, json=body, headers=superuser_headers)
        assert response.status_code in {200, 201}, response.text
        statements.assert_written_in_one_transaction()


RENAME = "UPDATE tier SET name = 'old' WHERE name = 'free'"
RENAME_NEXT = "UPDATE tier SET name = 'free' WHERE name = 'next'"


@pytest.mark.parametrize("statement", [1, 2, 3])
class TestNameThatChangesHands:
    @pytest.fixture(autouse=True)
    async def _tiers(self) -> None:
        for name in ("free", "next"):
            await make_tier(name)

    @pytest.mark.parametrize("path", ["tiers", "tier/free"])
    async def test_read(self, check_read: Any, superuser_headers: dict[str, str], path: str) -> None:
        await check_read(path, RENAME, RENAME_NEXT, headers=superuser_headers)

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_write(self, check_name: Any, method: str) -> None:
        await check_name(method, "tier")

    async def test_user_gets_a_tier(
        self, client: httpx.AsyncClient, meanwhile: Any, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        """The name of the user changes hands: only the user who has it at that moment gets the tier."""
        users = [await make_user(username=name) for name in ("alice", "heir")]
        request = client.patch("/api/v1/user/alice/tier", json={"tier_id": 1}, headers=superuser_headers)
        renames = """UPDATE "user" SET username = CASE username WHEN 'alice' THEN 'bobby' ELSE 'alice' END"""
        response = await meanwhile(request, f"{renames} WHERE username = 'alice'", f"{renames} WHERE username = 'heir'")
        assert response.status_code in {200, 404}
        ids = [row["id"] for row in await fetch('SELECT id FROM "user" WHERE tier_id = 1')]
        assert ids in ([users[0].id], [users[1].id]) if response.status_code == 200 else ids == []


RENAME_BOTH = """
DO $$ BEGIN
  UPDATE "user" SET username = 'bobby' WHERE username = 'ann';
  UPDATE "user" SET username = 'ann' WHERE username = 'heir';
END $$
"""


async def test_user_who_is_renamed_meanwhile_gets_no_tier(
    client: httpx.AsyncClient, superuser_headers: dict[str, str], fetch: Fetch
) -> None:
    """The request waits for the rename, after which another user has the name."""
    tier = await make_tier()
    for name in ("ann", "heir"):
        await make_user(username=name)
    request = client.patch("/api/v1/user/ann/tier", json={"tier_id": tier.id}, headers=superuser_headers)
    async with in_turn(fetch, text(RENAME_BOTH), request) as [answer]:
        pass
    assert_error(answer.result(), 404, NO_USER)
    assert await fetch('SELECT id FROM "user" WHERE tier_id IS NOT NULL') == []


@pytest.fixture(scope="module")
async def large() -> AsyncIterator[Connection]:
    async with large_database(FILL) as connection:
        yield connection


FILL = """
INSERT INTO tier (name, created_at) SELECT 'tier' || n, now() FROM generate_series(1, 50) n;
INSERT INTO rate_limit (tier_id, name, path, "limit", period, created_at)
SELECT tier.id, 'limit' || tier.id || ' ' || n, 'path' || n, 5, 60, now() FROM tier, generate_series(1, 40) n;
UPDATE "user" SET tier_id = 1 + id % 50;
"""
QUERIES: dict[str, Callable[[AsyncSession], Awaitable[Any]]] = {
    "caller with a limit": lambda db: crud_users.get_caller(db, UUID(int=7), UUID(int=8), path="path1"),
    "rate limits of a user": lambda db: crud_users.get_with_rate_limits(db, "user5"),
    "change a user's tier": lambda db: crud_users.update_one(
        db, {"tier_id": None}, UserReadOwn, username="user5", is_deleted=False
    ),
    "take deleted users out of a tier": lambda db: crud_users.update(db, {"tier_id": None}, tier_id=7, is_deleted=True),
    "delete a tier": lambda db: crud_tiers.delete(db, id=7, name="tier7"),
}


@pytest.mark.parametrize("name", QUERIES)
async def test_no_large_table_is_read_whole(large: Connection, name: str) -> None:
    async def run() -> None:
        async with transaction() as db:
            await QUERIES[name](db)

    for sql, values in await statements_of(run):
        assert await tables_read_whole(large, sql, values) == set(), sql


async def test_users_of_a_deleted_tier_are_found_by_an_index(large: Connection) -> None:
    """PostgreSQL itself looks for them."""
    assert await tables_read_whole(large, 'SELECT 1 FROM ONLY "user" WHERE $1 = tier_id FOR KEY SHARE', [7]) == set()

from typing import Any

import httpx
import pytest

from app.models.tier import Tier
from tests.factories import make_rate_limit, make_tier, make_user
from tests.fixtures import Fetch
from tests.helper import assert_error, assert_unauthorized, is_recent

NO_TIER = "Tier not found"
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

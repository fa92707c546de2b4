from typing import Any

import httpx
import pytest

from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from tests.factories import make_rate_limit, make_tier
from tests.fixtures import Fetch
from tests.helper import assert_error, assert_unauthorized, is_recent

NO_TIER = "Tier not found"
NO_LIMIT = "Rate limit not found"
SUPERUSERS_ONLY = "Only superusers are allowed to do this"

LIMIT = {"path": "api/v1/tasks/task", "limit": 5, "period": 60, "name": "my limit"}


def as_read(limit: RateLimit) -> dict[str, Any]:
    return {name: getattr(limit, name) for name in ("id", "tier_id", "name", "path", "limit", "period")}


@pytest.fixture
async def tier() -> Tier:
    return await make_tier("free")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "rate_limit"),
        ("GET", "rate_limits"),
        ("GET", "rate_limit/1"),
        ("PATCH", "rate_limit/1"),
        ("DELETE", "rate_limit/1"),
    ],
)
class TestAccess:
    async def test_anonymous(self, client: httpx.AsyncClient, tier: Tier, method: str, path: str) -> None:
        await make_rate_limit(tier)
        assert_unauthorized(await client.request(method, f"/api/v1/tier/free/{path}", json=LIMIT))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, tier: Tier, user_headers: dict[str, str], fetch: Fetch, method: str, path: str
    ) -> None:
        limit = await make_rate_limit(tier)
        response = await client.request(method, f"/api/v1/tier/free/{path}", json=LIMIT, headers=user_headers)
        assert_error(response, 403, SUPERUSERS_ONLY)
        assert await fetch("SELECT name FROM rate_limit") == [{"name": limit.name}]

    async def test_tier_not_found(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], method: str, path: str
    ) -> None:
        await make_rate_limit(tier)
        response = await client.request(method, f"/api/v1/tier/nothing/{path}", json=LIMIT, headers=superuser_headers)
        assert_error(response, 404, NO_LIMIT if method in ("PATCH", "DELETE") else NO_TIER)


class TestWriteRateLimit:
    async def test_valid(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        response = await client.post("/api/v1/tier/free/rate_limit", json=LIMIT, headers=superuser_headers)
        assert response.status_code == 201
        assert response.json() == {
            "id": 1,
            "tier_id": tier.id,
            "name": "my limit",
            "path": "api_v1_tasks_task",
            "limit": 5,
            "period": 60,
        }
        [row] = await fetch("SELECT * FROM rate_limit")
        assert is_recent(row.pop("created_at"))
        assert row == {**response.json(), "updated_at": None}

    @pytest.mark.parametrize(
        ("path", "stored"),
        [
            ("/api/v1/tasks/task", "api_v1_tasks_task"),
            ("api/v1/tasks/task/", "api_v1_tasks_task"),
            ("api_v1_tasks_task", "api_v1_tasks_task"),
            ("/api/v1/{username}/post/{id}", "api_v1_{username}_post_{id}"),
        ],
    )
    async def test_path_is_stored_sanitized(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], path: str, stored: str
    ) -> None:
        body = {**LIMIT, "path": path}
        response = await client.post("/api/v1/tier/free/rate_limit", json=body, headers=superuser_headers)
        assert (response.status_code, response.json()["path"]) == (201, stored)

    async def test_default_name(self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]) -> None:
        body = {"path": "api/v1/tasks/task", "limit": 1, "period": 3600}
        response = await client.post("/api/v1/tier/free/rate_limit", json=body, headers=superuser_headers)
        assert (response.status_code, response.json()["name"]) == (201, "api_v1_tasks_task:1:3600")

    async def test_limit_zero(self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]) -> None:
        body = {**LIMIT, "limit": 0, "period": 1}
        response = await client.post("/api/v1/tier/free/rate_limit", json=body, headers=superuser_headers)
        assert response.status_code == 201

    async def test_duplicate_name(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        await make_rate_limit(await make_tier(), name="my limit")
        response = await client.post("/api/v1/tier/free/rate_limit", json=LIMIT, headers=superuser_headers)
        assert_error(response, 409, "Name already taken")
        assert len(await fetch("SELECT FROM rate_limit")) == 1

    async def test_duplicate_path_in_tier(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        await make_rate_limit(tier, path="api_v1_tasks_task")
        response = await client.post("/api/v1/tier/free/rate_limit", json=LIMIT, headers=superuser_headers)
        assert_error(response, 409, "Tier id and path already taken")
        assert len(await fetch("SELECT FROM rate_limit")) == 1

    async def test_same_path_in_another_tier(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]
    ) -> None:
        await make_rate_limit(await make_tier(), path="api_v1_tasks_task")
        response = await client.post("/api/v1/tier/free/rate_limit", json=LIMIT, headers=superuser_headers)
        assert response.status_code == 201

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("limit", -1),
            ("limit", 2**31),
            ("limit", None),
            ("limit", 1.5),
            ("period", 0),
            ("period", -1),
            ("period", 2**31),
            ("path", ""),
            ("path", "/"),
            ("path", "a b"),
            ("path", "a" * 256),
            ("path", None),
            ("name", ""),
            ("name", "a\x00"),
            ("name", "a" * 301),
            ("tier_id", 1),
        ],
    )
    async def test_malformed(
        self,
        client: httpx.AsyncClient,
        tier: Tier,
        superuser_headers: dict[str, str],
        fetch: Fetch,
        field: str,
        value: Any,
    ) -> None:
        body = {**LIMIT, field: value}
        response = await client.post("/api/v1/tier/free/rate_limit", json=body, headers=superuser_headers)
        assert response.status_code == 422
        assert [error["loc"] for error in response.json()["detail"]] == [["body", field]]
        assert await fetch("SELECT FROM rate_limit") == []


class TestReadRateLimits:
    async def test_of_this_tier_only(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]
    ) -> None:
        limits = [await make_rate_limit(tier, path=f"path{number}") for number in range(3)]
        await make_rate_limit(await make_tier())
        response = await client.get("/api/v1/tier/free/rate_limits?items_per_page=2", headers=superuser_headers)
        assert response.status_code == 200
        assert response.json() == {
            "data": [as_read(limit) for limit in limits[:2]],
            "total_count": 3,
            "has_more": True,
            "page": 1,
            "items_per_page": 2,
            "next_cursor": response.json()["next_cursor"],
        }


class TestReadRateLimit:
    async def test_valid(self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]) -> None:
        limit = await make_rate_limit(tier)
        response = await client.get(f"/api/v1/tier/free/rate_limit/{limit.id}", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, as_read(limit))

    async def test_not_found(self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]) -> None:
        assert_error(await client.get("/api/v1/tier/free/rate_limit/7", headers=superuser_headers), 404, NO_LIMIT)

    async def test_of_another_tier(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]
    ) -> None:
        limit = await make_rate_limit(await make_tier())
        response = await client.get(f"/api/v1/tier/free/rate_limit/{limit.id}", headers=superuser_headers)
        assert_error(response, 404, NO_LIMIT)

    @pytest.mark.parametrize("number", ["0", "-1", "x", str(2**31), str(2**63)])
    async def test_malformed_id(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], number: str
    ) -> None:
        response = await client.get(f"/api/v1/tier/free/rate_limit/{number}", headers=superuser_headers)
        assert response.status_code == 422


class TestPatchRateLimit:
    @pytest.mark.parametrize(
        ("values", "changed"),
        [
            ({"limit": 7}, {"limit": 7}),
            ({"period": 7}, {"period": 7}),
            ({"name": "new"}, {"name": "new"}),
            ({"path": "/api/v1/users"}, {"path": "api_v1_users"}),
            ({}, {}),
        ],
    )
    async def test_valid(
        self,
        client: httpx.AsyncClient,
        tier: Tier,
        superuser_headers: dict[str, str],
        fetch: Fetch,
        values: dict[str, Any],
        changed: dict[str, Any],
    ) -> None:
        limit = await make_rate_limit(tier)
        path = f"/api/v1/tier/free/rate_limit/{limit.id}"
        response = await client.patch(path, json=values, headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {**as_read(limit), **changed})
        [row] = await fetch("SELECT * FROM rate_limit")
        assert is_recent(row["updated_at"])
        assert {name: row[name] for name in response.json()} == response.json()

    async def test_duplicate(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        limit = await make_rate_limit(tier, path="one", name="first")
        await make_rate_limit(tier, path="two", name="second")
        path = f"/api/v1/tier/free/rate_limit/{limit.id}"
        same_name = await client.patch(path, json={"name": "second"}, headers=superuser_headers)
        same_path = await client.patch(path, json={"path": "two"}, headers=superuser_headers)
        assert_error(same_name, 409, "Name already taken")
        assert_error(same_path, 409, "Tier id and path already taken")
        assert (await fetch("SELECT name, path FROM rate_limit ORDER BY id"))[0] == {"name": "first", "path": "one"}

    async def test_not_found(self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]) -> None:
        response = await client.patch("/api/v1/tier/free/rate_limit/7", json={"limit": 1}, headers=superuser_headers)
        assert_error(response, 404, NO_LIMIT)

    async def test_of_another_tier(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        limit = await make_rate_limit(await make_tier())
        path = f"/api/v1/tier/free/rate_limit/{limit.id}"
        assert_error(await client.patch(path, json={"limit": 9}, headers=superuser_headers), 404, NO_LIMIT)
        assert await fetch('SELECT "limit" FROM rate_limit') == [{"limit": limit.limit}]

    @pytest.mark.parametrize(
        ("field", "value"),
        [("limit", -1), ("limit", None), ("period", 0), ("path", ""), ("name", None), ("tier_id", 2), ("title", "x")],
    )
    async def test_malformed(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], field: str, value: Any
    ) -> None:
        limit = await make_rate_limit(tier)
        path = f"/api/v1/tier/free/rate_limit/{limit.id}"
        response = await client.patch(path, json={field: value}, headers=superuser_headers)
        assert response.status_code == 422
        assert [error["loc"] for error in response.json()["detail"]] == [["body", field]]


class TestEraseRateLimit:
    async def test_valid(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        limit, other = await make_rate_limit(tier), await make_rate_limit(tier, path="other")
        response = await client.delete(f"/api/v1/tier/free/rate_limit/{limit.id}", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {"message": "Rate limit deleted"})
        assert await fetch("SELECT id FROM rate_limit") == [{"id": other.id}]

    async def test_not_found(self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str]) -> None:
        assert_error(await client.delete("/api/v1/tier/free/rate_limit/7", headers=superuser_headers), 404, NO_LIMIT)

    async def test_of_another_tier(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        limit = await make_rate_limit(await make_tier())
        response = await client.delete(f"/api/v1/tier/free/rate_limit/{limit.id}", headers=superuser_headers)
        assert_error(response, 404, NO_LIMIT)
        assert len(await fetch("SELECT FROM rate_limit")) == 1

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import text

from app.api.dependencies import rate_limiter
from app.core import logger
from app.core.config import settings
from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from app.models.user import User
from tests.factories import make_rate_limit, make_tier, make_user
from tests.fixtures import Fetch, HeadersFor, LogRecords, RunServer, Statements, open_client
from tests.helper import assert_error, assert_unauthorized, is_recent, own
from tests.in_between import in_turn
from tests.integration.limited import DEFAULT, JOB_PATH, fields, passes, post_job
from tests.integration.own_app import build, copy_without
from tests.specimen.main import SPECIMEN

NO_USER = "User not found"
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
        assert_error(response, 404, NO_TIER)


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

    @pytest.mark.parametrize(("path", "is_limited"), [("api/v1/specimen/job", True), ("api/v1/specimen/jobs", False)])
    async def test_path_without_limited_route_is_logged(
        self,
        limited_client: httpx.AsyncClient,
        tier: Tier,
        superuser_headers: dict[str, str],
        logs: LogRecords,
        path: str,
        is_limited: bool,
    ) -> None:
        url, body = f"/api/v1/tier/{tier.name}/rate_limit", {**LIMIT, "path": path}
        created = await limited_client.post(url, json=body, headers=superuser_headers)
        changed = await limited_client.patch(f"{url}/1", json={"path": path}, headers=superuser_headers)
        assert (created.status_code, changed.status_code) == (201, 200)
        warnings = [vars(each) for each in logs.named("no limited route has the path of this rate limit")]
        assert [each["path"] for each in warnings] == ([] if is_limited else ["api_v1_specimen_jobs"] * 2)
        assert all(JOB_PATH in each["limited"].split(",") for each in warnings)

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


class TestRaces:
    async def test_one_limit_for_a_tier_and_a_path(
        self, client: httpx.AsyncClient, tier: Tier, superuser_headers: dict[str, str], fetch: Fetch
    ) -> None:
        answers = await asyncio.gather(
            *(
                client.post(
                    f"/api/v1/tier/{tier.name}/rate_limit",
                    json={"name": f"limit{number}", "path": "api/v1/tasks/task", "limit": number, "period": 60},
                    headers=superuser_headers,
                )
                for number in range(20)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19
        assert len(await fetch("SELECT id FROM rate_limit")) == 1


class TestReadUserRateLimits:
    async def test_anonymous(self, client: httpx.AsyncClient, user: User) -> None:
        assert_unauthorized(await client.get(f"/api/v1/user/{user.username}/rate_limits"))

    async def test_not_allowed(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        response = await client.get(f"/api/v1/user/{user.username}/rate_limits", headers=user_headers)
        assert_error(response, 403, SUPERUSERS_ONLY)

    async def test_not_found(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        assert_error(await client.get("/api/v1/user/nobody/rate_limits", headers=superuser_headers), 404, NO_USER)
        await client.delete(f"/api/v1/user/{user.username}", headers=user_headers)
        response = await client.get(f"/api/v1/user/{user.username}/rate_limits", headers=superuser_headers)
        assert_error(response, 404, NO_USER)

    async def test_without_tier(self, client: httpx.AsyncClient, user: User, superuser_headers: dict[str, str]) -> None:
        response = await client.get(f"/api/v1/user/{user.username}/rate_limits", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {**own(user), "tier_rate_limits": []})

    async def test_with_tier(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        tier = await make_tier()
        user = await make_user(tier_id=tier.id)
        limit = await make_rate_limit(tier, path="api_v1_tasks_task", limit=3, period=60, name="three")
        await make_rate_limit(await make_tier())
        response = await client.get(f"/api/v1/user/{user.username}/rate_limits", headers=superuser_headers)
        assert response.status_code == 200
        assert response.json() == {
            **own(user),
            "tier_rate_limits": [
                {
                    "id": limit.id,
                    "tier_id": tier.id,
                    "name": "three",
                    "path": "api_v1_tasks_task",
                    "limit": 3,
                    "period": 60,
                }
            ],
        }


class TestStatements:
    @pytest.mark.parametrize("path", ["tier/free/rate_limits", "tier/free/rate_limit/1", "user/{self}/rate_limits"])
    async def test_read(
        self,
        client: httpx.AsyncClient,
        user: User,
        tier: Tier,
        superuser_headers: dict[str, str],
        statements: Statements,
        path: str,
    ) -> None:
        """One statement reads the caller, one the limit or the page."""
        for number in range(20):
            await make_rate_limit(tier, path=f"path{number}")
        statements.clear()
        path = f"/api/v1/{path.replace('{self}', user.username)}"
        assert (await client.get(path, headers=superuser_headers)).status_code == 200
        statements.assert_only_read(2)

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "rate_limit", {"path": "api/v1/users", "limit": 5, "period": 60}),
            ("PATCH", "rate_limit/1", {"limit": 7}),
            ("DELETE", "rate_limit/1", None),
        ],
    )
    async def test_write(
        self,
        client: httpx.AsyncClient,
        tier: Tier,
        superuser_headers: dict[str, str],
        statements: Statements,
        method: str,
        path: str,
        body: Any,
    ) -> None:
        await make_rate_limit(tier)
        statements.clear()
        response = await client.request(method, f"/api/v1/tier/free/{path}", json=body, headers=superuser_headers)
        assert response.status_code in {200, 201}, response.text
        statements.assert_written_in_one_transaction()

    @pytest.mark.parametrize("with_rule", [True, False])
    async def test_one_statement_reads_caller_and_limit(
        self,
        limited_client: httpx.AsyncClient,
        user: User,
        tier: Tier,
        user_headers: dict[str, str],
        statements: Statements,
        fetch: Fetch,
        with_rule: bool,
    ) -> None:
        await fetch('UPDATE "user" SET tier_id = $1 WHERE id = $2', tier.id, user.id)
        if with_rule:
            await make_rate_limit(tier, path=JOB_PATH, limit=3, period=60)
        statements.clear()
        response = await post_job(limited_client, user_headers)
        assert response.status_code == 201
        assert fields(response)[:3] == (JOB_PATH, *((3, 60) if with_rule else (DEFAULT, 3600)))
        statements.assert_only_read(1)


RENAME_TIER = "UPDATE tier SET name = 'old' WHERE name = 'free'"
RENAME_NEXT_TIER = "UPDATE tier SET name = 'free' WHERE name = 'next'"
DELETE_TIER = "DELETE FROM tier WHERE name = 'free'"
CHANGE_LIMIT = 'UPDATE rate_limit SET "limit" = 99'


@pytest.mark.parametrize("statement", [1, 2])
class TestReadsWithWritesInBetween:
    async def test_user_with_rate_limits(
        self, check_read: Any, superuser_headers: dict[str, str], tier: Tier, fetch: Fetch
    ) -> None:
        await make_user(username="alice")
        await make_rate_limit(tier)
        await fetch("UPDATE \"user\" SET tier_id = $1 WHERE username = 'alice'", tier.id)
        leave = "UPDATE \"user\" SET tier_id = NULL WHERE username = 'alice'"
        await check_read("user/alice/rate_limits", leave, CHANGE_LIMIT, headers=superuser_headers)

    @pytest.mark.parametrize("path", ["rate_limits", "rate_limits?page=2&items_per_page=1", "rate_limit/1"])
    @pytest.mark.parametrize("writes", [(DELETE_TIER,), (RENAME_TIER, CHANGE_LIMIT), (RENAME_TIER, RENAME_NEXT_TIER)])
    async def test_rate_limits_of_a_tier(
        self, check_read: Any, superuser_headers: dict[str, str], tier: Tier, path: str, writes: Sequence[str]
    ) -> None:
        for each in (tier, await make_tier("next")):
            await make_rate_limit(each)
        await check_read(f"tier/free/{path}", *writes, headers=superuser_headers)


@pytest.mark.parametrize("statement", [1, 2, 3])
class TestWritesWithWritesInBetween:
    async def test_limit_for_a_tier_that_is_deleted(
        self, client: httpx.AsyncClient, meanwhile: Any, superuser_headers: dict[str, str], tier: Tier
    ) -> None:
        body = {"name": "limit", "path": "api/v1/tasks/task", "limit": 5, "period": 60}
        request = client.post("/api/v1/tier/free/rate_limit", json=body, headers=superuser_headers)
        response = await meanwhile(request, DELETE_TIER)
        if response.status_code != 201:
            assert_error(response, 404, NO_TIER)

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_limit_of_a_tier_that_is_renamed(self, check_limit: Any, tier: Tier, method: str) -> None:
        """The write in between uses the tier's new name, so no change under the old name may come after it."""
        await make_rate_limit(tier)
        await check_limit(method, "tier/free/rate_limit/1", "rate_limit", RENAME_TIER, CHANGE_LIMIT)


async def test_tier_keeps_its_name_until_its_limit_is_written(
    client: httpx.AsyncClient, superuser_headers: dict[str, str], tier: Tier, fetch: Fetch
) -> None:
    await make_rate_limit(tier)
    change = client.patch("/api/v1/tier/free/rate_limit/1", json={"limit": 7}, headers=superuser_headers)
    rename = client.patch("/api/v1/tier/free", json={"name": "pro"}, headers=superuser_headers)
    async with in_turn(fetch, text("UPDATE rate_limit SET period = 9"), change, rename) as answers:
        assert (await client.get("/api/v1/tier/free", headers=superuser_headers)).status_code == 200
    assert [answer.result().status_code for answer in answers] == [200, 200]
    assert answers[0].result().json()["limit"] == 7


# -------- the limiter, on the route of the specimen that it guards --------


@pytest.fixture
async def limited_client(specimen: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(specimen) as client:
        yield client


class TestRules:
    @pytest.fixture(autouse=True)
    def _nothing_reported(self, specimen: FastAPI) -> None:
        specimen.state.resources.limiter.reported.clear()

    @pytest.fixture
    async def limited(self, headers_for: HeadersFor) -> dict[str, str]:
        """A user whose tier allows three requests to the route that makes jobs."""
        tier = await make_tier()
        await make_rate_limit(tier, path=JOB_PATH, limit=3, period=60)
        return await headers_for(await make_user(tier_id=tier.id))

    async def test_rule_of_the_tier(
        self, limited_client: httpx.AsyncClient, limited: dict[str, str], logs: LogRecords
    ) -> None:
        response = await post_job(limited_client, limited)
        assert fields(response)[:4] == (JOB_PATH, 3, 60, 2)
        assert await passes(limited_client, limited) == 2
        assert [record for record in logs.records if record.levelname == "WARNING"] == []

    async def test_rule_for_another_path_is_not_used(
        self, limited_client: httpx.AsyncClient, headers_for: HeadersFor, logs: LogRecords
    ) -> None:
        tier = await make_tier()
        await make_rate_limit(tier, path="api_v1_users", limit=3)
        user = await make_user(tier_id=tier.id)
        response = await post_job(limited_client, await headers_for(user))
        assert fields(response)[1] == DEFAULT
        (record,) = logs.named("no rate limit for this tier and path, the default is used")
        assert record.levelname == "WARNING"
        named = {name: getattr(record, name) for name in ("user_id", "tier_id", "path", "limit", "period")}
        assert named == {
            "user_id": user.id,
            "tier_id": tier.id,
            "path": JOB_PATH,
            "limit": DEFAULT,
            "period": settings.DEFAULT_RATE_LIMIT_PERIOD,
        }

    async def test_user_without_a_tier(
        self, limited_client: httpx.AsyncClient, headers_for: HeadersFor, user: User, logs: LogRecords
    ) -> None:
        assert fields(await post_job(limited_client, await headers_for(user)))[1] == DEFAULT
        assert len(logs.named("no rate limit for this tier and path, the default is used")) == 1
        last = [line for line in logger.LOG_FILE.read_text().splitlines() if "WARNING" in line][-1]
        assert f"the default is used user_id={user.id} tier_id=null" in last

    async def test_log_once_per_route_and_hour(self, headers_for: HeadersFor, user: User, logs: LogRecords) -> None:
        users = [user, await make_user(), await make_user(tier_id=(await make_tier()).id)]
        router = APIRouter(dependencies=[Depends(rate_limiter)])

        @router.get("/one/{number}")
        @router.get("/two/{number}")
        async def limited(number: int) -> None: ...

        application = build(router)
        headers = [await headers_for(each) for each in users]
        async with open_client(application) as own:

            async def paths_logged() -> list[str]:
                before = len(logs.records)
                for number in range(2):
                    for each in headers:
                        for path in ("one", "two"):
                            assert (await own.get(f"/{path}/{number}", headers=each)).status_code == 200
                new = [record for record in logs.records[before:] if "the default is used" in record.getMessage()]
                return [str(vars(record)["path"]) for record in new]

            assert await paths_logged() == ["one_{number}", "two_{number}"]
            assert await paths_logged() == []
            application.state.resources.limiter.reported["one_{number}"] -= 3600
            assert await paths_logged() == ["one_{number}"]

    async def test_rule_that_changes(
        self, limited_client: httpx.AsyncClient, limited: dict[str, str], superuser_headers: dict[str, str]
    ) -> None:
        assert await passes(limited_client, limited) == 3
        tier = (await limited_client.get("/api/v1/tiers", headers=superuser_headers)).json()["data"][0]["name"]
        path = f"/api/v1/tier/{tier}/rate_limit/1"
        for limit, more in ((5, 2), (2, 0), (6, 1)):
            await limited_client.patch(path, json={"limit": limit}, headers=superuser_headers)
            assert await passes(limited_client, limited) == more
        await limited_client.delete(path, headers=superuser_headers)
        assert await passes(limited_client, limited) == DEFAULT - 6

    async def test_limit_0(self, limited_client: httpx.AsyncClient, headers_for: HeadersFor) -> None:
        tier = await make_tier()
        await make_rate_limit(tier, path=JOB_PATH, limit=0, period=7)
        refused = await post_job(limited_client, await headers_for(await make_user(tier_id=tier.id)))
        assert refused.status_code == 429
        assert fields(refused) == (JOB_PATH, 0, 7, 0, 7)
        assert refused.headers["Retry-After"] == "7"

    async def test_rule_without_a_default(self, headers_for: HeadersFor) -> None:
        router = APIRouter()

        @router.get("/limited", dependencies=[Depends(rate_limiter)])
        async def limited() -> None: ...

        tier = await make_tier()
        await make_rate_limit(tier, path="limited", limit=1)
        headers = await headers_for(await make_user(tier_id=tier.id))
        async with open_client(build(router, DEFAULT_RATE_LIMIT_LIMIT=0)) as own:
            assert [(await own.get("/limited", headers=headers)).status_code for _ in range(2)] == [200, 429]
            assert (await own.get("/limited")).status_code == 429

    async def test_rule_where_the_group_of_the_default_is_left_out(
        self, run_server: RunServer, tmp_path: Path, limited: dict[str, str]
    ) -> None:
        server = await run_server(app=SPECIMEN, cwd=copy_without(tmp_path, "DefaultRateLimitSettings"))
        assert await passes(server.client, limited) == 3
        assert (await post_job(server.client)).status_code == 201

    async def test_warning_of_a_process(self, run_server: RunServer, headers_for: HeadersFor, user: User) -> None:
        server = await run_server(app=SPECIMEN)
        headers = {**await headers_for(user), "X-Request-ID": "mine-1"}
        assert (await post_job(server.client, headers)).status_code == 201
        (line,) = [line for line in server.output.splitlines() if "the default is used" in line]
        assert f'user_id={user.id} tier_id=null path="{JOB_PATH}"' in line
        assert line.endswith('request_id="mine-1"')

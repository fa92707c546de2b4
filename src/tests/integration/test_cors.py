"""CORS: pages of other origins have no access unless a setting names their origin."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from app.models.user import User
from tests.fixtures import open_client
from tests.helper import sign_in
from tests.integration.own_app import build_specimen

FRIEND = "https://app.example.com"
STRANGER = "https://evil.example"
USERS = "/api/v1/users"
PREFLIGHT = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


def cors_headers(response: httpx.Response) -> dict[str, str]:
    prefix = "access-control-"
    return {name.removeprefix(prefix): value for name, value in response.headers.items() if name.startswith(prefix)}


def vary(response: httpx.Response) -> set[str]:
    return {name.strip().lower() for name in response.headers["vary"].split(",")}


@pytest.fixture
async def open_api(client: httpx.AsyncClient, the_routes: APIRouter) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API with two allowed origins."""
    async with open_client(build_specimen(the_routes, CORS_ORIGINS=f"https://other.example, {FRIEND}")) as own:
        yield own


@pytest.fixture
def the_routes() -> APIRouter:
    broken = APIRouter()

    @broken.get("/broken")
    async def fail() -> None:
        raise RuntimeError

    return broken


async def test_closed_by_default(client: httpx.AsyncClient) -> None:
    answer = await client.get(USERS, headers={"Origin": STRANGER})
    assert (answer.status_code, cors_headers(answer)) == (200, {})
    preflight = await client.options(USERS, headers={"Origin": STRANGER, **PREFLIGHT})
    assert (preflight.status_code, cors_headers(preflight)) == (405, {})


class TestNamedOrigins:
    async def test_may_send_credentials_and_read_headers(self, open_api: httpx.AsyncClient) -> None:
        preflight = await open_api.options(USERS, headers={"Origin": FRIEND, **PREFLIGHT})
        assert preflight.status_code == 200
        allowed = cors_headers(preflight)
        assert (allowed["allow-origin"], allowed["allow-credentials"]) == (FRIEND, "true")
        assert "PATCH" in allowed["allow-methods"]
        assert set(allowed["allow-headers"].split(",")) == {"authorization", "content-type"}
        answer = await open_api.get(USERS, headers={"Origin": FRIEND})
        assert cors_headers(answer) == {
            "allow-origin": FRIEND,
            "allow-credentials": "true",
            "expose-headers": "X-Request-ID, ETag, Retry-After, RateLimit, RateLimit-Policy",
        }

    @pytest.mark.parametrize("origin", [STRANGER, FRIEND + ".evil.example", "http://app.example.com", "null", ""])
    async def test_others_are_refused(self, open_api: httpx.AsyncClient, origin: str) -> None:
        answer = await open_api.get(USERS, headers={"Origin": origin})
        assert "allow-origin" not in cors_headers(answer)
        preflight = await open_api.options(USERS, headers={"Origin": origin, **PREFLIGHT})
        assert preflight.status_code == 400
        assert "allow-origin" not in cors_headers(preflight)

    async def test_errors_can_be_read_too(self, open_api: httpx.AsyncClient) -> None:
        for path, body, status in (("/nowhere", b"", 404), ("/broken", b"", 500), (USERS, b"x" * 2**21, 413)):
            answer = await open_api.request("GET", path, content=body, headers={"Origin": FRIEND})
            assert (answer.status_code, cors_headers(answer)["allow-origin"]) == (status, FRIEND)

    async def test_kept_answers_vary_by_origin(self, open_api: httpx.AsyncClient, user: User) -> None:
        """A cached answer without CORS headers would block the pages of an allowed origin, hence `Vary: Origin`."""
        tag = (await open_api.get(USERS)).headers["etag"]
        for origin in ({"Origin": FRIEND}, {"Origin": STRANGER}, {}):
            for known in ({}, {"If-None-Match": tag}):
                answer = await open_api.get(USERS, headers={**origin, **known})
                assert answer.status_code == (304 if known else 200)
                assert answer.headers["cache-control"] == "public, max-age=60"
                assert vary(answer) == {"authorization", "origin"}
        headers = await sign_in(open_api, user)
        assert (await open_api.get(USERS, headers=headers)).headers["cache-control"] == "private, no-store"


class TestAnyOrigin:
    async def test_never_with_credentials(self, client: httpx.AsyncClient, the_routes: APIRouter) -> None:
        async with open_client(build_specimen(the_routes, CORS_ORIGINS="*")) as own:
            answer = await own.get(USERS, headers={"Origin": STRANGER})
            preflight = await own.options(USERS, headers={"Origin": STRANGER, **PREFLIGHT})
        assert preflight.status_code == 200
        for response in (answer, preflight):
            assert cors_headers(response)["allow-origin"] == "*"
            assert "allow-credentials" not in cors_headers(response)

"""A hit of the cache whose URL has been asked for before does not go through FastAPI; nothing else may tell."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.routing import APIRoute

from app.api.dependencies import ReaderDep
from app.core import cache as cache_module
from app.core.cache import LEASE_SECONDS, cache
from app.core.exceptions import ForbiddenError
from tests.fixtures import RedisRoles, open_client
from tests.integration.own_app import build

Name = Annotated[str, Path(pattern="^[a-z]+$")]
Number = Annotated[int, Query(ge=1, le=9)]


class Shop:
    """Counts what ran, and of what kind the requests were that it saw."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.is_open = True
        router = self.router = APIRouter()

        @router.get("/plain/{name}", status_code=203)
        @cache("plain:{name}", resource_id_name="page")
        async def plain(request: Request, name: Name, db: ReaderDep, page: Number = 1) -> dict[str, Any]:
            self.ran["plain"] += 1
            return {"name": name, "page": page}

        @router.patch("/plain/{name}")
        @cache("plain:{name}", resource_id_name="name", pattern_to_invalidate_extra=["plain:{name}:*"])
        async def change(request: Request, name: Name) -> None: ...

        async def watch(request: Request) -> None:
            self.ran["watch"] += 1
            if not self.is_open:
                raise ForbiddenError

        @router.get("/watched/{name}")
        @cache("watched", resource_id_name="name")
        async def watched(request: Request, name: Name, _: Annotated[None, Depends(watch)]) -> str:
            self.ran["watched"] += 1
            return name

        @router.get("/guarded/{name}", dependencies=[Depends(watch)])
        @cache("guarded", resource_id_name="name")
        async def guarded(request: Request, name: Name) -> str:
            self.ran["guarded"] += 1
            return name


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def client(app: Any, shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(build(shop.router)) as client:
        yield client


async def test_each_url_has_its_own_answer(client: httpx.AsyncClient, shop: Shop) -> None:
    for _ in range(3):
        for path in ("/plain/pen", "/plain/pen?page=1", "/plain/pen?page=1&other=2", "/plain/pen?page=1&page=1"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (203, {"name": "pen", "page": 1})
        assert (await client.get("/plain/pen?page=2")).json() == {"name": "pen", "page": 2}
        assert (await client.get("/plain/ink?page=2")).json() == {"name": "ink", "page": 2}
    assert shop.ran["plain"] == 3
    assert (await client.head("/plain/pen")).status_code == 203


async def test_what_is_wrong_stays_wrong(client: httpx.AsyncClient, shop: Shop) -> None:
    for _ in range(3):
        assert (await client.get("/plain/pen")).status_code == 203
        for path in ("/plain/PEN", "/plain/pen?page=0", "/plain/pen?page=x", "/plain/p%20n"):
            assert (await client.get(path)).status_code == 422
        assert (await client.post("/plain/pen")).status_code == 405
    assert shop.ran["plain"] == 1


async def test_a_removed_answer_is_made_once(client: httpx.AsyncClient, shop: Shop, redis: RedisRoles) -> None:
    async with asyncio.timeout(LEASE_SECONDS):  # which is how long a miss would wait for a lease of its own
        for times in range(1, 4):
            for _ in range(3):
                assert (await client.get("/plain/pen")).json() == {"name": "pen", "page": 1}
            assert shop.ran["plain"] == times
            assert (await client.patch("/plain/pen")).status_code == 200
    assert [key async for key in redis.cache.scan_iter("plain:*")] == []


@pytest.mark.parametrize("route", ["watched", "guarded"])
async def test_dependencies_run_for_every_request(client: httpx.AsyncClient, shop: Shop, route: str) -> None:
    for _ in range(3):
        assert (await client.get(f"/{route}/pen")).json() == "pen"
    assert (shop.ran["watch"], shop.ran[route]) == (3, 1)
    shop.is_open = False
    assert (await client.get(f"/{route}/pen")).status_code == 403


async def test_no_more_is_remembered_than_has_a_place(app: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module._KnownUrls, "AT_MOST", 3)
    application = build(shop.router)
    (route,) = [route for route in application.routes if isinstance(route, APIRoute) and route.name == "plain"]
    known = route.app
    assert isinstance(known, cache_module._KnownUrls)
    async with open_client(application) as client:
        for number in range(1, 9):
            assert (await client.get(f"/plain/pen?page={number}")).json()["page"] == number
            assert 0 < len(known._keys) <= 3
        before = dict(known._keys)
        for path in ("/plain/pen?page=10", "/plain/pen?page=1&" + "x" * 200, "/plain/" + "x" * 200):
            await client.get(path)
        assert known._keys == before

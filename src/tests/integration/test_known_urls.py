"""Stored answers to known URLs: served before FastAPI reads the request, without a visible difference for clients."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from pydantic import SecretStr
from starlette.routing import Host, Mount

from app.api.dependencies import ReaderDep
from app.core.cache import CacheStore, cache, middleware
from app.core.cache.decorator import look_up
from app.core.config import Settings, settings
from app.core.exceptions import ForbiddenError
from tests.fixtures import RedisRoles, open_client
from tests.integration.own_app import build, build_with

Name = Annotated[str, Path(pattern="^[a-z]+$")]
Number = Annotated[int, Query(ge=1, le=9)]


class Shop:
    """Routes that count the runs of their functions and the types of the requests."""

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

        self.watch = watch

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


async def test_wrong_requests_are_refused_beside_known_urls(client: httpx.AsyncClient, shop: Shop) -> None:
    for _ in range(3):
        assert (await client.get("/plain/pen")).status_code == 203
        for path in ("/plain/PEN", "/plain/pen?page=0", "/plain/pen?page=x", "/plain/p%20n"):
            assert (await client.get(path)).status_code == 422
        assert (await client.post("/plain/pen")).status_code == 405
    assert shop.ran["plain"] == 1


async def test_a_removed_answer_is_made_once(client: httpx.AsyncClient, shop: Shop, redis: RedisRoles) -> None:
    async with asyncio.timeout(settings.POSTGRES_STATEMENT_TIMEOUT):  # a cache miss would wait this long for its lease
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


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all lookups before FastAPI reads the request."""
    keys: list[str] = []

    async def record(store: CacheStore, key: str, expiration: int) -> tuple[bytes | None, bytes]:
        keys.append(key)
        return await look_up(store, key, expiration)

    monkeypatch.setattr(middleware, "look_up", record)
    return keys


async def test_only_known_urls_are_looked_up_early(client: httpx.AsyncClient, early: list[str]) -> None:
    await client.get("/plain/pen")
    assert early == []
    for times in (1, 2):
        assert (await client.get("/plain/pen")).status_code == 203
        assert early == ["plain:pen:1"] * times
    await client.get("/plain/ink")
    for path in ("/watched/pen", "/guarded/pen"):
        for _ in range(3):
            assert (await client.get(path)).json() == "pen"
    assert len(early) == 2


async def test_known_urls_are_limited(
    client: httpx.AsyncClient, early: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "MAX_KNOWN_URLS", 3)
    for number in range(1, 9):
        assert (await client.get(f"/plain/pen?page={number}")).json()["page"] == number
    for number in range(8, 0, -1):
        assert (await client.get(f"/plain/pen?page={number}")).json()["page"] == number
    assert early[0] == "plain:pen:8"
    assert len(early) <= 3


async def test_invalid_and_long_urls_are_not_remembered(client: httpx.AsyncClient, early: list[str]) -> None:
    for path in ("/plain/pen?page=10", "/plain/pen?page=1&" + "x" * 200, "/plain/" + "x" * 200):
        for _ in range(2):
            await client.get(path)
    assert early == []


class TestIncludedRouters:
    """A guard protects exactly the routes that it is declared for."""

    async def check(self, application: FastAPI, shop: Shop, open_path: str | None, guarded_path: str) -> None:
        """Read both paths until their URLs are known; then make the guard refuse requests."""
        async with open_client(application) as client:
            paths = [path for path in (open_path, guarded_path) if path is not None]
            for times in range(1, 4):
                for path in paths:
                    assert (await client.get(path)).json() == {"name": "pen", "page": 1}
                assert shop.ran["watch"] == times
            shop.is_open = False
            for _ in range(2):
                assert (await client.get(guarded_path)).status_code == 403
                if open_path is not None:
                    assert (await client.get(open_path)).status_code == 203
        assert shop.ran["plain"] == 1

    async def test_guard_of_the_inclusion(self, shop: Shop, early: list[str]) -> None:
        def include(app: FastAPI, _: Settings) -> None:
            app.include_router(shop.router, prefix="/inner", dependencies=[Depends(shop.watch)])

        await self.check(build_with(include), shop, None, "/inner/plain/pen")
        assert early == []

    async def test_guard_of_an_outer_router(self, shop: Shop, early: list[str]) -> None:
        outer = APIRouter(dependencies=[Depends(shop.watch)])
        outer.include_router(shop.router, prefix="/inner")
        await self.check(build(outer), shop, None, "/inner/plain/pen")
        assert early == []

    @pytest.mark.parametrize("prefixes", [("/open", "/guarded"), ("", "/guarded"), ("/open", "")])
    @pytest.mark.parametrize("guarded_first", [False, True])
    async def test_one_of_two_inclusions(
        self, shop: Shop, early: list[str], prefixes: tuple[str, str], guarded_first: bool
    ) -> None:
        def include(app: FastAPI, _: Settings) -> None:
            inclusions: list[dict[str, Any]] = [
                {"prefix": prefixes[0]},
                {"prefix": prefixes[1], "dependencies": [Depends(shop.watch)]},
            ]
            for options in reversed(inclusions) if guarded_first else inclusions:
                app.include_router(shop.router, **options)

        open_path, guarded_path = [f"{prefix}/plain/pen" for prefix in prefixes]
        await self.check(build_with(include), shop, open_path, guarded_path)
        assert set(early) == {"plain:pen:1"}

    @pytest.mark.parametrize("kind", ["mount", "mount in a router", "host"])
    async def test_same_path_elsewhere(self, shop: Shop, early: list[str], kind: str) -> None:
        """Routes hidden from `prepare_cached_routes`, with the path of a route that may be served early."""
        guarded = APIRouter()
        guarded.include_router(shop.router, dependencies=[Depends(shop.watch)])

        def include(app: FastAPI, _: Settings) -> None:
            if kind == "mount":
                app.router.routes.append(Mount("/inner", app=guarded))
            elif kind == "host":
                app.router.routes.append(Host("inner.test", app=guarded))
            else:
                mounting = APIRouter()
                mounting.routes.append(Mount("/inner", app=guarded))
                app.include_router(mounting)
            app.include_router(shop.router)

        path = "http://inner.test/plain/pen" if kind == "host" else "/inner/plain/pen"
        await self.check(build_with(include), shop, "/plain/pen", path)
        # With a Host, the URL alone selects no route.
        assert set(early) == (set() if kind == "host" else {"plain:pen:1"})

    @pytest.mark.parametrize("guarded_first", [False, True])
    async def test_two_applications_with_one_router(self, shop: Shop, early: list[str], guarded_first: bool) -> None:
        def include_guarded(app: FastAPI, _: Settings) -> None:
            app.include_router(shop.router, dependencies=[Depends(shop.watch)])

        builders = {"open": lambda: build(shop.router), "guarded": lambda: build_with(include_guarded)}
        names = sorted(builders, reverse=not guarded_first)
        applications = {name: builders[name]() for name in names}
        async with open_client(applications["open"]) as own, open_client(applications["guarded"]) as guarded:
            for times in range(1, 4):
                assert (await own.get("/plain/pen")).status_code == 203
                assert (await guarded.get("/plain/pen")).status_code == 203
                assert shop.ran["watch"] == times
            assert early == ["plain:pen:1"] * 2
            shop.is_open = False
            assert (await guarded.get("/plain/pen")).status_code == 403
            assert (await own.get("/plain/pen")).status_code == 203

    async def test_two_applications_that_read_a_url_differently(self, early: list[str]) -> None:
        router = APIRouter()

        @router.get("/read")
        @cache("read", resource_id_name="name")
        async def read(request: Request, name: str = "default") -> str:
            return name

        def include(app: FastAPI, _: Settings) -> None:
            app.include_router(router, prefix="/{name}")

        def include_fixed(app: FastAPI, _: Settings) -> None:
            app.include_router(router, prefix="/pen")

        async with open_client(build_with(include)) as one, open_client(build_with(include_fixed)) as other:
            for _ in range(3):
                assert (await one.get("/pen/read")).json() == "pen"
                assert (await other.get("/pen/read")).json() == "default"
        assert sorted(early) == ["read:default"] * 2 + ["read:pen"] * 2


async def test_each_application_has_its_own_cache(shop: Shop) -> None:
    """An application does not get stored answers of an application with another secret key."""
    own, other_key = build(shop.router), build(shop.router, SECRET_KEY=SecretStr("x" * 64))
    async with open_client(own) as client, open_client(other_key) as other:
        for _ in range(3):
            assert (await client.get("/plain/pen")).status_code == 203
        assert shop.ran["plain"] == 1
        assert (await other.get("/plain/pen")).status_code == 203
        assert shop.ran["plain"] == 2


async def test_host_that_is_added_to_a_built_application(shop: Shop) -> None:
    application = build(shop.router)
    other = APIRouter()

    @other.get("/plain/{name}")
    async def plain(name: str) -> str:
        return "the other"

    application.router.routes.insert(0, Host("inner.test", app=other))
    async with open_client(application) as client:
        for _ in range(3):
            assert (await client.get("/plain/pen")).json() == {"name": "pen", "page": 1}
            assert (await client.get("http://inner.test/plain/pen")).json() == "the other"


async def test_route_added_to_a_built_application_is_not_early(shop: Shop, early: list[str]) -> None:
    application = build()
    application.include_router(shop.router, dependencies=[Depends(shop.watch)])
    async with open_client(application) as client:
        for times in range(1, 4):
            assert (await client.get("/plain/pen")).status_code == 203
            assert shop.ran["watch"] == times
    assert early == []

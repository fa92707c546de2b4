import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import fastapi
import pydantic
import pytest
from fastapi import Depends, FastAPI, WebSocket, WebSocketException
from fastapi.exceptions import FastAPIError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.routing import Match, Mount
from starlette.types import Message

from app.api import router
from app.core.config import settings
from app.core.routing import APIRouter, FlatRoute, add_routes
from app.core.setup import DOCS_ASSETS, create_application
from app.main import app
from tests.fixtures import open_client

Router = type[fastapi.APIRouter]


class Thing(BaseModel):
    name: str


async def guard(token: str) -> None: ...


def shop(outer: Router, inner: Router, *, looked_at: bool = False) -> fastapi.APIRouter:
    """A router in a router in a router, with something to inherit from each."""
    things = inner(tags=["things"], responses={404: {"description": "None"}})

    @things.get("/{name}", response_model=Thing, tags=["more"])
    async def read_thing(name: str) -> dict[str, str]:
        return {"name": name}

    @things.post("", status_code=201, responses={409: {"description": "Taken"}})
    async def write_thing(thing: Thing) -> Thing:
        return thing

    again = inner()

    @again.post("", status_code=201)
    async def write_again(thing: Thing) -> Thing:
        return thing

    if looked_at:
        assert len(things.routes) == 2
    stock = outer(prefix="/stock", dependencies=[Depends(guard)])
    stock.include_router(things, prefix="/things")
    stock.get("/", include_in_schema=False)(guard)
    top = outer(prefix="/v1", responses={400: {"description": "Wrong"}})
    top.include_router(stock)
    top.include_router(again, prefix="/again", tags=["again"])
    return top


def built(router: fastapi.APIRouter) -> FastAPI:
    application = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    add_routes(application, router)
    return application


def paths(application: FastAPI) -> list[str]:
    return [route.path for route in application.routes if isinstance(route, FlatRoute | Mount)]


def test_routes_lie_flat_in_the_application() -> None:
    """FastAPI looks included routers through again for each request, at every level."""
    assert {type(route) for route in app.routes} == {FlatRoute, Mount}
    some = {"/health", "/api/v1/users", "/api/v1/tier/{tier_name}/rate_limit/{id}", "/docs", DOCS_ASSETS}
    assert some <= set(paths(app))


@pytest.mark.parametrize("inner", [APIRouter, fastapi.APIRouter])
@pytest.mark.parametrize("outer", [APIRouter, fastapi.APIRouter])
@pytest.mark.parametrize("looked_at", [False, True])
class TestRouter:
    """Whatever is included in whatever, and looked at or not before: the application is that of FastAPI's routers."""

    def test_documents_the_same(self, outer: Router, inner: Router, looked_at: bool) -> None:
        expected = built(shop(fastapi.APIRouter, fastapi.APIRouter))
        found = built(shop(outer, inner, looked_at=looked_at))
        assert found.openapi() == expected.openapi()
        assert sorted(paths(found)) == ["/v1/again", "/v1/stock/", "/v1/stock/things", "/v1/stock/things/{name}"]

    async def test_answers_the_same(self, outer: Router, inner: Router, looked_at: bool) -> None:
        async with open_client(built(shop(outer, inner, looked_at=looked_at))) as client:
            assert (await client.get("/v1/stock/things/pen?token=x")).json() == {"name": "pen"}
            assert (await client.get("/v1/stock/things/pen")).status_code == 422  # what the router depends on
            assert (await client.post("/v1/again", json={"name": "pen"})).status_code == 201
            assert (await client.get("/v1/things/pen")).status_code == 404

    async def test_dependencies_can_be_replaced(self, outer: Router, inner: Router, looked_at: bool) -> None:
        application = built(shop(outer, inner, looked_at=looked_at))
        application.dependency_overrides[guard] = lambda: None
        async with open_client(application) as client:
            assert (await client.get("/v1/stock/things/pen")).json() == {"name": "pen"}


async def test_an_application_of_fastapi_takes_it_too() -> None:
    plain = FastAPI()
    plain.include_router(shop(APIRouter, APIRouter))
    async with open_client(plain) as client:
        assert (await client.get("/v1/stock/things/pen?token=x")).json() == {"name": "pen"}


@pytest.mark.parametrize("kind", [APIRouter, fastapi.APIRouter])
class TestLikeFastAPI:
    """What FastAPI's routers do is done, whichever kind they are."""

    def test_a_route_declared_after_its_router_is_included(self, kind: Router) -> None:
        inner, outer = kind(), kind(prefix="/v1")
        outer.include_router(inner, prefix="/late")
        inner.get("/thing")(guard)
        assert paths(built(outer)) == ["/v1/late/thing"]

    def test_a_router_that_is_looked_at_after_it_is_included(self, kind: Router) -> None:
        inner, outer = kind(), kind(prefix="/v1")
        outer.get("/first")(guard)
        inner.get("/thing")(guard)
        outer.include_router(inner, prefix="/inner")
        outer.get("/last")(guard)
        assert len(inner.routes) == 1
        assert paths(built(outer)) == ["/v1/first", "/v1/inner/thing", "/v1/last"]

    @pytest.mark.parametrize("prefix", ["things", "/things/"])
    def test_prefixes_that_make_no_path(self, kind: Router, prefix: str) -> None:
        with pytest.raises((AssertionError, ValueError)):
            kind().include_router(kind(), prefix=prefix)

    def test_nothing_before_and_nothing_behind(self, kind: Router) -> None:
        inner, outer = kind(), kind()
        inner.get("")(guard)

        def include_and_build() -> FastAPI:
            outer.include_router(inner)
            return built(outer)

        with pytest.raises((FastAPIError, ValueError), match="both"):
            include_and_build()

    def test_a_router_in_itself(self, kind: Router) -> None:
        router = kind()
        with pytest.raises(AssertionError):
            router.include_router(router)

    async def test_start_and_end(self, kind: Router) -> None:
        events: list[str] = []

        @asynccontextmanager
        async def run(_: FastAPI) -> AsyncIterator[None]:
            events.append("begins")
            yield
            events.append("ends")

        inner, outer = kind(), kind()
        inner.include_router(fastapi.APIRouter(lifespan=run))
        inner.add_event_handler("startup", lambda: events.append("starts"))
        outer.include_router(inner)
        application = built(outer)
        async with application.router.lifespan_context(application):
            assert {*events} == {"begins", "starts"}
        assert events[-1] == "ends"

    async def test_websockets_and_mounted_applications(self, kind: Router) -> None:
        async def refuse(websocket: WebSocket) -> None:
            raise WebSocketException(1008)

        async def talk(websocket: WebSocket) -> None:
            await websocket.accept()

        inner, outer = kind(), kind(prefix="/v1", dependencies=[Depends(refuse)])
        inner.websocket("/talk")(talk)
        inner.mount("/more", built(shop(APIRouter, APIRouter)))
        outer.include_router(inner, prefix="/inner")
        application = built(outer)
        sent = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/v1/inner/talk", "headers": [], "query_string": b"", "app": application}
        await application({**scope, "subprotocols": [], "extensions": {}}, receive, send)
        assert [message["type"] for message in sent] == ["websocket.close"]
        async with open_client(application) as client:
            assert (await client.get("/v1/inner/more/v1/stock/things/pen?token=x")).json() == {"name": "pen"}

    async def test_routes_of_a_class_of_their_own(self, kind: Router) -> None:
        class OwnRoute(APIRoute):
            pass

        inner, outer = fastapi.APIRouter(route_class=OwnRoute), kind(prefix="/v1")
        inner.get("/thing")(guard)
        outer.include_router(inner)
        (route,) = built(outer).routes
        assert isinstance(route, OwnRoute)
        assert route.path == "/v1/thing"


class TestFormerPydantic:
    @pytest.fixture(autouse=True)
    def _not_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("pydantic.v1")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(pydantic, "v1", raising=False)

    def test_it_is_not_loaded(self) -> None:
        create_application(router, settings, exception_handlers={}, docs_guard=guard)
        assert "pydantic.v1" not in sys.modules

    def test_its_models_are_refused(self) -> None:
        class FormerThing(import_module("pydantic.v1").BaseModel):  # type: ignore[misc]
            name: str

        former = APIRouter()
        former.get("/thing", response_model=FormerThing)(guard)
        with pytest.raises(FastAPIError, match=r"pydantic\.v1 models are no longer supported"):
            create_application(former, settings, exception_handlers={}, docs_guard=guard)


def test_applications_can_be_built_again() -> None:
    router = shop(APIRouter, APIRouter)
    first, second = built(router), built(router)
    assert first.openapi() == second.openapi()
    assert {*map(id, first.routes)}.isdisjoint(map(id, second.routes))


@pytest.mark.parametrize(
    ("template", "path", "root_path", "match"),
    [
        ("/user/{username}/tier", "/user/jane/tier", "", Match.FULL),
        ("/user/{username}/tier", "/user/jane/tier", "/prefix", Match.FULL),
        ("/user/{username}/tier", "/prefix/user/jane/tier", "/prefix", Match.FULL),
        ("/user/{username}/tier", "/user/jane", "", Match.NONE),
        ("/user/{username}/tier", "/user/jane/tier/", "", Match.NONE),
        ("/user/{username}/tier", "/users/jane/tier", "", Match.NONE),
        ("/user/{username}/tier", "/USER/jane/tier", "", Match.NONE),
        ("/user/{username}/tier", "", "", Match.NONE),
        ("/files/{name:path}", "/files/a/b/c", "", Match.FULL),
        ("/files/{name:path}", "/files/", "", Match.FULL),
        ("/files/{name:path}", "/files", "", Match.NONE),
        ("/files/{name:own}", "/files/a/b/c", "", Match.FULL),
    ],
)
def test_look_at_the_outline_changes_nothing(template: str, path: str, root_path: str, match: Match) -> None:
    class OwnConvertor(PathConvertor):
        pass

    async def endpoint() -> None: ...

    register_url_convertor("own", OwnConvertor())
    route = FlatRoute(template, endpoint, methods=["GET"])
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "root_path": root_path}
    assert route.matches(scope)[0] is match
    if match is Match.FULL:
        assert route.matches({**scope, "method": "PUT"})[0] is Match.PARTIAL

from typing import Any

import fastapi
import pytest
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.routing import Match, Mount

from app.core.routing import APIRouter, FlatRoute, add_routes
from app.core.setup import DOCS_ASSETS
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
    ],
)
def test_look_at_the_outline_changes_nothing(template: str, path: str, root_path: str, match: Match) -> None:
    async def endpoint() -> None: ...

    route = FlatRoute(template, endpoint, methods=["GET"])
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "root_path": root_path}
    assert route.matches(scope)[0] is match
    if match is Match.FULL:
        assert route.matches({**scope, "method": "PUT"})[0] is Match.PARTIAL

"""What is said about wrong `@cache` routes, and that the service has none."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Cookie, Depends, Header, Query, Request, Response
from fastapi.requests import HTTPConnection
from pydantic import BaseModel

from app.api.dependencies import ReaderDep, SessionDep, get_optional_user
from app.api.paginated import PageDep
from app.core.cache import cache
from app.core.cache_checker import find_cache_faults
from app.main import app as the_app
from tests.environment import SRC
from tests.fixtures import RunServer
from tests.integration.own_app import MODULE


def test_the_service_has_none() -> None:
    assert find_cache_faults(the_app.routes) == []


@pytest.fixture
def router() -> APIRouter:
    """One thing is read, and changed, under `{name}_thing:{thing_id}`."""
    router = APIRouter()

    @router.get("/{name}/thing/{thing_id}")
    @cache("{name}_thing", resource_id_name="thing_id")
    async def read(request: Request, name: str, thing_id: int, db: ReaderDep) -> None: ...

    @router.patch("/{name}/thing/{id}")
    @cache("{name}_thing", resource_id_name="id", pattern_to_invalidate_extra=["{name}_list:*"])
    async def patch(request: Request, name: str, id: int) -> None: ...

    return router


def add(router: APIRouter, endpoint: Any, prefix: str = "{name}_list", id_name: str = "name") -> None:
    router.get("/{name}/list")(cache(prefix, resource_id_name=id_name)(endpoint))


def the_fault(router: APIRouter) -> str:
    (fault,) = find_cache_faults(router.routes)
    route, _, text = fault.partition(": ")
    assert route == "GET /{name}/list"
    return text


def test_right_ones(router: APIRouter) -> None:
    async def lists(
        request: Request, name: str, session: SessionDep, page: int = 1, size: Annotated[int, Query(alias="s")] = 1
    ) -> None: ...

    add(router, lists, "{name}_list:{page}:{size}")
    assert find_cache_faults(router.routes) == []


class TestNeverRemoved:
    @pytest.mark.parametrize(
        "prefix", ["{name}_lists", "list", "{name}_thing:list", "{name}_{name}_list", "{name}_lis", "all_list"]
    )
    def test_under_another_key(self, router: APIRouter, prefix: str) -> None:
        async def lists(request: Request, name: str) -> None: ...

        add(router, lists, prefix)
        assert the_fault(router).startswith(f"no route that writes removes what is stored under '{prefix}:{{name}}';")

    @pytest.mark.parametrize("pattern", ["*", "{name}_li*", "?_list:*", "[^a]_l[hi]st:?", "\\{name}_list:*"])
    def test_by_patterns_of_any_kind(self, router: APIRouter, pattern: str) -> None:
        async def lists(request: Request, name: str) -> None: ...
        async def write(request: Request, name: str) -> None: ...

        add(router, lists)
        listed = router.routes[-1]
        only = APIRouter()
        only.routes.append(listed)
        assert len(find_cache_faults(only.routes)) == 1
        only.post("/write")(cache("x", resource_id_name="name", pattern_to_invalidate_extra=[pattern])(write))
        assert find_cache_faults(only.routes) == []

    @pytest.mark.parametrize("extra", [{"{other}_list": "{other}"}, {"{other}_list": "x"}])
    def test_by_extra_keys(self, extra: dict[str, str]) -> None:
        async def lists(request: Request, name: str) -> None: ...
        async def write(request: Request, other: str) -> None: ...

        router = APIRouter()
        add(router, lists)
        router.put("/write")(cache("x", resource_id_name="other", to_invalidate_extra=extra)(write))
        is_removed = "x" not in extra.values()
        assert (find_cache_faults(router.routes) == []) is is_removed

    def test_by_another_read(self) -> None:
        async def lists(request: Request, name: str) -> None: ...

        router = APIRouter()
        add(router, lists)
        add(router, lists)
        assert len(find_cache_faults(router.routes)) == 2


class Filter(BaseModel):
    text: str = ""


class Order:
    def __init__(self, order: str = "id") -> None:
        self.order = order


async def get_deep_order(order: Annotated[Order, Depends()]) -> str:
    return order.order


class TestNotInTheKey:
    async def check(self, router: APIRouter, endpoint: Any, *names: str) -> None:
        add(router, endpoint)
        faults = find_cache_faults(router.routes)
        assert len(faults) == len(names)
        for name in names:
            assert any(f": the answer may depend on '{name}', which is not in the key" in fault for fault in faults)

    async def test_query(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str, page: int = 1, size: int = 10) -> None: ...

        await self.check(router, lists, "page", "size")

    async def test_alias(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str, size: Annotated[int, Query(alias="s")] = 1) -> None: ...

        await self.check(router, lists, "size")

    async def test_model_of_the_query(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str, wanted: Annotated[Filter, Query()]) -> None: ...

        await self.check(router, lists, "wanted")

    async def test_dependency(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str, page: PageDep) -> None: ...

        await self.check(router, lists, "page", "items_per_page")

    async def test_dependency_of_a_dependency(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str, order: Annotated[str, Depends(get_deep_order)]) -> None: ...

        await self.check(router, lists, "order")

    def test_dependency_whose_value_is_in_the_key(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str, order: Annotated[str, Depends(get_deep_order)]) -> None: ...

        add(router, lists, "{name}_list:{order}")
        assert find_cache_faults(router.routes) == []

    def test_dependency_that_asks_for_what_is_in_the_key(self, router: APIRouter) -> None:
        async def lists(
            request: Request, name: str, order: str, by: Annotated[str, Depends(get_deep_order)]
        ) -> None: ...

        add(router, lists, "{name}_list:{order}")
        assert find_cache_faults(router.routes) == []

    def test_path(self, router: APIRouter) -> None:
        async def lists(request: Request, owner: str, name: str) -> None: ...

        router.get("/{owner}/{name}/list")(cache("{name}_list", resource_id_name="name")(lists))
        (fault,) = find_cache_faults(router.routes)
        assert fault == (
            "GET /{owner}/{name}/list: the answer may depend on 'owner', which is not in the key '{name}_list:{name}'; "
            "make it a parameter of the endpoint and put {owner} into the key"
        )


async def look_at_header(language: Annotated[str, Header()] = "en") -> str:
    return language


async def look_at_cookie(_: Annotated[str, Depends(look_at_header)], theme: Annotated[str, Cookie()] = "") -> str:
    return theme


async def look_at_request(request: Request) -> str | None:
    return request.headers.get("accept-language")


class LookAtConnection:
    def __init__(self, connection: HTTPConnection) -> None:
        self.address = connection.client


class Look:
    def __call__(self, http: Request) -> str | None:
        return http.cookies.get("theme")


class TestLooksAtCaller:
    @pytest.mark.parametrize("look", [look_at_header, look_at_cookie, get_optional_user])
    def test_declared(self, router: APIRouter, look: Any) -> None:
        """`create_application` refuses these; a route that is added to a built application has this only."""

        async def lists(request: Request, name: str, seen: Annotated[Any, Depends(look)]) -> None: ...

        add(router, lists)
        assert the_fault(router).startswith("the answer may depend on who asks, and is given to everybody")

    @pytest.mark.parametrize(
        ("look", "attribute"),
        [(look_at_request, "headers"), (LookAtConnection, "client"), (Look(), "cookies")],
    )
    def test_in_the_instructions_of_a_dependency(self, router: APIRouter, look: Any, attribute: str) -> None:
        async def inner(seen: Annotated[Any, Depends(look)]) -> None: ...
        async def lists(request: Request, name: str, seen: Annotated[Any, Depends(inner)]) -> None: ...

        add(router, lists)
        assert f" looks at request.{attribute}, so the answer may depend on who asks" in the_fault(router)

    def test_in_the_endpoint_s_own(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str) -> dict[str, Any]:
            return {"user": request.user, "page": request.query_params.get("page")}

        add(router, lists)
        who, what = find_cache_faults(router.routes)
        assert "looks at request.query_params, so the answer may depend on what its key does not name" in who
        assert "looks at request.user, so the answer may depend on who asks" in what

    def test_inside_a_function_or_an_expression_in_it(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str) -> list[str]:
            return [each for each in ("a", "b") if any(value == each for value in request.headers.values())]

        add(router, lists)
        assert "looks at request.headers, so the answer may depend on who asks" in the_fault(router)

    def test_another_one_s_headers(self, router: APIRouter) -> None:
        async def lists(request: Request, response: Response, name: str) -> None:
            response.headers["X-Name"] = request.method

        add(router, lists)
        assert find_cache_faults(router.routes) == []


WRONG = """
@router.get("/{name}/list")
@cache("{name}_list", resource_id_name="name")
async def lists(request: Request, name: str, page: int = 1) -> None: ...
"""


@pytest.mark.parametrize("environment", ["local", "production"])
async def test_said_at_the_start_in_local(run_server: RunServer, tmp_path: Path, environment: str) -> None:
    (tmp_path / "own.py").write_text(MODULE.replace("{routes}", WRONG))
    server = await run_server(
        ["uvicorn", "own:app", "--port", "{port}"],
        environment={"PYTHONPATH": str(SRC), "ENVIRONMENT": environment},
        cwd=tmp_path,
    )
    said = [line for line in server.output.splitlines() if "cache used wrongly" in line]
    assert len(said) == (2 if environment == "local" else 0)
    assert all("GET /{name}/list: " in line for line in said)

"""The checker's messages about faulty `@cache` routes; the service has none."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Query, Request, Response
from fastapi.requests import HTTPConnection
from pydantic import BaseModel

from app.api.dependencies import ReaderDep, SessionDep, get_optional_user
from app.api.paginated import PageDep
from app.core.cache import cache
from app.main import app as the_app
from scripts import check_cache
from scripts.check_cache import find_cache_faults
from tests.fixtures import RunProgram
from tests.integration.own_app import build


def test_the_service_has_none() -> None:
    assert find_cache_faults(the_app) == []


@pytest.fixture
def router() -> APIRouter:
    """A router with a cached read and a write of `{name}_thing:{thing_id}`."""
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


def faults_of(router: APIRouter) -> list[str]:
    """Return the faults of an application without `create_application`, which refuses some of them."""
    app = FastAPI()
    app.include_router(router)
    return find_cache_faults(app)


def the_fault(router: APIRouter) -> str:
    (fault,) = faults_of(router)
    route, _, text = fault.partition(": ")
    assert route == "GET /{name}/list"
    return text


def test_right_ones(router: APIRouter) -> None:
    async def lists(
        request: Request, name: str, session: SessionDep, page: int = 1, size: Annotated[int, Query(alias="s")] = 1
    ) -> None: ...

    add(router, lists, "{name}_list:{page}:{size}")
    assert faults_of(router) == []


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
        assert len(faults_of(only)) == 1
        only.post("/write")(cache("x", resource_id_name="name", pattern_to_invalidate_extra=[pattern])(write))
        assert faults_of(only) == []

    @pytest.mark.parametrize("extra", [{"{other}_list": "{other}"}, {"{other}_list": "x"}])
    def test_by_extra_keys(self, extra: dict[str, str]) -> None:
        async def lists(request: Request, name: str) -> None: ...
        async def write(request: Request, other: str) -> None: ...

        router = APIRouter()
        add(router, lists)
        router.put("/write")(cache("x", resource_id_name="other", to_invalidate_extra=extra)(write))
        is_removed = "x" not in extra.values()
        assert (faults_of(router) == []) is is_removed

    def test_by_another_read(self) -> None:
        async def lists(request: Request, name: str) -> None: ...

        router = APIRouter()
        add(router, lists)
        add(router, lists)
        assert len(faults_of(router)) == 2


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
        faults = faults_of(router)
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
        assert faults_of(router) == []

    def test_dependency_that_asks_for_what_is_in_the_key(self, router: APIRouter) -> None:
        async def lists(
            request: Request, name: str, order: str, by: Annotated[str, Depends(get_deep_order)]
        ) -> None: ...

        add(router, lists, "{name}_list:{order}")
        assert faults_of(router) == []

    def test_path(self, router: APIRouter) -> None:
        async def lists(request: Request, owner: str, name: str) -> None: ...

        router.get("/{owner}/{name}/list")(cache("{name}_list", resource_id_name="name")(lists))
        (fault,) = faults_of(router)
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

    def look_at_headers(self, http: Request) -> str | None:
        return http.headers.get("x")


class LookAtHeaders:
    def __init__(self, request: Request) -> None:
        self.length = len(request.headers)


class LookWhenCalled:
    def __call__(self, request: Request) -> Any:
        return {name.lower() for name in request.headers}


class InheritsLook(LookWhenCalled):
    pass


def look_at_parts(part: str, request: Request) -> Any:
    return [request.headers[each] for each in part]


@functools.wraps(look_at_request)
async def look_from_inside(*arguments: Any, **named: Any) -> Any:
    return await look_at_request(*arguments, **named)


async def do_not_look(request: Request) -> None: ...


@functools.wraps(do_not_look)
async def look_from_outside(request: Request) -> str | None:
    return request.headers.get("x")


def annotated(function: Any) -> Any:
    function.__annotations__["request"] = Request
    return function


lambda_that_looks = annotated(lambda request: request.headers.get("x"))
lambda_that_does_not = annotated(lambda request: None)


@dataclass
class DataclassLook:
    request: Request


Endpoint = Callable[..., Awaitable[None]]

source_less: dict[str, Any] = {"Request": Request}
exec(  # noqa: S102  (the only way to get functions without source)
    """
def look(request: Request):
    return request.headers

class Look:
    def __init__(self, request: Request):
        self.headers = request.headers
""",
    source_less,
)


class TestLooksAtCaller:
    @pytest.mark.parametrize("look", [look_at_header, look_at_cookie, get_optional_user])
    def test_declared(self, router: APIRouter, look: Any) -> None:
        """`create_application` refuses these; for routes added to a built application there is only this check."""

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
        who, what = faults_of(router)
        assert "looks at request.query_params, so the answer may depend on what its key does not name" in who
        assert "looks at request.user, so the answer may depend on who asks" in what

    def test_inside_a_function_or_an_expression_in_it(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str) -> list[str]:
            return [each for each in ("a", "b") if any(value == each for value in request.headers.values())]

        add(router, lists)
        assert "looks at request.headers, so the answer may depend on who asks" in the_fault(router)

    def test_in_a_closure_or_a_nested_class(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str) -> None:
            def inner() -> str:
                return request.base_url.path

            class Lazy:
                cookies = request.cookies

            inner()

        add(router, lists)
        url, cookies = faults_of(router)
        assert "looks at request.base_url" in url
        assert "looks at request.cookies" in cookies

    @pytest.mark.parametrize(
        "look",
        [
            functools.partial(look_at_request),
            functools.partial(functools.partial(look_at_parts, "x")),
            functools.partial(LookAtHeaders),
            functools.partial(Look().look_at_headers),
            Look().look_at_headers,
            look_from_outside,
            look_from_inside,
            LookAtHeaders,
            InheritsLook(),
        ],
    )
    def test_every_kind_of_callable(self, router: APIRouter, look: Any) -> None:
        async def lists(request: Request, name: str, seen: Annotated[Any, Depends(look)]) -> None: ...

        add(router, lists)
        assert " looks at request.headers, so the answer may depend on who asks" in the_fault(router)

    def test_lambdas(self, router: APIRouter) -> None:
        async def lists(
            request: Request,
            name: str,
            ways: Annotated[Any, Depends(lambda_that_looks)],
            other: Annotated[Any, Depends(lambda_that_does_not)],
        ) -> None: ...

        add(router, lists)
        assert "<lambda> looks at request.headers, so the answer may depend on who asks" in the_fault(router)

    def test_text_that_is_not_indented(self, router: APIRouter) -> None:
        async def lists(request: Request, name: str) -> str:
            text = """
this line is not indented
"""
            return text + str(request.client)

        add(router, lists)
        assert "looks at request.client" in the_fault(router)

    def test_decorators_and_defaults_do_not_count(self, router: APIRouter) -> None:
        class Outer:
            headers = "text"

        request = Outer()

        def decorate(_: str) -> Callable[[Endpoint], Endpoint]:
            return lambda endpoint: endpoint

        @decorate(request.headers)
        async def lists(request: Request, name: str = request.headers) -> None: ...

        add(router, lists, "{name}_list")
        assert faults_of(router) == []

    @pytest.mark.parametrize("look", [DataclassLook, source_less["look"], source_less["Look"]])
    def test_function_without_source(self, router: APIRouter, look: Any) -> None:
        """The checker cannot inspect a function without source."""

        async def lists(request: Request, name: str, seen: Annotated[Any, Depends(look)]) -> None: ...

        add(router, lists)
        assert faults_of(router) == []

    def test_another_one_s_headers(self, router: APIRouter) -> None:
        async def lists(request: Request, response: Response, name: str) -> None:
            response.headers["X-Name"] = request.method

        add(router, lists)
        assert faults_of(router) == []


def test_names_the_path_with_its_prefix(router: APIRouter) -> None:
    async def lists(request: Request, name: str) -> None: ...

    add(router, lists, "other")
    app = FastAPI()
    outer = APIRouter()
    outer.include_router(router, prefix="/inner")
    app.include_router(outer, prefix="/outer")
    (fault,) = find_cache_faults(app)
    assert fault.startswith("GET /outer/inner/{name}/list: ")


class TestCommand:
    async def test_service(self, run_program: RunProgram) -> None:
        program = await run_program("scripts.check_cache")
        assert await program.wait() == 0

    def test_wrong_route(
        self, router: APIRouter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def lists(request: Request, name: str, page: int = 1) -> None: ...

        add(router, lists, "other")
        monkeypatch.setattr(check_cache, "app", build(router))
        assert check_cache.main() == 1
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("GET /{name}/list: ") for line in lines)

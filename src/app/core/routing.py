"""Routes as the application wants them: each built once, and flat."""

import functools
import inspect
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, cast

import fastapi
from fastapi import FastAPI, params
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.convertors import FloatConvertor, IntegerConvertor, StringConvertor, UUIDConvertor
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

Declared = tuple[str, Callable[..., Any], dict[str, Any]]
"""The path, the endpoint and the options of a route that is to be built."""


class APIRouter(fastapi.APIRouter):
    """FastAPI's router, but what is declared on it is built once, by the application: FastAPI builds a route where it
    is declared, and again for each router that includes it, which would take a quarter of the start.

    FastAPI's own routers include it, and it includes them; what it has declared by then is built as they build it.
    """

    def __init__(
        self,
        *,
        prefix: str = "",
        tags: Sequence[str] = (),
        dependencies: Sequence[params.Depends] = (),
        responses: Mapping[int | str, dict[str, Any]] | None = None,
    ) -> None:
        # In their order: routes, and routers with the prefix under which they are included.
        self._pending: list[Declared | tuple[str, APIRouter]] = []
        super().__init__(prefix=prefix, tags=[*tags], dependencies=dependencies, responses={**(responses or {})})

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes for whoever looks at them before the application does: they are built then, as FastAPI does it."""
        pending, self._pending = self._pending, []
        for item in pending:
            if len(item) == 2:
                prefix, router = item
                super().include_router(router, prefix=prefix)
            else:
                path, endpoint, options = item
                super().add_api_route(path, endpoint, **options)
        return self.built

    @routes.setter
    def routes(self, routes: list[BaseRoute]) -> None:
        self.built = routes

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._pending.append((path, endpoint, options))

    def include_router(self, router: fastapi.APIRouter, *, prefix: str = "", **options: Any) -> None:
        is_plain = not (options or router.on_startup or router.on_shutdown)
        if isinstance(router, APIRouter) and router is not self and not router.built and is_plain:
            if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
                raise ValueError(f"the prefix {prefix!r} must begin with a slash and not end with one")
            self._pending.append((prefix, router))
        else:
            super().include_router(router, prefix=prefix, **options)

    @property
    def is_built(self) -> bool:
        """Whether something of it is, here or in a router below."""
        return bool(self.built) or any(item[1].is_built for item in self._pending if len(item) == 2)

    def declared(self) -> Iterator[Declared]:
        """What is to be built, with all that it inherits from this router."""
        for item in self._pending:
            if len(item) == 2:
                below, router = item
                routes = [(below + path, endpoint, options) for path, endpoint, options in router.declared()]
            else:
                routes = [item]
            for path, endpoint, options in routes:
                inherited = {
                    "tags": [*self.tags, *(options.get("tags") or [])],
                    "dependencies": [*self.dependencies, *(options.get("dependencies") or [])],
                    "responses": {**self.responses, **(options.get("responses") or {})},
                }
                yield self.prefix + path, endpoint, {**options, **inherited}


def add_routes(app: FastAPI, router: fastapi.APIRouter) -> None:
    """Put the routes of a router, with all that they inherit, directly into the application.

    FastAPI looks for the route anew in each router that it enters: three routers deep, that is half of a small request.
    """
    # What the router does at the start and at the end; its routes follow.
    app.include_router(fastapi.APIRouter(lifespan=router.lifespan_context))
    app.router.routes.pop()
    app.router.route_class = FlatRoute
    app.router.generate_unique_id_function = attrgetter("name")
    if isinstance(router, APIRouter) and not router.is_built:
        for path, endpoint, options in router.declared():
            if not path:
                raise ValueError(f"{endpoint.__name__}: the prefix and the path cannot both be empty")
            app.router.add_api_route(path, endpoint, **options)
    else:
        _add_built(app, router.routes)


def _add_built(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Build once more what routers of FastAPI's have built."""
    options = inspect.signature(APIRoute).parameters.keys() - {"path", "endpoint", "form_limits", "max_body_size"}
    for context in iter_route_contexts(routes):
        original = context.original_route
        if isinstance(original, APIRoute):
            inherited: dict[str, Any] = {name: getattr(context, name) for name in options}
            inherited |= {"form_limits": original.form_limits, "max_body_size": original.max_body_size}
            inherited |= {"dependency_overrides_provider": app, "generate_unique_id_function": attrgetter("name")}
            kind = FlatRoute if type(original) is APIRoute else type(original)
            app.router.routes.append(kind(cast(str, context.path), original.endpoint, **inherited))
        else:  # a WebSocket's or a mounted application's, with the prefixes before it
            app.router.routes.append(cast(BaseRoute, context._effective_route))  # noqa: SLF001


class FlatRoute(APIRoute):
    """Looks at the outline of the path before it tries its pattern: most of the routes that are tried are not meant."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope["path"]
        # Below a root path the path begins with that.
        if not scope.get("root_path") and not (path.startswith(self._start) and path.count("/") in self._slashes):
            return Match.NONE, {}
        return super().matches(scope)

    @functools.cached_property
    def _start(self) -> str:
        return self.path.partition("{")[0]

    @functools.cached_property
    def _slashes(self) -> Container[int]:
        """How many there may be: a parameter that is neither text nor a number, such as a path, may hold some."""
        number = self.path.count("/")
        holds_none = (StringConvertor, IntegerConvertor, FloatConvertor, UUIDConvertor)
        is_fixed = all(type(convertor) in holds_none for convertor in self.param_convertors.values())
        return (number,) if is_fixed else range(sys.maxsize)


@contextmanager
def pydantic_v1_left_out() -> Iterator[None]:
    """FastAPI refuses the models of pydantic.v1, and would load all of that only to see that there are none."""
    if "pydantic.v1" in sys.modules:
        yield
        return
    modules = cast(dict[str, Any], sys.modules)
    modules["pydantic.v1"] = None  # an import fails meanwhile, which FastAPI takes for a no
    try:
        yield
    finally:
        del modules["pydantic.v1"]

"""Routes with `@cache`: checked when the application is built, and served early where the URL is known."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.types import ASGIApp

from app.core.cache.decorator import KEY, LEASE, cache_options, look_up, stored_response
from app.core.cache.store import store_of
from app.core.database import get_reader
from app.core.exceptions import InvalidRequestError

EARLY_ROUTES = "early_routes"
"""The attribute of `app.state` that has the routes which may be served early, each as its ASGI app.

A path would not identify a route: one in a mounted application may have the same.
"""
MAX_KNOWN_URLS = 4096
WITHOUT_BODY = {204, 205, 304}
MAX_URL_LENGTH = 200


class CachedRoute(APIRoute):
    """Serves stored answers before FastAPI parses and validates the request: `APIRouter(route_class=CachedRoute)`.

    It remembers the cache key of each URL that an endpoint has answered.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        options = cache_options(self)
        if options is None:
            return handle
        expiration, status = options.expiration, self.status_code or 200
        known: dict[tuple[str, bytes], str] = {}

        async def handle_cached(request: Request) -> Response:
            scope = request.scope
            # FastAPI keeps what an inclusion adds to a route, its ASGI app too, only in this entry of the scope.
            included = scope.get("fastapi", {}).get("effective_route_context")
            selected = included if included is not None and included.original_route is self else self
            if selected.app not in getattr(request.app.state, EARLY_ROUTES, ()):
                return await handle(request)
            url = scope["path"], scope["query_string"]
            key = known.get(url)
            store = store_of(request)
            if key is not None and store.is_open:
                body, scope[LEASE] = await look_up(store, key, expiration)
                if body is not None:
                    return stored_response(body, status)
            response = await handle(request)
            if key is None and KEY in scope and sum(map(len, url)) <= MAX_URL_LENGTH:
                if len(known) >= MAX_KNOWN_URLS:
                    known.clear()
                known[url] = scope[KEY]
            return response

        return handle_cached


def prepare_cached_routes(app: FastAPI) -> None:
    """Check each `@cache` against its route, and let the routes of `CachedRoute` serve early where they may.

    Raises InvalidRequestError for a method or response class that cannot work. A route with dependencies other than
    `get_reader` is not served early: they may refuse a request, or count it.
    """
    early = set[ASGIApp]()
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        options = cache_options(route) if isinstance(route, APIRoute) else None
        if not isinstance(route, APIRoute) or options is None:
            continue
        for method in route.methods or ():
            options.check_method(method)
        if "GET" in (route.methods or ()):
            _check_answer(route, context.response_class)
            # Those of the including routers are among the dependencies of the context.
            is_plain = all(each.call is get_reader for each in context.dependant.dependencies)
            if is_plain and route.methods == {"GET"} and route.body_field is None:
                early.add(context.app)
    setattr(app.state, EARLY_ROUTES, early)


def _check_answer(route: APIRoute, answers: Any) -> None:
    """Refuse routes whose answer is more than the stored bytes, or is not JSON.

    `answers` is the response class; FastAPI has a placeholder in place of the default, which is JSON.
    """
    fault = None
    if route.status_code in WITHOUT_BODY:
        fault = f"an answer of status {route.status_code} has no body that could be stored"
    elif isinstance(answers, type) and not issubclass(answers, JSONResponse):
        fault = f"@cache stores JSON, but the route answers with {answers.__name__}"
    elif route.dependant.response_param_name is not None:
        fault = "what it sets on its `Response` would be lost where the answer is stored"
    if fault is not None:
        raise InvalidRequestError(f"{route.name}: {fault}")

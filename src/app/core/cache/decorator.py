"""`@cache`: GET endpoints answer with stored bytes, other endpoints remove them once their change is committed."""

import functools
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ParamSpec, cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts, serialize_response
from starlette.routing import Host

from app.core.cache.options import CacheOptions
from app.core.cache.store import LEASE_START, MAX_ANSWER_BYTES, CacheStore, store_of
from app.core.database import get_reader, on_commit, session_of
from app.core.exceptions import InvalidRequestError, RedisUnavailableError
from app.core.http.context import matched_route

P = ParamSpec("P")

# How `StoredAnswers` (a middleware, before routing) and the wrapper of `@cache` (the endpoint, after it) work together:
# 1. `prepare_cached_routes` puts the routes whose answer depends on the URL alone into `app.state.early_routes`.
# 2. On such a route, the wrapper puts key, expiration and status under EARLY into the request's scope, and the
#    middleware remembers them for the URL.
# 3. For a URL that it remembers, the middleware looks the key up. It serves the answer, or puts the lease that it took
#    under LEASE into the scope, and the wrapper uses that instead of looking again. An empty lease: there is no cache.
EARLY = "app.cache.early"
LEASE = "app.cache.lease"
_NOT_STORED = "app.cache.not_stored"


def cache(
    key_prefix: str,
    resource_id_name: str | None = None,
    expiration: int = 3600,
    resource_id_type: type = int,
    to_invalidate_extra: Mapping[str, str] | None = None,
    pattern_to_invalidate_extra: Iterable[str] | None = None,
) -> Callable[[Callable[P, Awaitable[Any]]], Callable[P, Awaitable[Any]]]:
    """Cache a GET endpoint's answer for `expiration` seconds under `"{key_prefix}:{resource id}"`.

    On any other endpoint: remove that key, those of `to_invalidate_extra` (prefix: id) and those that match
    `pattern_to_invalidate_extra`, after the commit of the request's session. `{name}` in any of
    them stands for an argument. Raises CacheIdentificationInferenceError and InvalidRequestError on wrong use.
    """

    if not isinstance(key_prefix, str):
        raise InvalidRequestError('@cache takes the prefix of its keys: @cache("book")')

    def decorator(endpoint: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
        extra = to_invalidate_extra or {}, pattern_to_invalidate_extra
        options = CacheOptions(endpoint, key_prefix, resource_id_name, resource_id_type, *extra)

        @functools.wraps(endpoint)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            request = cast(Request, kwargs[options.request_name])
            options.check_method(request.method)
            store = store_of(request)
            if not store.is_open:
                return await endpoint(*args, **kwargs)
            if request.method == "GET":
                call = functools.partial(endpoint, *args, **kwargs)
                return await _serve(store, options.key(kwargs), expiration, request, call)
            answer = await endpoint(*args, **kwargs)
            remove = functools.partial(store.remove, options.keys(kwargs), options.patterns(kwargs))
            session = session_of(request)
            if session is None:
                await remove()
            else:
                on_commit(session, remove, even_if_unknown=True)
            return answer

        wrapper.cache_options = options  # type: ignore[attr-defined]  # read by `cache_options`
        endpoint.is_under_cache = True  # type: ignore[attr-defined]  # read by `prepare_cached_routes`
        return wrapper

    return decorator


def cache_options(route: APIRoute) -> CacheOptions | None:
    """The options of the `@cache` on the route's endpoint, or None."""
    options = getattr(route.endpoint, "cache_options", None)
    return options if isinstance(options, CacheOptions) else None


def prepare_cached_routes(app: FastAPI) -> None:
    """Check each `@cache`, and find the routes whose answer depends on the URL alone.

    Raises InvalidRequestError for a method or response class that cannot work. Routes with dependencies other than
    `get_reader` are left out: a dependency may refuse a request, or count it. A path does not identify a route (a
    mounted application may have the same one), its ASGI app does.
    """
    early, cached, uncached = set[Any](), set[Any](), set[Any]()
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, APIRoute):
            continue
        if (options := cache_options(route)) is None:
            uncached.add(route.endpoint)
            continue
        cached.add(options.endpoint)
        for method in route.methods or ():
            options.check_method(method)
        if "GET" in (route.methods or ()):
            _check_answer(route, context.response_class)
            # Those of the including routers are among the dependencies of the context.
            is_plain = all(each.call is get_reader for each in context.dependant.dependencies)
            if is_plain and route.methods == {"GET"} and route.body_field is None:
                early.add(context.app)
    for endpoint in uncached - cached:
        if hasattr(endpoint, "is_under_cache"):
            raise InvalidRequestError(f"{endpoint.__name__}: @cache stands below the decorator of the route")
    app.state.early_routes = early


def _check_answer(route: APIRoute, answers: Any) -> None:
    """Refuse routes whose answer is more than the stored bytes, or is not JSON; `answers` is the response class."""
    fault = None
    if route.status_code in {204, 205, 304}:
        fault = f"an answer of status {route.status_code} has no body that could be stored"
    elif isinstance(answers, type) and not issubclass(answers, JSONResponse):  # the default is no class, and is JSON
        fault = f"@cache stores JSON, but the route answers with {answers.__name__}"
    elif route.dependant.response_param_name is not None:
        fault = "@cache does not store the headers and cookies that it sets on its `Response`"
    if fault is not None:
        raise InvalidRequestError(f"{route.name}: {fault}")


def do_not_store(request: Request) -> None:
    """Leave the answer of this request to an endpoint with `@cache` unstored: an empty page, for example."""
    request.scope[_NOT_STORED] = True


async def look_up(store: CacheStore, key: str, expiration: int) -> tuple[bytes | None, bytes]:
    """Return the stored answer or None, and the lease under which one may be stored: empty without a usable cache."""
    lease = LEASE_START + os.urandom(16)
    try:
        return await store.fetch(key, lease, expiration), lease
    except RedisUnavailableError:
        return None, b""


async def _serve(
    store: CacheStore, key: str, expiration: int, request: Request, endpoint: Callable[[], Awaitable[Any]]
) -> Any:
    if LEASE in request.scope:  # `StoredAnswers` has looked already
        body, lease = None, request.scope[LEASE]
    else:
        body, lease = await look_up(store, key, expiration)
    if not lease:
        return await endpoint()
    if body is None:
        body = b""
        try:
            answer = await endpoint()
            if isinstance(answer, Response):
                return answer
            body = await _render(request, answer)
        finally:
            is_kept = len(body) <= MAX_ANSWER_BYTES and _NOT_STORED not in request.scope
            await store.store(key, lease, body if is_kept else b"", expiration)
    status = cast(APIRoute, request.scope["route"]).status_code or 200
    is_early = matched_route(request.scope).app in getattr(request.app.state, "early_routes", ())
    if is_early and not any(
        isinstance(each, Host) for each in request.app.routes
    ):  # then the URL alone selects no route
        request.scope[EARLY] = key, expiration, status
    return Response(body, status, media_type="application/json")


async def _render(request: Request, answer: Any) -> bytes:
    """Validate and encode an answer as FastAPI does for the route."""
    route = cast(APIRoute, request.scope["route"])
    # FastAPI types its own field as always there; it is None without a response model.
    body: Any = await serialize_response(
        field=route.response_field,
        response_content=answer,
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
        dump_json=True,
    )
    return body if isinstance(body, bytes) else bytes(JSONResponse(body).body)

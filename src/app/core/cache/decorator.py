"""`@cache`: GET endpoints answer with stored bytes, other endpoints remove them once their change is committed."""

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ParamSpec, cast

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, serialize_response
from starlette.routing import Host

from app.core.cache.options import CacheOptions
from app.core.cache.store import MAX_ANSWER_BYTES, CacheStore, store_of
from app.core.database import on_commit, session_of
from app.core.exceptions import RedisUnavailableError

P = ParamSpec("P")

# Notes in the scope of a request: what `StoredAnswers` may look up for this URL, and the lease that it has taken.
EARLY = "app.cache.early"
LEASE = "app.cache.lease"
EARLY_ROUTES = "early_routes"
"""The attribute of `app.state` with the routes that may be served early, each as its ASGI app.

A path does not identify a route: one of a mounted application may have the same.
"""
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

    def decorator(endpoint: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
        options = CacheOptions(
            endpoint,
            key_prefix,
            resource_id_name,
            resource_id_type,
            to_invalidate_extra or {},
            pattern_to_invalidate_extra or (),
        )

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
        return wrapper

    return decorator


def cache_options(route: APIRoute) -> CacheOptions | None:
    """The options of the `@cache` on the route's endpoint, or None."""
    options = getattr(route.endpoint, "cache_options", None)
    return options if isinstance(options, CacheOptions) else None


def do_not_store(request: Request) -> None:
    """Leave the answer of this request to an endpoint with `@cache` unstored: an empty page, for example."""
    request.scope[_NOT_STORED] = True


async def look_up(store: CacheStore, key: str, expiration: int) -> tuple[bytes | None, bytes]:
    """Return the stored answer or None, and the lease under which one may be stored: empty without a usable cache."""
    lease = store.new_lease()
    try:
        return await store.fetch(key, lease, expiration), lease
    except RedisUnavailableError:
        return None, b""


def stored_response(body: bytes, status: int) -> Response:
    return Response(body, status, media_type="application/json")


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
    if _is_served_early(request):
        request.scope[EARLY] = key, expiration, status
    return stored_response(body, status)


def _is_served_early(request: Request) -> bool:
    # FastAPI keeps the route as its routers have included it only in this entry of the scope.
    included = request.scope.get("fastapi", {}).get("effective_route_context")
    route = request.scope["route"]
    selected = included if included is not None and included.original_route is route else route
    has_hosts = any(isinstance(each, Host) for each in request.app.routes)  # then the URL alone selects no route
    return selected.app in getattr(request.app.state, EARLY_ROUTES, ()) and not has_hosts


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

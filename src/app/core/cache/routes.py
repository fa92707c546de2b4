"""Check each `@cache` against its route when the application is built, and decide which routes are served early."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts

from app.core.cache.decorator import EARLY_ROUTES, cache_options
from app.core.database import get_reader
from app.core.exceptions import InvalidRequestError

WITHOUT_BODY = {204, 205, 304}


def prepare_cached_routes(app: FastAPI) -> None:
    """Check each `@cache`, and let `StoredAnswers` serve the routes whose answer depends on the URL alone.

    Raises InvalidRequestError for a method or response class that cannot work. Routes with dependencies other than
    `get_reader` are not served early: a dependency may refuse a request, or count it.
    """
    early = set[Any]()
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, APIRoute) or (options := cache_options(route)) is None:
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
        fault = "@cache does not store the headers and cookies that it sets on its `Response`"
    if fault is not None:
        raise InvalidRequestError(f"{route.name}: {fault}")

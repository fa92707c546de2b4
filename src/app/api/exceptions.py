"""Turn the errors of `app.core.exceptions` into responses, and document them in OpenAPI with `responses(...)`."""

import json
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response, WebSocket, status
from fastapi.exceptions import RequestValidationError
from fastapi.requests import HTTPConnection
from fastapi.routing import iter_route_contexts
from fastapi.websockets import WebSocketState

from app.core import exceptions as errors
from app.core.database import Database
from app.core.http import route_template
from app.core.models import ErrorMessage
from app.core.setup import default_exception_handlers
from app.crud.crud_base import CRUDBase
from app.crud.statements import Lookup

T = TypeVar("T")
logger = logging.getLogger(__name__)

STATUS_CODES: Mapping[type[errors.AppError], int] = {
    errors.AppError: 500,  # a subclass with neither an entry nor an ancestor below
    errors.UnauthorizedError: 401,
    errors.ForbiddenError: 403,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.InvalidValueError: 422,
    errors.RateLimitExceededError: 429,
    errors.ServiceUnavailableError: 503,
}


def ensure_found(found: T | None, what: str) -> T:
    """Return the row that a query found, or the number of rows; raise NotFoundError for None and 0."""
    if found is None or found == 0:
        raise errors.NotFoundError(f"{what} not found")
    return found


async def ensure_found_under(found: T | None, what: str, db: Database, parent: Lookup) -> T:
    """Return what a write found, as `ensure_found` does; if the row of `parent` is missing, the error names that."""
    if not found and not await CRUDBase[Any, Any, Any](parent.model).exists(db, **parent.filters):
        what = parent.model.__name__
    return ensure_found(found, what)


def malformed(field: str, message: str, kind: str = "value_error") -> RequestValidationError:
    """Make the 422 of a malformed field of the body, for a check that the schema cannot make."""
    return RequestValidationError([{"type": kind, "loc": ("body", field), "msg": message}])


def status_code(error: type[errors.AppError]) -> int:
    """Return the status of the error itself or of its nearest ancestor in the table."""
    return next(STATUS_CODES[ancestor] for ancestor in error.__mro__ if ancestor in STATUS_CODES)


def responses(*documented: type[errors.AppError]) -> dict[int | str, dict[str, Any]]:
    """Document the errors of an endpoint: `responses=responses(NotFoundError, …)`."""
    details: dict[int, list[str]] = {}
    for error in documented:
        details.setdefault(status_code(error), []).append(error.detail)
    return {status: {"model": ErrorMessage, "description": "; or: ".join(texts)} for status, texts in details.items()}


def _json(status: int, detail: Any, headers: Mapping[str, str] | None = None) -> Response:
    # ASCII only: a lone surrogate from the request could not be encoded otherwise.
    body = json.dumps({"detail": detail}).encode()
    return Response(body, status, headers, media_type="application/json")


async def handle_app_error(connection: HTTPConnection, error: errors.AppError) -> Response:
    code, detail = status_code(type(error)), error.detail
    if code == 422:
        field = getattr(error, "field", None)
        place = next((each for each in ("path", "query") if field in getattr(connection, f"{each}_params")), "body")
        loc = [] if field is None else [place, field]
        logger.warning("value refused", extra={"path": route_template(connection), "loc": loc, "error": repr(error)})
        return _json(code, [{"type": "value_error", "loc": loc, "msg": detail}])
    response = _json(code, detail, error.headers)
    if isinstance(connection, WebSocket):  # Starlette sends no response of a handler here
        if connection.application_state is WebSocketState.CONNECTING:
            await connection.send_denial_response(response)
        else:
            await connection.close(status.WS_1008_POLICY_VIOLATION, error.detail[:100])
    return response


async def handle_validation_error(_: Request, error: RequestValidationError) -> Response:
    """Say what is malformed and where, without the input: it may be a password."""
    return _json(422, [{name: item[name] for name in ("type", "loc", "msg")} for item in error.errors()])


async def handle_method_not_allowed(request: Request, error: HTTPException) -> Response:
    """List the methods of all routes with this path; Starlette lists those of the first route only."""
    if "route" not in request.scope:  # the answer of a mounted application
        return _json(405, error.detail, error.headers)
    path = route_template(request)
    contexts = [context for context in iter_route_contexts(request.app.routes) if context.path == path]
    methods = {method for context in contexts for method in context.methods or ()}
    methods |= {"HEAD"} if "GET" in methods else set()
    return _json(405, error.detail, {"Allow": ", ".join(sorted(methods))})


# `create_application` uses these by default. They are added here, since `core` must not import `api`.
exception_handlers = default_exception_handlers
exception_handlers[405] = handle_method_not_allowed
exception_handlers[errors.AppError] = handle_app_error
exception_handlers[RequestValidationError] = handle_validation_error

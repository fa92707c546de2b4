import json

import pytest
from fastapi import Request
from starlette.routing import Route

from app.api.exceptions import handle_app_error, responses, status_code
from app.core.exceptions import (
    AppError,
    ConflictError,
    DatabaseUnavailableError,
    DuplicateValueError,
    ForbiddenError,
    InvalidValueError,
    MissingReferenceError,
    NotFoundError,
    RateLimitExceededError,
    RedisUnavailableError,
    ServiceUnavailableError,
    StillReferencedError,
    UnauthorizedError,
)
from app.core.models import ErrorMessage
from app.crud.crud_users import LastSuperuserError

STATUS_CODES = {
    AppError: 500,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    MissingReferenceError: 404,
    ConflictError: 409,
    DuplicateValueError: 409,
    StillReferencedError: 409,
    LastSuperuserError: 409,
    InvalidValueError: 422,
    RateLimitExceededError: 429,
    ServiceUnavailableError: 503,
    DatabaseUnavailableError: 503,
    RedisUnavailableError: 503,
}


def descendants(error: type[AppError]) -> set[type[AppError]]:
    return {error}.union(*(descendants(child) for child in error.__subclasses__()))


def test_every_error_is_listed_here() -> None:
    named = {error for error in descendants(AppError) if error.__module__.startswith("app.")}
    assert named == {*STATUS_CODES}


@pytest.mark.parametrize(("error", "expected"), STATUS_CODES.items())
def test_status(error: type[AppError], expected: int) -> None:
    assert status_code(error) == expected
    assert isinstance(error.detail, str)


def test_status_of_a_class_without_an_entry() -> None:
    class PaymentRequiredError(AppError): ...

    class GoneError(NotFoundError): ...

    assert (status_code(PaymentRequiredError), status_code(GoneError)) == (500, 404)


@pytest.mark.parametrize("error", STATUS_CODES)
async def test_response(error: type[AppError]) -> None:
    scope = {"type": "http", "path_params": {}, "query_string": b"", "route": Route("/sample", print)}
    response = await handle_app_error(Request(scope), error("Read \ud800 this"))
    assert response.status_code == STATUS_CODES[error]
    in_list = {"type": "value_error", "loc": [], "msg": "Read \ud800 this"}
    detail = [in_list] if response.status_code == 422 else "Read \ud800 this"
    assert response.body == json.dumps({"detail": detail}).encode()
    if response.status_code == 401:
        assert response.headers["WWW-Authenticate"] == "Bearer"
    if response.status_code == 503:
        assert response.headers["Retry-After"].isdigit()


def test_documentation_joins_what_has_one_status() -> None:
    documented = responses(DuplicateValueError, LastSuperuserError, NotFoundError)
    assert documented.keys() == {409, 404}
    assert documented[404] == {"model": ErrorMessage, "description": NotFoundError.detail}
    assert documented[409]["description"] == f"{DuplicateValueError.detail}; or: {LastSuperuserError.detail}"

"""The errors of the service. `app.api.exceptions` turns an AppError into a response; the others are faults of the code.

AppError
├── UnauthorizedError           no credentials, or invalid ones
├── ForbiddenError              signed in, but not allowed
├── NotFoundError
│   └── MissingReferenceError   a foreign key points to nothing
├── ConflictError
│   ├── DuplicateValueError     a unique constraint is violated
│   └── StillReferencedError    a foreign key points here
├── InvalidValueError           a value that the database, or a method of CRUD, cannot take
├── RateLimitExceededError
└── ServiceUnavailableError     a server or a queue of the service is unavailable or full
    ├── DatabaseUnavailableError
    └── RedisUnavailableError
InvalidRequestError             `@cache` or `SessionDep` on an endpoint that it cannot serve
CacheIdentificationInferenceError  `@cache` cannot tell which argument is the id
UnknownFilterError              CRUD got a name that is no column, or a write without a filter
IdleTransactionError            PostgreSQL ended a transaction that waited too long for its next statement
"""

from collections.abc import Mapping


class AppError(Exception):
    """An answer other than success; `detail` is for the client and says what to do."""

    detail = "Something went wrong"
    constraint: str | None = None  # the name of the constraint of the database that a write has violated

    def __init__(self, detail: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        self.detail = detail or self.detail
        self.headers = dict(headers or {})
        super().__init__(self.detail)


class UnauthorizedError(AppError):
    detail = "Not authenticated: sign in at /api/v1/login and send the token as `Authorization: Bearer`"

    def __init__(self, detail: str | None = None, *, challenge: str = "Bearer") -> None:
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class ForbiddenError(AppError):
    detail = "You are not allowed to do this"


class NotFoundError(AppError):
    detail = "Not found"


class MissingReferenceError(NotFoundError):
    detail = "A row that this one refers to does not exist"


class ConflictError(AppError):
    detail = "The request contradicts what is stored"


class DuplicateValueError(ConflictError):
    detail = "The value is already taken"


class StillReferencedError(ConflictError):
    detail = "Still in use: other rows refer to it"


class InvalidValueError(AppError, ValueError):
    """A value of the client's; `field` is its column, where that is known."""

    detail = "A value cannot be stored: it is too long, out of range or not allowed, or has characters that are refused"

    def __init__(self, detail: str | None = None, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class RateLimitExceededError(AppError):
    detail = "Rate limit exceeded: wait as long as the Retry-After header says"


class ServiceUnavailableError(AppError):
    detail = "The service cannot answer right now: try again"

    def __init__(self, detail: str | None = None, *, retry_after: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class DatabaseUnavailableError(ServiceUnavailableError):
    detail = "The database cannot be reached or is too busy: try again"


class RedisUnavailableError(ServiceUnavailableError):
    detail = "A server behind this service cannot be reached: try again"


class InvalidRequestError(Exception):
    """`@cache` or `SessionDep` on an endpoint that it cannot serve; says nothing about a request of a client.

    Raised by the decorator, when the application is built or starts, or by each request to the endpoint.
    """


class CacheIdentificationInferenceError(Exception):
    """No argument of the endpoint has the type that the cached resource's id should have."""


class UnknownFilterError(ValueError):
    """A CRUD method got a name that is no column of its model, or a write without any filter."""


class IdleTransactionError(Exception):
    """PostgreSQL ended a transaction that waited longer than POSTGRES_IDLE_TIMEOUT for its next statement."""

from datetime import datetime
from typing import Annotated, Self, TypedDict
from uuid import UUID

from pydantic import MISSING, AfterValidator, BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.core.models import DeletableRow, InputSchema, ReadSchema, RowId, Text, WebUrl, normalized_email
from app.core.security.passwords import MAX_PASSWORD_LENGTH, weakness
from app.schemas.rate_limit import RateLimitRead

# Words that routes use, or are likely to use, where a path may have a username.
RESERVED_USERNAMES = frozenset({
    "api", "docs", "health", "login", "logout", "me", "openapi", "password",
    "post", "posts", "redoc", "refresh", "task", "tasks", "tier", "tiers", "user", "users",
})  # fmt: skip


def _not_reserved(username: str) -> str:
    if username in RESERVED_USERNAMES:
        raise ValueError("this name is reserved")
    return username


Name = Annotated[Text, Field(min_length=2, max_length=30, examples=["User Userson"])]
# A name in a path or a filter; a new name must not be reserved either.
Username = Annotated[str, StringConstraints(min_length=2, max_length=20, pattern=r"^[a-z0-9]+$")]
NewUsername = Annotated[
    Username,
    AfterValidator(_not_reserved),
    Field(examples=["userson"], json_schema_extra={"not": {"enum": sorted(RESERVED_USERNAMES)}}),
]
Email = Annotated[
    str,
    Field(max_length=254, examples=["user.userson@example.com"], json_schema_extra={"format": "email"}),
    AfterValidator(normalized_email),
]
ImageUrl = Annotated[WebUrl, Field(examples=["https://www.example.com/userson.png"])]
# A new password; `weakness` compares it with its owner's data as well.
Password = Annotated[Text, Field(min_length=8, max_length=MAX_PASSWORD_LENGTH, examples=["Str1ngst!"])]
# An existing password, which may be older than a rule for new ones.
CurrentPassword = Annotated[Text, Field(max_length=MAX_PASSWORD_LENGTH, examples=["Str1ngst!"])]


class UserBase(BaseModel):
    name: Name
    username: NewUsername
    email: Email
    profile_image_url: ImageUrl | None = None


class UserRead(ReadSchema):
    """A user's public data."""

    id: int
    name: str
    username: str
    profile_image_url: str | None
    tier_id: int | None


class UserReadOwn(UserRead):
    """A user's data for the user and for superusers."""

    email: str
    is_superuser: bool


class UserReadRateLimits(UserReadOwn):
    tier_rate_limits: list[RateLimitRead]


class User(UserReadOwn, DeletableRow):
    hashed_password: str


class UserCreate(UserBase, InputSchema):
    """Only superusers may put a new user into a tier."""

    password: Password
    tier_id: RowId | None = None

    @model_validator(mode="after")
    def _refuse_weak_password(self) -> Self:
        if reason := weakness(self.password, self.username, self.email):
            raise PydanticCustomError("weak_password", "{reason}", {"reason": reason})
        return self


class UserCreateInternal(UserBase):
    hashed_password: str
    is_superuser: bool = False
    tier_id: RowId | None = None


class UserUpdate(InputSchema):
    """A new e-mail address needs `current_password` once the session is older than REAUTHENTICATION_MINUTES."""

    name: Name | MISSING = MISSING
    username: NewUsername | MISSING = MISSING
    email: Email | MISSING = MISSING
    profile_image_url: ImageUrl | MISSING | None = MISSING
    current_password: CurrentPassword | MISSING = MISSING


class UserUpdateInternal(UserUpdate):
    updated_at: datetime


class UserDelete(InputSchema):
    is_deleted: bool
    deleted_at: datetime


class UserTierUpdate(InputSchema):
    """`null` removes the user from their tier."""

    tier_id: RowId | None


class Caller(TypedDict):
    """The user who makes a request, their session, and the limit of their tier on the request's path.

    The session is None for a token without one, the limit if the tier has no rule for the path.
    """

    id: int
    uuid: UUID
    name: str
    username: str
    email: str
    profile_image_url: str | None
    tier_id: int | None
    is_superuser: bool
    session_id: int | None
    session_created_at: datetime | None
    rate_limit: int | None
    rate_period: int | None

from datetime import datetime
from typing import Annotated, Self, TypedDict
from uuid import UUID

from pydantic import MISSING, AfterValidator, BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.core.models import InputSchema, JsonNumber, ReadSchema, RowId, Text, WebUrl, normalized_email
from app.core.passwords import MAX_PASSWORD_LENGTH, weakness
from app.schemas.rate_limit import RateLimitRead

# Each is a word that a route, or one that is likely to come, uses where a username may stand.
RESERVED_USERNAMES = frozenset({
    "api", "docs", "health", "login", "logout", "me", "openapi", "password", "post", "posts", "redoc", "refresh",
    "task", "tasks", "tier", "tiers", "user", "users",
})  # fmt: skip


def _not_reserved(username: str) -> str:
    if username in RESERVED_USERNAMES:
        raise ValueError("this name is reserved")
    return username


Name = Annotated[Text, Field(min_length=2, max_length=30, examples=["User Userson"])]
# What a path or a filter may hold; a new name must not be reserved either.
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
# A new one; what it may not be besides is a matter of its owner, see `weakness`.
Password = Annotated[Text, Field(min_length=8, max_length=MAX_PASSWORD_LENGTH, examples=["Str1ngst!"])]
# One that exists: refused because it is wrong, not because a rule is younger than it.
CurrentPassword = Annotated[Text, Field(max_length=MAX_PASSWORD_LENGTH, examples=["Str1ngst!"])]


class UserBase(BaseModel):
    name: Name
    username: NewUsername
    email: Email
    profile_image_url: ImageUrl | None = None


class UserRead(ReadSchema):
    """What anybody may know of a user."""

    id: int
    name: str
    username: str
    profile_image_url: str | None
    tier_id: int | None


class UserReadOwn(UserRead):
    """What the user, and superusers, may know."""

    email: str
    is_superuser: bool


class UserReadRateLimits(UserReadOwn):
    tier_rate_limits: list[RateLimitRead]


class UserCreate(UserBase, InputSchema):
    password: Password

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
    """A new e-mail address takes `current_password`, the caller's, once the session is no longer young."""

    name: Name | MISSING = MISSING
    username: NewUsername | MISSING = MISSING
    email: Email | MISSING = MISSING
    profile_image_url: ImageUrl | MISSING | None = MISSING
    current_password: CurrentPassword | MISSING = MISSING


class UserTierUpdate(InputSchema):
    """`null` takes the user out of every tier."""

    tier_id: Annotated[RowId, JsonNumber] | None


class Caller(TypedDict):
    """Who is asking, in which session (None: there are no sessions), and the limit of their tier on the path they ask
    for (None: there is no such rule).
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

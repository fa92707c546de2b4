from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.core.models import InputSchema, ReadSchema, RowId, Text
from app.schemas.user import CurrentPassword, Email, Password

Secret = Annotated[Text, Field(max_length=200)]


@dataclass(frozen=True, slots=True)
class Client:
    """The client of a session, as the service sees it."""

    user_agent: str
    address: str


class SessionRead(ReadSchema):
    id: int
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    user_agent: str
    address: str
    is_current: bool


class SessionCreateInternal(BaseModel):
    user_id: RowId
    refresh_hash: str
    expires_at: datetime
    user_agent: str
    address: str


class SessionUpdateInternal(BaseModel):
    refresh_hash: str
    spent_hash: str
    last_used_at: datetime
    expires_at: datetime
    user_agent: str
    address: str


class RefreshTokenBody(InputSchema):
    """A refresh token in the body, for clients without cookies."""

    refresh_token: Secret


class PasswordConfirmation(InputSchema):
    current_password: CurrentPassword


class PasswordChange(PasswordConfirmation):
    new_password: Password


class PasswordForgotten(InputSchema):
    email: Email


class PasswordResetConfirmation(InputSchema):
    token: Secret
    new_password: Password

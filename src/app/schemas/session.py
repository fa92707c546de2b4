from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from app.core.models import InputSchema, ReadSchema, Text
from app.schemas.user import CurrentPassword, Email, Password

Secret = Annotated[Text, Field(max_length=200)]


class Client(BaseModel):
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

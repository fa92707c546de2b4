"""The routers of `/api/v1`."""

from fastapi import APIRouter, FastAPI

from app.api.exceptions import error_response, responses
from app.api.v1 import (
    login,
    password_resets,
    passwords,
    posts,
    rate_limits,
    sessions,
    tasks,
    tiers,
    users,
)
from app.core.config import MailSettings, RedisQueueSettings, SessionSettings, Settings
from app.core.exceptions import ServiceUnavailableError

router = APIRouter()
"""A router of your own may be added here, too: `router.include_router(books_router)`."""

RESPONSES = {
    400: error_response("The body cannot be parsed"),
    413: error_response("The body is too large"),
    **responses(ServiceUnavailableError),
}


def include_routers(app: FastAPI, settings: Settings) -> None:
    """Include each router once, directly: FastAPI searches nested routers level by level on each request."""
    has_queue = isinstance(settings, RedisQueueSettings)
    sends_mail = isinstance(settings, MailSettings) and settings.sends_mail
    routers = [
        users.router,
        tiers.router,
        rate_limits.router,
        router,
        # Below these: `/{username}/…` would match their paths.
        posts.router,
        login.router,
        *([sessions.router] if isinstance(settings, SessionSettings) else []),
        passwords.router,
        *([tasks.router] if has_queue else []),
        *([password_resets.router] if has_queue and sends_mail else []),
    ]
    for each in routers:
        app.include_router(each, prefix="/api/v1", responses=RESPONSES)

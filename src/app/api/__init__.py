"""HTTP: the endpoints, their dependencies, and the translation of errors."""

from typing import Any

from fastapi import FastAPI

from app.api import health, v1
from app.api.exceptions import responses
from app.api.v1 import (
    login,
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
from app.core.models import ErrorMessage

RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorMessage, "description": "The body cannot be parsed"},
    413: {"model": ErrorMessage, "description": "The body is too large"},
    **responses(ServiceUnavailableError),
}


def include_routers(app: FastAPI, settings: Settings) -> None:
    """Include the routers that these settings need, each directly: FastAPI searches nested ones level by level."""
    has_queue = isinstance(settings, RedisQueueSettings)
    sends_mail = isinstance(settings, MailSettings) and settings.sends_mail
    app.include_router(health.router)
    for each in (
        users.router,
        tiers.router,
        rate_limits.router,
        v1.router,
        # Below these: `/{username}/…` would match their paths.
        posts.router,
        login.router,
        *([sessions.router] if isinstance(settings, SessionSettings) else []),
        passwords.router,
        *([tasks.router] if has_queue else []),
        *([passwords.reset_router] if has_queue and sends_mail else []),
    ):
        # A router of yours may have the `/v1` as its own prefix.
        app.include_router(each, prefix="/api" if each.prefix == "/v1" else "/api/v1", responses=RESPONSES)


router = include_routers
"""The same function under the name of the parameter: `create_application(router=router, settings=settings)`."""

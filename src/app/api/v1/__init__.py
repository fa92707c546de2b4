"""The routers of `/api/v1`."""

from fastapi import APIRouter, FastAPI

from app.api.exceptions import error_response, responses
from app.api.v1.login import router as login_router
from app.api.v1.password_resets import router as password_resets_router
from app.api.v1.passwords import router as passwords_router
from app.api.v1.posts import router as posts_router
from app.api.v1.rate_limits import router as rate_limits_router
from app.api.v1.sessions import router as sessions_router
from app.api.v1.tasks import router as tasks_router
from app.api.v1.tiers import router as tiers_router
from app.api.v1.users import router as users_router
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
        users_router,
        tiers_router,
        rate_limits_router,
        router,
        # Below these: `/{username}/posts` would match `/tier/posts`, a tier that is called "posts".
        posts_router,
        login_router,
        *([sessions_router] if isinstance(settings, SessionSettings) else []),
        passwords_router,
        *([tasks_router] if has_queue else []),
        *([password_resets_router] if has_queue and sends_mail else []),
    ]
    for each in routers:
        app.include_router(each, prefix="/api/v1", responses=RESPONSES)

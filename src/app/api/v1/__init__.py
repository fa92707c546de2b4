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
from app.core.config import MailSettings, RedisQueueSettings, SessionSettings, settings
from app.core.exceptions import ServiceUnavailableError
from app.core.routing import APIRouter

router = APIRouter(
    prefix="/v1",
    responses={
        400: error_response("The body cannot be parsed"),
        413: error_response("The body is too large"),
        **responses(ServiceUnavailableError),
    },
)
router.include_router(login_router)
if isinstance(settings, SessionSettings):
    router.include_router(sessions_router)
router.include_router(passwords_router)
router.include_router(users_router)
if isinstance(settings, RedisQueueSettings):
    router.include_router(tasks_router)
    if isinstance(settings, MailSettings) and settings.sends_mail:
        router.include_router(password_resets_router)
router.include_router(tiers_router)
router.include_router(rate_limits_router)
# Last: the paths of posts begin with a username, which must not hide a word that another route begins with.
router.include_router(posts_router)

from functools import partial

from fastapi import APIRouter, Depends, Request

from app.api.dependencies import CurrentUser, ReaderDep, SessionDep
from app.api.exceptions import responses
from app.api.password_checks import limit_by_address, refuse_weak_password, remember_address, require_password
from app.core.config import AbuseLimitSettings
from app.core.database import on_commit
from app.core.exceptions import ConflictError, ForbiddenError, RateLimitExceededError, UnauthorizedError
from app.core.http import audit, passwords_of, settings_of
from app.core.models import Message
from app.core.queue import queue_of
from app.core.rate_limit import limiter_of
from app.core.security import hash_of
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_users import crud_users
from app.schemas.session import PasswordChange, PasswordForgotten, PasswordResetConfirmation

router = APIRouter(tags=["passwords"])
reset_router = APIRouter(
    prefix="/password",
    tags=["passwords"],
    dependencies=[Depends(limit_by_address("password_reset", "PASSWORD_RESET_LIMIT", "PASSWORD_RESET_PERIOD"))],
    responses=responses(RateLimitExceededError),
)
"""The routes that need mail."""

_ERRORS = responses(UnauthorizedError, ForbiddenError, ConflictError, RateLimitExceededError)


@router.post("/user/me/password", responses=_ERRORS)
async def change_password(
    request: Request, change: PasswordChange, current_user: CurrentUser, db: SessionDep, reader: ReaderDep
) -> Message:
    """Set a new password; all other sessions end."""
    old = await require_password(request, current_user, change.current_password, reader)
    refuse_weak_password(change.new_password, current_user["username"], current_user["email"])
    new = await passwords_of(request).hash(change.new_password)
    if not await crud_users.change_password(db, current_user["id"], old, new):
        raise ConflictError("The password has just been changed by another request")
    await crud_sessions.end_all_and_revoke_reset(db, current_user["id"], except_id=current_user["session_id"])
    return Message(message="Password changed, other sessions ended")


@reset_router.post("/forgot", status_code=202)
async def forget_password(request: Request, forgotten: PasswordForgotten) -> Message:
    """Mail a token for a new password; the answer is the same for unknown addresses."""
    audit.note(request.scope, who=None)
    settings, quota = settings_of(request), None
    if isinstance(settings, AbuseLimitSettings):
        limit, period = settings.PASSWORD_RESET_LIMIT_PER_ACCOUNT, 60 * settings.PASSWORD_RESET_MINUTES
        quota = await limiter_of(request).hit(f"password_reset_mail:{hash_of(forgotten.email)}", limit, period)
    if quota is None or quota.allowed:
        # The job looks the user up, so that the time of this answer does not depend on whether the user exists.
        queue = queue_of(request)
        async with queue.server.guard():
            await queue.pool.enqueue_job("send_password_reset", forgotten.email)
    return Message(message="If an account has this address, a mail is on its way to it")


@reset_router.post("/reset", responses=responses(UnauthorizedError))
async def reset_password(request: Request, reset: PasswordResetConfirmation, db: SessionDep) -> Message:
    """Set a new password with a mailed token, which then stops working; all sessions end."""
    audit.note(request.scope, who=None)
    new = await passwords_of(request).hash(reset.new_password)
    user = await crud_users.reset_password(db, hash_of(reset.token), new)
    if user is None:
        raise UnauthorizedError("The token is not valid, has expired or was used: ask for another one")
    refuse_weak_password(reset.new_password, user["username"], user["email"])
    await crud_sessions.end_all(db, user["id"])
    audit.note(request.scope, who=user["id"])
    on_commit(db, partial(remember_address, request, user["id"]))
    return Message(message="Password changed, all sessions ended: sign in")

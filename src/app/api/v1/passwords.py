from fastapi import APIRouter, Request

from app.api.dependencies import CurrentUser, ReaderDep, SessionDep
from app.api.exceptions import responses
from app.api.password_checks import refuse_weak_password, require_password
from app.core.exceptions import ConflictError, ForbiddenError, RateLimitExceededError, UnauthorizedError
from app.core.http import passwords_of
from app.core.models import Message
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_users import crud_users
from app.schemas.session import PasswordChange

router = APIRouter(tags=["passwords"])

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

from fastapi import APIRouter, Request

from app.api.credentials import require_password
from app.api.dependencies import CurrentUser, ReaderDep, SessionDep
from app.api.exceptions import responses
from app.core.exceptions import (
    ConflictError,
    ForbiddenError,
    InvalidValueError,
    RateLimitExceededError,
    UnauthorizedError,
)
from app.core.models import Message
from app.core.passwords import weakness
from app.core.security import get_password_hash
from app.crud.crud_password_resets import crud_password_resets
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_users import crud_users
from app.schemas.session import PasswordChange

router = APIRouter(tags=["passwords"])


@router.post(
    "/user/me/password",
    responses=responses(UnauthorizedError, ForbiddenError, ConflictError, RateLimitExceededError),
)
async def change_password(
    request: Request, change: PasswordChange, current_user: CurrentUser, db: SessionDep, reader: ReaderDep
) -> Message:
    """Choose a new password; all other sessions end."""
    old = await require_password(request, current_user, change.current_password, reader)
    if reason := weakness(change.new_password, current_user["username"], current_user["email"]):
        raise InvalidValueError(reason)
    new = await get_password_hash(change.new_password)
    user_id = current_user["id"]
    if not await crud_users.update(db, {"hashed_password": new}, id=user_id, hashed_password=old, is_deleted=False):
        raise ConflictError("The password has just been changed by another request")
    await crud_sessions.end_all(db, user_id, but=current_user["session_id"])
    await crud_password_resets.withdraw(db, user_id)
    return Message(message="Password changed, other sessions ended")

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.api import cache_keys
from app.api.dependencies import (
    TOKEN_OPTIONAL,
    CurrentSuperuser,
    CurrentUser,
    EditableUserId,
    OptionalUser,
    ReaderDep,
    SessionDep,
)
from app.api.exceptions import ensure_found, malformed, responses
from app.api.paginated import CursorPageDep, PaginatedListResponse
from app.api.password_checks import confirm_caller, limit_by_address
from app.core import exceptions as errors
from app.core.cache import cache, store_of
from app.core.database import on_commit
from app.core.http import audit, passwords_of
from app.core.models import Message
from app.crud.crud_users import LastSuperuserError, crud_users
from app.models.user import User
from app.schemas import user as schemas
from app.schemas.session import PasswordConfirmation
from app.schemas.user import Caller, Username, UserRead, UserReadOwn

router = APIRouter(tags=["users"])

_GUARDED = responses(errors.UnauthorizedError, errors.ForbiddenError, errors.NotFoundError)
_PATCH = _GUARDED | responses(errors.DuplicateValueError, errors.RateLimitExceededError)
_ERASE = _GUARDED | responses(LastSuperuserError, errors.RateLimitExceededError)


def _invalidate_new_name(request: Request, db: AsyncSession, username: str) -> None:
    """Invalidate the new owner's keys too: the rename that freed this name may not have done so yet."""
    patterns = [pattern.format(username=username) for pattern in cache_keys.OF_USER]
    on_commit(db, partial(store_of(request).remove, [], patterns), even_if_unknown=True)


Confirmation = Annotated[
    PasswordConfirmation | None, Body(description="Needed once the session is older than REAUTHENTICATION_MINUTES")
]


@router.post(
    "/user",
    response_model=UserReadOwn,
    status_code=201,
    dependencies=[Depends(limit_by_address("sign_up", "SIGN_UP_LIMIT", "SIGN_UP_PERIOD"))],
    responses=responses(
        errors.UnauthorizedError,
        errors.MissingReferenceError,
        errors.DuplicateValueError,
        errors.RateLimitExceededError,
    ),
    openapi_extra=TOKEN_OPTIONAL,
)
async def write_user(request: Request, user: schemas.UserCreate, db: SessionDep, caller: OptionalUser) -> User:
    """Sign up."""
    audit.note(request.scope, who=caller and caller["id"])
    if user.tier_id is not None and not (caller and caller["is_superuser"]):
        raise malformed("tier_id", "Only superusers may set the tier_id of a new user")
    hashed_password = await passwords_of(request).hash(user.password)
    internal = schemas.UserCreateInternal(**user.model_dump(exclude={"password"}), hashed_password=hashed_password)
    created = await crud_users.create(db, internal)
    _invalidate_new_name(request, db, created.username)
    audit.note(request.scope, **({"target": created.id} if caller else {"who": created.id}))
    return created


@router.get("/users", response_model=PaginatedListResponse[UserRead])
async def read_users(db: ReaderDep, page: CursorPageDep) -> dict[str, Any]:
    """List the users in the order of their sign-up."""
    users = await crud_users.get_multi(
        db, page.offset, page.items_per_page, UserRead, after=page.after, is_deleted=False
    )
    return page.response(users)


@router.get("/user/me", response_model=UserReadOwn, responses=responses(errors.UnauthorizedError))
@router.get("/user/me/", response_model=UserReadOwn, include_in_schema=False)
async def read_users_me(current_user: CurrentUser) -> Caller:
    """Read the signed-in user."""
    return current_user


@router.get(
    "/user/{username}",
    response_model=UserReadOwn | UserRead,
    responses=responses(errors.UnauthorizedError, errors.NotFoundError),
    openapi_extra=TOKEN_OPTIONAL,
)
async def read_user(username: Username, db: ReaderDep, current_user: OptionalUser) -> dict[str, Any]:
    """Read a user; only the user and superusers see the e-mail address."""
    user = ensure_found(await crud_users.get(db, UserReadOwn, username=username, is_deleted=False), "User")
    # Compare ids: another user may have taken the name since the token was checked.
    is_own = current_user is not None and (current_user["is_superuser"] or current_user["id"] == user["id"])
    return user if is_own else {key: user[key] for key in UserRead.model_fields}


@router.patch("/user/{username}", response_model=UserReadOwn, responses=_PATCH)
@cache("user", resource_id_name="username", pattern_to_invalidate_extra=cache_keys.OF_USER)
async def patch_user(
    request: Request,
    username: Username,
    values: schemas.UserUpdate,
    db: SessionDep,
    reader: ReaderDep,
    user_id: EditableUserId,
    current_user: CurrentUser,
) -> dict[str, Any]:
    """Change the fields that the body names; users may change themselves, superusers everybody."""
    changes = values.model_dump(exclude_unset=True)
    password = changes.pop("current_password", None)
    audit.note(request.scope, target=user_id)
    if "email" in changes or password is not None:
        await confirm_caller(request, current_user, password, reader)
    if "username" in changes:
        _invalidate_new_name(request, db, changes["username"])
    user = await crud_users.update_one(db, changes, UserReadOwn, id=user_id, username=username, is_deleted=False)
    return ensure_found(user, "User")


@router.delete("/user/{username}", responses=_ERASE)
@cache("user", resource_id_name="username", pattern_to_invalidate_extra=cache_keys.OF_USER)
async def erase_user(
    request: Request,
    username: Username,
    db: SessionDep,
    reader: ReaderDep,
    user_id: EditableUserId,
    current_user: CurrentUser,
    confirmation: Confirmation = None,
) -> Message:
    """Delete a user; the name and the e-mail address stay taken. Tokens end at once, posts are no longer shown."""
    audit.note(request.scope, target=user_id)
    await confirm_caller(request, current_user, confirmation.current_password if confirmation else None, reader)
    user = await crud_users.lock_for_deletion(db, username)
    if user != {"id": user_id, "is_deleted": False}:
        raise errors.NotFoundError("User not found")
    await crud_users.delete(db, id=user_id)
    return Message(message="User deleted")


@router.delete("/db_user/{username}", responses=_ERASE)
@cache("user", resource_id_name="username", pattern_to_invalidate_extra=cache_keys.OF_USER)
async def erase_db_user(
    request: Request,
    username: Username,
    db: SessionDep,
    reader: ReaderDep,
    superuser: CurrentSuperuser,
    confirmation: Confirmation = None,
) -> Message:
    """Delete the row of a user and all their posts, deleted ones too; the name and the e-mail address become free."""
    await confirm_caller(request, superuser, confirmation.current_password if confirmation else None, reader)
    user = ensure_found(await crud_users.lock_for_deletion(db, username), "User")
    audit.note(request.scope, target=user["id"])
    await crud_users.db_delete(db, id=user["id"])
    return Message(message="User deleted from the database")


@router.get("/user/{username}/rate_limits", response_model=schemas.UserReadRateLimits, responses=_GUARDED)
async def read_user_rate_limits(username: Username, db: ReaderDep, _: CurrentSuperuser) -> dict[str, Any]:
    """Read a user with the rate limits of their tier."""
    return ensure_found(await crud_users.get_with_rate_limits(db, username), "User")


@router.patch("/user/{username}/tier", response_model=UserReadOwn, responses=_GUARDED)
async def patch_user_tier(
    request: Request, username: Username, values: schemas.UserTierUpdate, db: SessionDep, _: CurrentSuperuser
) -> dict[str, Any]:
    """Put a user into a tier."""
    try:
        user = await crud_users.update_one(db, values.model_dump(), UserReadOwn, username=username, is_deleted=False)
    except errors.MissingReferenceError as error:
        raise errors.NotFoundError("Tier not found") from error
    user = ensure_found(user, "User")
    audit.note(request.scope, target=user["id"], tier=user["tier_id"])
    return user

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import OAuth2PasswordRequestForm

from app.api.dependencies import ReaderDep, SessionDep
from app.api.exceptions import responses
from app.api.password_checks import check_password
from app.api.refresh_token import answer_tokens, client_of, refuse_foreign_page
from app.core.config import SessionSettings
from app.core.exceptions import ForbiddenError, RateLimitExceededError, UnauthorizedError
from app.core.http import audit, passwords_of, settings_of, tokens_of
from app.core.models import Token
from app.crud.crud_sessions import crud_sessions
from app.crud.crud_users import crud_users

router = APIRouter(tags=["login"], responses=responses(UnauthorizedError, ForbiddenError, RateLimitExceededError))

REFUSED = "Wrong username, e-mail or password"
RefreshInBody = Annotated[bool, Query(description="For clients without cookies: answer the refresh token too")]


@router.post("/login", response_model_exclude_unset=True)
async def login_for_access_token(
    request: Request,
    response: Response,
    form: Annotated[OAuth2PasswordRequestForm, Depends()],
    db: SessionDep,
    reader: ReaderDep,
    refresh_in_body: RefreshInBody = False,
) -> Token:
    """Sign in with a username or an e-mail address, and a password; this begins a session."""
    settings, passwords, tokens = settings_of(request), passwords_of(request), tokens_of(request)
    audit.note(request.scope, who=None)
    refuse_foreign_page(request)
    user = await crud_users.get_credentials(reader, form.username)
    audit.note(request.scope, who=user and user["id"])
    if not await check_password(request, user, form.username, form.password) or user is None:
        raise UnauthorizedError(REFUSED)
    checked = user["hashed_password"]
    renewed = await passwords.hash(form.password) if passwords.is_outdated(checked) else None
    # Lock the row until the commit: no session may begin with a password that another request has just changed.
    if renewed is None or not await crud_users.change_password(db, user["id"], checked, renewed):
        stored = await crud_users.lock_password(db, user["id"])
        if stored != checked and not await passwords.verify(form.password, stored):
            raise UnauthorizedError(REFUSED)
    if not isinstance(settings, SessionSettings):
        return Token(access_token=tokens.access_token(user["uuid"]), token_type="bearer")  # noqa: S106
    lifetime = timedelta(days=settings.REFRESH_TOKEN_EXPIRE_DAYS)
    session, refresh = await crud_sessions.start(db, user["id"], client_of(request), lifetime)
    audit.note(request.scope, session=session.id)
    access = tokens.access_token(user["uuid"], session.uuid)
    return answer_tokens(request, response, access, refresh, lifetime, in_body=refresh_in_body)

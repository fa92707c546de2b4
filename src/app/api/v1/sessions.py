from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from app.api.dependencies import BearerToken, CurrentUser, ReaderDep, SessionDep
from app.api.exceptions import ensure_found, responses
from app.api.paginated import PageDep, PaginatedListResponse, paginated_response
from app.api.refresh_token import PresentedToken, answer_tokens, client_of, delete_refresh_cookie
from app.core.database import engines_of, transaction
from app.core.exceptions import NotFoundError, UnauthorizedError
from app.core.http import audit, settings_of, tokens_of
from app.core.models import Message, RowId, Token
from app.crud.crud_sessions import crud_sessions
from app.schemas.session import SessionRead

router = APIRouter(tags=["sessions"], responses=responses(UnauthorizedError))


@router.post("/refresh", response_model_exclude_unset=True)
async def refresh_access_token(request: Request, response: Response, presented: PresentedToken) -> Token:
    """Exchange the refresh token (cookie or body) for a new pair; a token that was spent before ends its session."""
    settings, tokens = settings_of(request), tokens_of(request)
    lifetime = timedelta(days=settings.REFRESH_TOKEN_EXPIRE_DAYS)
    refreshed = None
    if presented.token is not None:
        grace = timedelta(seconds=settings.REFRESH_GRACE_SECONDS)
        # A transaction of its own: an error response must not roll back the end of a session.
        async with transaction(engines_of(request)) as db:
            successor = tokens.successor(presented.token)
            refreshed = await crud_sessions.refresh(db, presented.token, successor, client_of(request), lifetime, grace)
    audit.note(request.scope, who=refreshed and refreshed.user_id)
    if refreshed is None or refreshed.token is None:
        if refreshed is not None:
            audit.note(request.scope, reason="a spent refresh token ended the session")
        raise UnauthorizedError("There is no session for this refresh token: sign in again")
    access = tokens.access_token_for(refreshed.token, refreshed.user, refreshed.issued)
    return answer_tokens(request, response, access, refreshed.token, lifetime, in_body=presented.in_body)


@router.post("/logout", status_code=204)
async def logout(
    request: Request, response: Response, token: BearerToken, presented: PresentedToken, db: SessionDep
) -> None:
    """End the session of the access token, even an expired one, and of the refresh token; both stop working at once."""
    named = [tokens_of(request).read(token, allow_expired=True).session] if token else []
    if presented.token is not None:
        named.append(presented.token.session)
    for session in filter(None, {*named}):
        ended = await crud_sessions.end(db, session)
        if ended is not None:
            audit.note(request.scope, who=ended.user_id, session=ended.id)
    delete_refresh_cookie(request, response)


@router.get("/user/me/sessions", response_model=PaginatedListResponse[SessionRead])
async def read_sessions(current_user: CurrentUser, db: ReaderDep, page: PageDep) -> dict[str, Any]:
    """List one's own sessions, oldest first."""
    sessions = await crud_sessions.get_active(db, current_user["id"], page.offset, page.items_per_page)
    for session in sessions["data"]:
        session["is_current"] = session["id"] == current_user["session_id"]
    return paginated_response(sessions, page.page, page.items_per_page)


@router.delete("/user/me/sessions/{id}", responses=responses(NotFoundError))
async def erase_session(
    request: Request, id: Annotated[RowId, Path()], current_user: CurrentUser, db: SessionDep
) -> Message:
    """End one of one's own sessions."""
    ensure_found(await crud_sessions.db_delete(db, id=id, user_id=current_user["id"]), "Session")
    audit.note(request.scope, session=id)
    return Message(message="Session ended")


@router.delete("/user/me/sessions")
async def erase_other_sessions(current_user: CurrentUser, db: SessionDep) -> Message:
    """End all of one's own sessions except the current one."""
    ended = await crud_sessions.end_all(db, current_user["id"], except_id=current_user["session_id"])
    return Message(message=f"Other sessions ended: {ended}")

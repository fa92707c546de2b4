from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.security import OAuth2PasswordRequestForm

from app.api.dependencies import ReaderDep
from app.api.exceptions import responses
from app.core.exceptions import UnauthorizedError
from app.core.models import Token
from app.core.security import create_access_token
from app.crud.crud_users import crud_users

router = APIRouter(tags=["login"])


@router.post("/login", responses=responses(UnauthorizedError))
async def login_for_access_token(form: Annotated[OAuth2PasswordRequestForm, Depends()], db: ReaderDep) -> Token:
    """Sign in with a username or an e-mail address, and a password."""
    user = await crud_users.authenticate(db, form.username, form.password)
    if user is None:
        raise UnauthorizedError("Wrong username, e-mail or password")
    return Token(access_token=create_access_token(user["uuid"]), token_type="bearer")  # noqa: S106

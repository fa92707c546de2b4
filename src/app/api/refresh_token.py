"""The refresh token of a request, and the cookie in which browsers keep it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Cookie, Depends, Request, Response

from app.core.config import EnvironmentOption, WebSecuritySettings
from app.core.exceptions import ForbiddenError
from app.core.http import client_address, settings_of
from app.core.models import Token
from app.core.security import RefreshToken
from app.schemas.session import Client, RefreshTokenBody

LOCAL_COOKIE = "refresh_token"
SECURE_COOKIE = "__Secure-refresh_token"
"""The name outside `local`: browsers accept this prefix over HTTPS only."""
# The names of the routes that read the cookie; browsers send it to no other.
REFRESH_ROUTES = ("refresh_access_token", "logout")


def client_of(request: Request) -> Client:
    agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))
    return Client(user_agent=agent[:255], address=client_address(request, settings_of(request)))


def refuse_foreign_page(request: Request) -> None:
    """Refuse a form from another site's page: it could sign the browser in to the attacker's account."""
    if request.headers.get("sec-fetch-site") != "cross-site":
        return
    settings = settings_of(request)
    named = settings.cors_origins if isinstance(settings, WebSecuritySettings) else []
    if request.headers.get("origin") not in named:
        raise ForbiddenError("Pages of other sites cannot sign in here, unless CORS_ORIGINS names them")


@dataclass(frozen=True, slots=True)
class Presented:
    """The refresh token of a request, None if it is missing or malformed, and whether the body or the cookie had it."""

    token: RefreshToken | None
    in_body: bool


async def get_presented(
    request: Request,
    body: RefreshTokenBody | None = None,
    cookie: Annotated[str | None, Cookie(alias=LOCAL_COOKIE)] = None,
    secure_cookie: Annotated[str | None, Cookie(alias=SECURE_COOKIE, include_in_schema=False)] = None,
) -> Presented:
    in_cookie = cookie if _cookie_name(request) == LOCAL_COOKIE else secure_cookie
    text = body.refresh_token if body else in_cookie
    return Presented(RefreshToken.parse(text) if text else None, body is not None)


PresentedToken = Annotated[Presented, Depends(get_presented)]


def answer_tokens(
    request: Request, response: Response, access: str, refresh: RefreshToken, lifetime: timedelta, *, in_body: bool
) -> Token:
    """Set the cookie of the refresh token, and return the access token; `in_body`: with the refresh token, too."""
    for cookie in _cookies(request):
        response.set_cookie(value=str(refresh), max_age=int(lifetime.total_seconds()), **cookie)
    token = Token(access_token=access, token_type="bearer")  # noqa: S106
    if in_body:
        token.refresh_token = str(refresh)
    return token


def delete_refresh_cookie(request: Request, response: Response) -> None:
    for cookie in _cookies(request):
        response.delete_cookie(**cookie)


def _cookies(request: Request) -> list[dict[str, Any]]:
    """The cookie's name and flags, once for each path that gets it."""
    name = _cookie_name(request)
    flags = {"key": name, "secure": name == SECURE_COOKIE, "httponly": True, "samesite": "strict"}
    return [{**flags, "path": request.url_for(route).path} for route in REFRESH_ROUTES]


def _cookie_name(request: Request) -> str:
    return LOCAL_COOKIE if settings_of(request).ENVIRONMENT is EnvironmentOption.LOCAL else SECURE_COOKIE

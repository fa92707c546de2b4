"""The refresh token of a request, and the cookie in which browsers keep it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Cookie, Depends, Request, Response

from app.core.config import EnvironmentOption, WebSecuritySettings, settings
from app.core.exceptions import ForbiddenError
from app.core.rate_limit import client_address
from app.core.security import RefreshToken
from app.schemas.session import Client, RefreshTokenBody

_is_local = settings.ENVIRONMENT is EnvironmentOption.LOCAL
REFRESH_COOKIE = "refresh_token" if _is_local else "__Secure-refresh_token"
"""Browsers take a name that begins so from HTTPS only."""
# The names of the routes that read the cookie; no other gets it.
REFRESH_ROUTES = ("refresh_access_token", "logout")


def client_of(request: Request) -> Client:
    agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))
    return Client(agent[:255], client_address(request, settings))


def refuse_foreign_page(request: Request) -> None:
    """Refuse a form that a page of another site has sent: it would sign its reader in to an account of its own."""
    if request.headers.get("sec-fetch-site") != "cross-site":
        return
    named = settings.cors_origins if isinstance(settings, WebSecuritySettings) else []
    if request.headers.get("origin") not in named:
        raise ForbiddenError("Pages of other sites cannot sign in here, unless CORS_ORIGINS names them")


@dataclass(frozen=True, slots=True)
class Presented:
    """The refresh token of a request, None without one or for one that is none of ours. Its successor goes where it
    came from.
    """

    token: RefreshToken | None
    in_body: bool


async def get_presented(
    body: RefreshTokenBody | None = None, cookie: Annotated[str | None, Cookie(alias=REFRESH_COOKIE)] = None
) -> Presented:
    text = body.refresh_token if body else cookie
    return Presented(RefreshToken.parse(text) if text else None, body is not None)


PresentedToken = Annotated[Presented, Depends(get_presented)]


def set_refresh_cookie(request: Request, response: Response, token: RefreshToken, lifetime: timedelta) -> None:
    for path in _cookie_paths(request):
        response.set_cookie(REFRESH_COOKIE, str(token), int(lifetime.total_seconds()), path=path, **_cookie_flags())


def delete_refresh_cookie(request: Request, response: Response) -> None:
    for path in _cookie_paths(request):
        response.delete_cookie(REFRESH_COOKIE, path=path, **_cookie_flags())


def _cookie_paths(request: Request) -> list[str]:
    return [request.url_for(name).path for name in REFRESH_ROUTES]


def _cookie_flags() -> Any:
    return {
        "secure": not _is_local,
        "httponly": True,
        "samesite": "strict",
    }

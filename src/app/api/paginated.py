"""Pages of a list: query parameters, response envelope and cursors."""

import base64
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import MISSING, BaseModel

from app.core.http import route_template, settings_of

T = TypeVar("T")

_KEY_BYTES, _SIGNATURE_BYTES = 8, 16

PageNumber = Annotated[int, Query(ge=1, le=2**31 // 100)]
ItemsPerPage = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[
    str,
    Query(
        pattern="^(c[A-Za-z0-9_-]{32})?$",
        description="`next_cursor` of the page before, in place of `page`: costs the same however far it leads",
    ),
]


class ListResponse(BaseModel, Generic[T]):
    data: list[T]


class PaginatedListResponse(ListResponse[T], Generic[T]):
    total_count: int
    has_more: bool
    page: int | None = None
    items_per_page: int | None = None
    next_cursor: str | MISSING | None = MISSING


def compute_offset(page: int, items_per_page: int) -> int:
    """The number of rows before the page: `(page - 1) * items_per_page`."""
    return (page - 1) * items_per_page


def paginated_response(crud_data: dict[str, Any], page: int, items_per_page: int) -> dict[str, Any]:
    """The envelope of one page, from the result of `CRUDBase.get_multi`."""
    return {
        "data": crud_data["data"],
        "total_count": crud_data["total_count"],
        "has_more": page * items_per_page < crud_data["total_count"],
        "page": page,
        "items_per_page": items_per_page,
    }


@dataclass(frozen=True, slots=True)
class Page:
    page: int
    items_per_page: int

    @property
    def offset(self) -> int:
        return compute_offset(self.page, self.items_per_page)


async def get_page(page: PageNumber = 1, items_per_page: ItemsPerPage = 10) -> Page:
    return Page(page, items_per_page)


PageDep = Annotated[Page, Depends(get_page)]


@dataclass(frozen=True, slots=True)
class CursorPage(Page):
    """A page by its number, or the page after the row with the key `after`."""

    after: int | None
    cursor_after: Callable[[int], str]

    def response(self, crud_data: dict[str, Any]) -> dict[str, Any]:
        """The envelope of the page, from the result of `CRUDBase.get_multi`; its rows need an integer `id`."""
        rows = crud_data["data"]
        next_cursor = self.cursor_after(rows[-1]["id"]) if crud_data["has_more"] and rows else None
        return {**crud_data, "next_cursor": next_cursor}


async def get_cursor_page(
    request: Request, page: PageNumber = 1, items_per_page: ItemsPerPage = 10, cursor: Cursor = ""
) -> CursorPage:
    list_name = repr((route_template(request), request.scope["path_params"]))
    cursor_after = partial(_sign_cursor, settings_of(request).secret_key, list_name)
    after = None
    if cursor:
        page = 1  # the rows after the cursor, whatever page was asked for
        after = int.from_bytes(base64.urlsafe_b64decode(cursor[1:])[:_KEY_BYTES], signed=True)
        if not hmac.compare_digest(cursor, cursor_after(after)):
            message = "The cursor belongs to another list or was changed"
            raise RequestValidationError([{"type": "value_error", "loc": ("query", "cursor"), "msg": message}])
    return CursorPage(page, items_per_page, after, cursor_after)


CursorPageDep = Annotated[CursorPage, Depends(get_cursor_page)]


def _sign_cursor(secret_key: str, list_name: str, after: int) -> str:
    """The key of a row, signed for one list; the first letter tells it from a page number."""
    # Nothing else that the service signs begins with this word.
    signature = hmac.digest(secret_key.encode(), f"cursor:{after}:{list_name}".encode(), "sha256")[:_SIGNATURE_BYTES]
    return "c" + base64.urlsafe_b64encode(after.to_bytes(_KEY_BYTES, signed=True) + signature).decode()

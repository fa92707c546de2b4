"""Pages of a list: the query parameters, the envelope, and how both relate to what CRUD returns."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

T = TypeVar("T")

PageNumber = Annotated[int, Query(ge=1, le=2**31 // 100)]
ItemsPerPage = Annotated[int, Query(ge=1, le=100)]


class ListResponse(BaseModel, Generic[T]):
    data: list[T]


class PaginatedListResponse(ListResponse[T], Generic[T]):
    total_count: int
    has_more: bool
    page: int | None = None
    items_per_page: int | None = None


def compute_offset(page: int, items_per_page: int) -> int:
    """How many rows stand before the page: `(page - 1) * items_per_page`."""
    return (page - 1) * items_per_page


def paginated_response(crud_data: dict[str, Any], page: int, items_per_page: int) -> dict[str, Any]:
    """The envelope of one page, from what `CRUDBase.get_multi` returned for it."""
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

import pytest
from pydantic import BaseModel, ValidationError

from app.api.paginated import ListResponse, PaginatedListResponse, compute_offset, paginated_response


class Row(BaseModel):
    id: int


@pytest.mark.parametrize(
    ("page", "items", "offset"), [(1, 10, 0), (2, 10, 10), (3, 7, 14), (1, 1, 0), (100, 100, 9900)]
)
def test_compute_offset(page: int, items: int, offset: int) -> None:
    assert compute_offset(page, items) == offset
    assert compute_offset(page=page, items_per_page=items) == offset


@pytest.mark.parametrize(
    ("page", "total", "has_more"),
    [(1, 0, False), (1, 2, False), (1, 3, True), (2, 3, False), (2, 5, True), (9, 3, False)],
)
def test_paginated_response(page: int, total: int, has_more: bool) -> None:
    crud_data = {"data": [{"id": 1}], "total_count": total, "has_more": None, "page": None, "items_per_page": None}
    assert paginated_response(crud_data=crud_data, page=page, items_per_page=2) == {
        "data": [{"id": 1}],
        "total_count": total,
        "has_more": has_more,
        "page": page,
        "items_per_page": 2,
    }


def test_envelope() -> None:
    answer = {"data": [{"id": 1}], "total_count": 1, "has_more": False, "page": 1, "items_per_page": 10}
    assert PaginatedListResponse[Row].model_validate(answer).model_dump() == answer
    for cursor in ("cursor", None):
        answer_with = {**answer, "next_cursor": cursor}
        assert PaginatedListResponse[Row].model_validate(answer_with).model_dump() == answer_with
    assert ListResponse[Row].model_validate(answer).model_dump() == {"data": [{"id": 1}]}
    with pytest.raises(ValidationError):
        PaginatedListResponse[Row].model_validate({**answer, "data": [{"id": "x"}]})

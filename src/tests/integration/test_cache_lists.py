"""`@cache` on endpoints without path and query parameters: one stored answer, which each write can remove."""

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request

from app.api.dependencies import CurrentSuperuser, OwnLookup, ReaderDep, SessionDep
from app.api.paginated import PageDep
from app.core.cache import cache
from app.core.exceptions import CacheIdentificationInferenceError
from app.core.models import InputSchema
from scripts.check_cache import find_cache_faults
from tests.fixtures import RedisRoles, open_client
from tests.integration.own_app import build

books: list[str] = []


class Book(InputSchema):
    title: str


router = APIRouter()


@router.get("/books")
@cache("books")
async def read_books(request: Request, db: ReaderDep) -> list[str]:
    return books


@router.post("/book")
@cache("books")
async def write_book(request: Request, book: Book, db: SessionDep) -> None:
    books.append(book.title)


@router.put("/book/{id}")
@cache("book", resource_id_name="id", to_invalidate_extra={"books": "all"})
async def put_book(request: Request, id: int, book: Book, db: SessionDep) -> None:
    books[id] = book.title


@router.delete("/book/{id}")
@cache("book", resource_id_name="id", pattern_to_invalidate_extra=["books:*"])
async def erase_book(request: Request, id: int, db: SessionDep) -> None:
    del books[id]


@pytest.fixture
def application() -> FastAPI:
    books[:] = ["Emma"]
    return build(router)


async def test_list_is_stored_and_removed(application: FastAPI, redis: RedisRoles) -> None:
    async with open_client(application) as client:

        async def listed() -> Any:
            return (await client.get("/books")).json()

        writes: list[tuple[httpx.Request, list[str]]] = [
            (client.build_request("POST", "/book", json={"title": "Persuasion"}), ["Emma", "Persuasion"]),
            (client.build_request("PUT", "/book/0", json={"title": "Sanditon"}), ["Sanditon", "Persuasion"]),
            (client.build_request("DELETE", "/book/1"), ["Sanditon"]),
        ]
        assert await listed() == ["Emma"]
        for write, expected in writes:
            before = await listed()
            assert await redis.cache.exists("books:all") == 1
            books.append("unseen")
            assert await listed() == before
            books.remove("unseen")
            assert (await client.send(write)).status_code == 200
            assert await redis.cache.exists("books:all") == 0
            assert await listed() == expected


def test_checker_finds_the_writes_that_remove_it(application: FastAPI) -> None:
    assert [fault for fault in find_cache_faults(application) if "/books" in fault] == []


def test_one_with_parameters_needs_an_id() -> None:
    """Also those of dependencies: the answer depends on them."""

    async def of_a_dependency(request: Request, db: ReaderDep, page: PageDep) -> None: ...
    async def of_an_inner_dependency(request: Request, owner: OwnLookup) -> None: ...
    async def its_own(request: Request, search: str) -> None: ...
    async def none(request: Request, db: ReaderDep, user: CurrentSuperuser, book: Book) -> None: ...

    for endpoint in (of_a_dependency, of_an_inner_dependency, its_own):
        with pytest.raises(CacheIdentificationInferenceError, match="0 parameters could be the int"):
            cache("books")(endpoint)
    cache("books")(none)

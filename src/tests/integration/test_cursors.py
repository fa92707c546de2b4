"""Cursors: each paginated list continues after the end of a page, and accepts its own cursors only."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.models.user import User
from tests.factories import make_user
from tests.fixtures import Fetch, RedisRoles, Statements, open_client
from tests.specimen.factories import make_drawer, make_moth, make_slip

Headers = dict[str, str]
LISTS = ["/users", "/ann/moths", "/drawers", "/drawer/free/slips"]


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


@pytest.fixture
async def ann(superuser: User) -> User:
    """A user with five moths, among five users and five drawers; the first drawer has five rate limits."""
    ann, bob, *_ = [await make_user(username=name) for name in ("ann", "bob", "cleo", "dan")]
    free, *_ = [await make_drawer(name) for name in ("free", "pro", "gold", "silver", "bronze")]
    for number in range(5):
        await make_moth(ann)
        await make_moth(bob)
        await make_slip(free, path=f"path{number}")
    return ann


Read = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def read(client: httpx.AsyncClient, superuser_headers: Headers, ann: User) -> Read:
    async def read_page(path: str, **params: Any) -> httpx.Response:
        return await client.get(f"/api/v1{path}", params=params, headers=superuser_headers)

    return read_page


def ids(page: dict[str, Any]) -> list[int]:
    return [row["id"] for row in page["data"]]


@pytest.mark.parametrize("path", LISTS)
class TestEveryList:
    async def test_from_the_first_page_to_the_last(self, read: Read, path: str, statements: Statements) -> None:
        whole = (await read(path)).json()
        assert (len(whole["data"]), whole["next_cursor"]) == (5, None)
        first = (await read(path, items_per_page=2)).json()
        second = (await read(path, items_per_page=2, cursor=first["next_cursor"])).json()
        statements.clear()
        third = (await read(path, items_per_page=2, cursor=second["next_cursor"])).json()
        assert len([sql for sql in statements.read if "ORDER BY page" in sql]) == 1
        assert statements.written == []
        envelope = {"total_count": 5, "has_more": True, "page": None, "items_per_page": 2}
        assert second == {**envelope, "data": whole["data"][2:4], "next_cursor": second["next_cursor"]}
        assert third == {**envelope, "data": whole["data"][4:], "has_more": False, "next_cursor": None}

    async def test_from_a_page_by_number(self, read: Read, path: str) -> None:
        numbered = (await read(path, items_per_page=1, page=3)).json()
        following = (await read(path, items_per_page=2, page=1, cursor=numbered["next_cursor"])).json()
        assert ids(following) == ids((await read(path)).json())[3:]
        assert following["next_cursor"] is None

    async def test_of_another_list(self, read: Read, path: str, statements: Statements) -> None:
        cursors = {each: (await read(each, items_per_page=1)).json()["next_cursor"] for each in [*LISTS, "/bob/moths"]}
        assert len({*cursors.values()}) == 5
        own = cursors.pop(path)
        assert (await read(path, cursor=own)).status_code == 200
        for foreign in cursors.values():
            statements.clear()
            assert_refused(await read(path, cursor=foreign), "cursor")
            assert not [sql for sql in statements.read if "ORDER BY page" in sql]

    async def test_beside_a_page_the_cursor_decides(self, read: Read, path: str) -> None:
        cursor = (await read(path, items_per_page=1)).json()["next_cursor"]
        following = (await read(path, cursor=cursor)).json()
        assert (await read(path, page=2, cursor=cursor)).json() == following
        assert ids(following) == ids((await read(path)).json())[1:]


def assert_refused(response: httpx.Response, parameter: str) -> None:
    assert response.status_code == 422, response.text
    assert [error["loc"] for error in response.json()["detail"]] == [["query", parameter]]


class TestForged:
    async def test_any_other_character(self, client: httpx.AsyncClient, ann: User, statements: Statements) -> None:
        cursor = (await client.get("/api/v1/users?items_per_page=1")).json()["next_cursor"]
        assert len(cursor) <= 60
        statements.clear()
        for place, character in enumerate(cursor):
            forged = f"{cursor[:place]}{'A' if character != 'A' else 'B'}{cursor[place + 1 :]}"
            assert_refused(await client.get("/api/v1/users", params={"cursor": forged}), "cursor")
        assert statements.all == []

    @pytest.mark.parametrize(
        "cursor",
        [
            "c",
            "x",
            "1",
            "c" + 31 * "A",
            "c" + 33 * "A",
            "c" + 32 * "A",
            "c" + 32 * "_",
            "c" + 32 * "A" + "\n",
            "c" + 31 * "A" + "\x00",
            "c" + 31 * "A" + "=",
            "c" + 32 * "\N{LATIN SMALL LETTER E WITH ACUTE}",
            "c" + 32 * "\N{ARABIC-INDIC DIGIT ONE}",
            "c" + base64.urlsafe_b64encode(b"7 OR 1=1; DROP TABLE ru").decode(),
            10_000 * "c",
        ],
    )
    @pytest.mark.parametrize("path", ["/users", "/ann/moths"])
    async def test_malformed(
        self, client: httpx.AsyncClient, ann: User, statements: Statements, path: str, cursor: str
    ) -> None:
        statements.clear()
        assert_refused(await client.get(f"/api/v1{path}", params={"cursor": cursor}), "cursor")
        assert statements.all == []

    async def test_bytes_that_are_no_text(self, client: httpx.AsyncClient, ann: User) -> None:
        for path in ("/users", "/ann/moths"):
            assert_refused(await client.get(f"/api/v1{path}?cursor=%ff%fe%ed%a0%80"), "cursor")

    async def test_nothing_is_stored_for_it(self, client: httpx.AsyncClient, ann: User, redis: RedisRoles) -> None:
        await client.get("/api/v1/ann/moths", params={"cursor": "c" + 32 * "A"})
        assert await redis.cache.keys("ann_moths:*") == []


class TestChanges:
    async def test_deleted_rows_shift_no_page(self, read: Read, fetch: Fetch) -> None:
        first = (await read("/ann/moths", items_per_page=2)).json()
        await fetch("UPDATE moth SET is_deleted = true WHERE id = ANY($1)", ids(first))
        following = (await read("/ann/moths", items_per_page=2, cursor=first["next_cursor"])).json()
        assert (ids(following), following["total_count"]) == ([5, 7], 3)

    async def test_nothing_is_left(self, read: Read, fetch: Fetch) -> None:
        first = (await read("/users", items_per_page=2)).json()
        await fetch('DELETE FROM "user" WHERE id > 2')
        following = (await read("/users", items_per_page=2, cursor=first["next_cursor"])).json()
        assert following == {
            "data": [],
            "total_count": 2,
            "has_more": False,
            "page": None,
            "items_per_page": 2,
            "next_cursor": None,
        }


class TestElsewhere:
    async def test_behind_a_prefix(self, app: FastAPI, client: httpx.AsyncClient, ann: User) -> None:
        """A cursor from one prefix works behind another."""
        cursor = (await client.get("/api/v1/ann/moths?items_per_page=2")).json()["next_cursor"]
        async with open_client(app, root_path="/service") as prefixed:
            for path in ("/api/v1/ann/moths", "/service/api/v1/ann/moths"):
                response = await prefixed.get(path, params={"cursor": cursor})
                assert response.status_code == 200, response.text
                assert ids(response.json()) == [5, 7, 9]


class TestCached:
    async def test_under_a_key_of_its_own(self, read: Read, redis: RedisRoles, statements: Statements) -> None:
        first = (await read("/ann/moths", items_per_page=2)).json()
        following = await read("/ann/moths", items_per_page=2, cursor=first["next_cursor"])
        keys = {key.decode() for key in await redis.cache.keys("ann_moths:*")}
        assert keys == {
            "ann_moths:page_1:items_per_page:2:ann",
            f"ann_moths:page_1{first['next_cursor']}:items_per_page:2:ann",
        }
        statements.clear()
        assert (await read("/ann/moths", items_per_page=2, cursor=first["next_cursor"])).json() == following.json()
        assert statements.all == []

    async def test_not_once_per_page_number(self, read: Read, redis: RedisRoles) -> None:
        """A cursor's page has one key: a client could send it with any number of page numbers."""
        cursor = (await read("/ann/moths", items_per_page=2)).json()["next_cursor"]
        stored = await redis.cache.keys("ann_moths:*")
        assert len(stored) == 1
        assert (await read("/ann/moths", items_per_page=2, cursor=cursor, page=7)).status_code == 200
        assert await redis.cache.keys("ann_moths:*") == stored

    async def test_ends_with_a_write(self, read: Read, client: httpx.AsyncClient, superuser_headers: Headers) -> None:
        cursor = (await read("/ann/moths", items_per_page=2)).json()["next_cursor"]
        assert ids((await read("/ann/moths", cursor=cursor)).json()) == [5, 7, 9]
        assert (await client.delete("/api/v1/ann/db_moth/7", headers=superuser_headers)).status_code == 200
        assert ids((await read("/ann/moths", cursor=cursor)).json()) == [5, 9]

    @pytest.mark.parametrize(("page", "stored"), [(5, True), (6, True), (7, False), (10**6, False)])
    async def test_pages_beyond_the_last_are_not_stored(
        self, read: Read, redis: RedisRoles, page: int, stored: bool
    ) -> None:
        """The first page beyond the last may be stored: the next row will appear on it."""
        response = await read("/ann/moths", items_per_page=1, page=page)
        assert (response.status_code, response.json()["total_count"]) == (200, 5)
        assert bool(await redis.cache.keys("ann_moths:*")) == stored

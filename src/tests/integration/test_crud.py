"""CRUDBase, on the application's tables and on tables of this module."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import asyncpg
import pytest
from pydantic import BaseModel
from sqlalchemy import DateTime, MetaData, String, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, Database, default_engines, transaction
from app.core.exceptions import DuplicateValueError, NotFoundError, UnknownFilterError
from app.core.models import PersistentDeletion
from app.crud.crud_base import CRUDBase
from app.crud.crud_users import crud_users
from app.crud.statements import Lookup
from app.models.user import User
from app.schemas.user import UserCreateInternal, UserReadOwn, UserUpdate
from tests.factories import make_user
from tests.fixtures import Fetch, Statements
from tests.helper import is_recent
from tests.specimen.crud import crud_drawers, crud_moths, crud_slips
from tests.specimen.factories import make_drawer, make_moth, make_slip
from tests.specimen.models import Drawer, Moth
from tests.specimen.schemas import DrawerCreate, DrawerRead, DrawerUpdate, MothCreate, MothUpdate


class Body(BaseModel):
    """The schema that creates and updates rows of this module's tables."""

    name: str = "a"


# -------- tables such as a reader of the README may write --------


class OwnBase(Base):
    """The base of this module's tables, with separate metadata that Alembic and other tests do not see."""

    __abstract__ = True

    metadata = MetaData()


class Mixed(PersistentDeletion, OwnBase):
    __tablename__ = "crud_mixed"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(10))


class Bare(OwnBase):
    """A table that declares the columns of soft deletion itself."""

    __tablename__ = "crud_bare"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(10))
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), default=None)
    is_deleted: Mapped[bool] = mapped_column(default=False)


class FlagOnly(OwnBase):
    __tablename__ = "crud_flag_only"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(10))
    is_deleted: Mapped[bool] = mapped_column(default=False)


class Plain(OwnBase):
    """A table without soft deletion and `updated_at`, with a composite key and a renamed column."""

    __tablename__ = "crud_plain"

    first: Mapped[int] = mapped_column(primary_key=True)
    second: Mapped[int] = mapped_column("second_column", primary_key=True)
    name: Mapped[str] = mapped_column(String(10))


class Found(OwnBase):
    __tablename__ = "crud_found"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    found: Mapped[bool]
    rows: Mapped[int]


class FoundBody(BaseModel):
    found: bool
    rows: int


class PlainBody(Body):
    first: int
    second: int


crud_mixed = CRUDBase[Mixed, Body, Body](Mixed)
crud_bare = CRUDBase[Bare, Body, Body](Bare)
crud_flag_only = CRUDBase[FlagOnly, Body, Body](FlagOnly)
crud_found = CRUDBase[Found, FoundBody, Body](Found)
crud_plain = CRUDBase[Plain, PlainBody, Body](Plain)


class Rename(BaseModel):
    name: str


class Deletion(BaseModel):
    is_deleted: bool


class CRUDMixed(CRUDBase[Mixed, Body, Body, Rename, Deletion]):
    """All five type parameters, as older code has them."""


@pytest.fixture
async def tables() -> AsyncIterator[None]:
    async with default_engines.write.begin() as connection:
        await connection.run_sync(OwnBase.metadata.create_all)
    yield
    async with default_engines.write.begin() as connection:
        await connection.run_sync(OwnBase.metadata.drop_all)


@pytest.fixture(params=["session", "reader"])
async def reading(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """Each kind of argument that reading methods accept."""
    if request.param == "reader":
        yield default_engines.reader
    else:
        async with transaction() as db:
            yield db


class UserPublic(BaseModel):
    id: int
    name: str
    username: str


class TestGet:
    async def test_every_column(self, reading: Database, user: User) -> None:
        moth = await make_moth(user)
        found = await crud_moths.get(reading, id=moth.id)
        assert found == {
            "id": moth.id,
            "uuid": moth.uuid,
            "created_by_user_id": user.id,
            "title": moth.title,
            "text": moth.text,
            "media_url": None,
            "drawer_id": None,
            "created_at": moth.created_at,
            "updated_at": None,
            "deleted_at": None,
            "is_deleted": False,
        }
        assert type(found) is dict
        assert {type(key) for key in found} == {str}

    async def test_nothing(self, reading: Database, user: User) -> None:
        assert await crud_users.get(reading, id=user.id + 1) is None

    async def test_schema(self, reading: Database, user: User, statements: Statements) -> None:
        found = await crud_users.get(reading, UserPublic, username=user.username)
        assert found == {"id": user.id, "name": user.name, "username": user.username}
        await asyncio.sleep(0)  # the driver logs its statements in the next iteration of the loop
        [sql] = [sql for _, sql in statements.all if "SELECT" in sql]
        assert "email" not in sql
        assert "hashed_password" not in sql

    async def test_names(self, reading: Database, user: User) -> None:
        found = await crud_users.get(reading, ["username", "id"], email=user.email)
        assert found == {"username": user.username, "id": user.id}

    async def test_names_that_are_no_columns_are_left_out(self, reading: Database, user: User) -> None:
        assert await crud_users.get(reading, ["id", "nothing"], id=user.id) == {"id": user.id}
        with pytest.raises(ValueError, match="none of nothing is a column of User"):
            await crud_users.get(reading, ["nothing"], id=user.id)

    async def test_first_by_primary_key(self, reading: Database) -> None:
        users = [await make_user(name="Same") for _ in range(3)]
        found = await crud_users.get(reading, ["id"], name="Same")
        assert found == {"id": users[0].id}

    async def test_filters_all_hold(self, reading: Database, user: User) -> None:
        assert await crud_users.get(reading, ["id"], id=user.id, name=user.name) is not None
        assert await crud_users.get(reading, ["id"], id=user.id, name="Else") is None

    async def test_none_is_null(self, reading: Database) -> None:
        drawer, user = await make_drawer(), await make_user()
        without, within = await make_moth(user), await make_moth(user, drawer_id=drawer.id)
        assert await crud_moths.get(reading, ["id"], drawer_id=None) == {"id": without.id}
        assert await crud_moths.get(reading, ["id"], drawer_id=drawer.id) == {"id": within.id}

    async def test_true_and_false(self, reading: Database, user: User, superuser: User, statements: Statements) -> None:
        assert await crud_users.get(reading, ["id"], is_superuser=True) == {"id": superuser.id}
        assert await crud_users.get(reading, ["id"], is_superuser=False) == {"id": user.id}
        assert [sql for _, sql in statements.all if " IS " in sql] == []

    async def test_unknown_filter(self, reading: Database, user: User, statements: Statements) -> None:
        for value in (1, None, True):
            with pytest.raises(UnknownFilterError, match=r"'nothing'.*it has id, "):
                await crud_users.get(reading, nothing=value)
        assert statements.all in ([], [("write", "BEGIN;")])

    async def test_value_is_a_parameter(self, reading: Database, user: User) -> None:
        assert await crud_users.get(reading, name="' OR TRUE --") is None

    async def test_sees_writes_of_its_session(self, reading: Database, db: AsyncSession) -> None:
        await crud_drawers.create(db, DrawerCreate(name="new"))
        assert await crud_drawers.get(db, name="new") is not None
        assert await crud_drawers.get(default_engines.reader, name="new") is None


class TestGetMulti:
    async def test_defaults(self, reading: Database) -> None:
        users = [await make_user() for _ in range(3)]
        found = await crud_users.get_multi(reading)
        assert {**found, "data": [row["id"] for row in found["data"]]} == {
            "data": [user.id for user in users],
            "total_count": 3,
            "has_more": False,
            "page": 1,
            "items_per_page": 100,
        }
        assert {type(row) for row in found["data"]} == {dict}

    async def test_none(self, reading: Database) -> None:
        assert await crud_users.get_multi(reading) == {
            "data": [],
            "total_count": 0,
            "has_more": False,
            "page": 1,
            "items_per_page": 100,
        }

    @pytest.mark.parametrize(
        ("offset", "limit", "ids", "has_more", "page"),
        [
            (0, 2, [1, 2], True, 1),
            (2, 2, [3, 4], True, 2),
            (3, 2, [4, 5], False, 2),
            (4, 2, [5], False, 3),
            (3, 100, [4, 5], False, 1),
            (5, 2, [], False, 3),
            (50, 2, [], False, 26),
        ],
    )
    async def test_pages(
        self, reading: Database, offset: int, limit: int, ids: list[int], has_more: bool, page: int
    ) -> None:
        for _ in range(5):
            await make_drawer()
        found = await crud_drawers.get_multi(reading, offset=offset, limit=limit, schema_to_select=["id"])
        assert found == {
            "data": [{"id": number} for number in ids],
            "total_count": 5,
            "has_more": has_more,
            "page": page,
            "items_per_page": limit,
        }

    @pytest.mark.parametrize("kept", [True, False])
    async def test_every_page_of_the_remaining_rows(self, reading: Database, fetch: Fetch, kept: bool) -> None:
        """Deleted rows leave gaps. The total comes from the kept count or from counting."""
        users = [await make_user(name="Same") for _ in range(9)]
        gone = [users[n].id for n in (0, 3, 4, 8)]
        await fetch('UPDATE "user" SET is_deleted = true WHERE id = ANY($1)', gone)
        left = [user.id for user in users if user.id not in gone]
        filters: dict[str, Any] = {"is_deleted": False} if kept else {"is_deleted": False, "name": "Same"}
        for limit in (1, 2, 3, 100):
            for offset in range(8):
                found = await crud_users.get_multi(reading, offset, limit, ["name", "id"], **filters)
                assert [row["id"] for row in found["data"]] == left[offset : offset + limit]
                assert (found["total_count"], found["has_more"]) == (5, offset + limit < 5)
            for after in range(11):
                found = await crud_users.get_multi(reading, 0, limit, ["id"], after=after, **filters)
                following = [left_id for left_id in left if left_id > after]
                assert [row["id"] for row in found["data"]] == following[:limit]
                assert (found["total_count"], found["has_more"], found["page"]) == (5, limit < len(following), None)

    async def test_pages_in_the_order_of_a_key_of_two_columns(self, tables: None) -> None:
        async with transaction() as db:
            for first, second in ((2, 1), (1, 2), (1, 1), (2, 2)):
                await crud_plain.create(db, PlainBody(first=first, second=second))
        for offset, keys in ((1, [(1, 2), (2, 1)]), (2, [(2, 1), (2, 2)]), (3, [(2, 2)]), (4, [])):
            found = await crud_plain.get_multi(default_engines.reader, offset, 2, ["second", "first"])
            assert [(row["first"], row["second"]) for row in found["data"]] == keys
            assert found["total_count"] == 4
        with pytest.raises(ValueError, match="a primary key of one column"):
            await crud_plain.get_multi(default_engines.reader, after=1)

    async def test_columns_may_have_the_names_of_internal_page_columns(self, tables: None) -> None:
        async with transaction() as db:
            for found in (False, True):
                await crud_found.create(db, FoundBody(found=found, rows=7))
        for offset, data in ((0, [{"found": False, "rows": 7}]), (1, [{"found": True, "rows": 7}]), (2, [])):
            page = await crud_found.get_multi(default_engines.reader, offset, 1, ["found", "rows"])
            assert (page["data"], page["total_count"]) == (data, 2)

    async def test_after_goes_with_no_offset(self, reading: Database) -> None:
        with pytest.raises(ValueError, match="not with an offset"):
            await crud_users.get_multi(reading, 1, after=1)

    async def test_total_counts_matching_rows(self, reading: Database) -> None:
        for name in ("Same", "Same", "Else", "Same"):
            await make_user(name=name)
        found = await crud_users.get_multi(reading, 0, 2, ["id"], name="Same")
        assert found["data"] == [{"id": 1}, {"id": 2}]
        assert (found["total_count"], found["has_more"]) == (3, True)

    async def test_schema(self, reading: Database, user: User) -> None:
        found = await crud_users.get_multi(reading, schema_to_select=UserReadOwn)
        assert [{*row} for row in found["data"]] == [{*UserReadOwn.model_fields}]

    async def test_order_by_primary_key_of_two_columns(self, tables: None) -> None:
        async with transaction() as db:
            for first, second in ((2, 1), (1, 2), (1, 1)):
                await crud_plain.create(db, PlainBody(first=first, second=second))
        found = await crud_plain.get_multi(default_engines.reader, schema_to_select=["first", "second"])
        assert [(*row.values(),) for row in found["data"]] == [(1, 1), (1, 2), (2, 1)]

    @pytest.mark.parametrize(("offset", "limit"), [(-1, 10), (0, 0), (0, -1)])
    async def test_refused(self, reading: Database, offset: int, limit: int) -> None:
        with pytest.raises(ValueError, match="offset must be 0 or more and limit 1 or more"):
            await crud_users.get_multi(reading, offset, limit)

    async def test_unknown_filter(self, reading: Database) -> None:
        with pytest.raises(UnknownFilterError, match="'nothing'"):
            await crud_users.get_multi(reading, nothing=None)


class TestExistsAndCount:
    async def test_exists(self, reading: Database, user: User) -> None:
        assert await crud_users.exists(reading, username=user.username) is True
        assert await crud_users.exists(reading, username="nobody") is False
        assert await crud_users.exists(reading, username=user.username, profile_image_url=None) is True

    async def test_count(self, reading: Database) -> None:
        assert await crud_users.count(reading) == 0
        for name in ("Same", "Same", "Else"):
            await make_user(name=name)
        assert await crud_users.count(reading) == 3
        assert await crud_users.count(reading, name="Same") == 2
        assert await crud_users.count(reading, profile_image_url=None) == 3

    async def test_without_filter(self, reading: Database, user: User) -> None:
        assert await crud_users.exists(reading) is True
        assert await crud_moths.exists(reading) is False

    async def test_unknown_filter(self, reading: Database) -> None:
        with pytest.raises(UnknownFilterError, match="'nothing'"):
            await crud_users.exists(reading, nothing=None)
        with pytest.raises(UnknownFilterError, match="'nothing'"):
            await crud_users.count(reading, nothing=None)


class TestLookup:
    """A filter whose value the statement looks up, such as the id of a user by name."""

    async def test_reads(self, reading: Database, user: User, statements: Statements) -> None:
        moths = [await make_moth(user) for _ in range(3)]
        await make_moth(await make_user())
        statements.clear()
        own: dict[str, Any] = {"created_by_user_id": crud_users.id_of(user.username), "is_deleted": False}
        page = await crud_moths.get_multi(reading, **own)
        assert [row["id"] for row in page["data"]] == [moth.id for moth in moths]
        assert page["total_count"] == await crud_moths.count(reading, **own) == 3
        assert await crud_moths.get(reading, ["id"], id=moths[1].id, **own) == {"id": moths[1].id}
        assert await crud_moths.exists(reading, **own)
        assert sum("row_count" in sql for _, sql in statements.all) == 2

    async def test_no_row_equals_a_lookup_without_a_result(self, reading: Database, user: User) -> None:
        await make_moth(user)
        own: dict[str, Any] = {"created_by_user_id": crud_users.id_of("nobody"), "is_deleted": False}
        assert await crud_moths.count(reading, **own) == 0
        assert not await crud_moths.exists(reading, **own)

    @pytest.mark.parametrize(("offset", "after"), [(0, None), (5, None), (0, 5)])
    async def test_reading_rows_names_the_missing_row(
        self, reading: Database, user: User, offset: int, after: int | None
    ) -> None:
        own: dict[str, Any] = {"created_by_user_id": crud_users.id_of(user.username), "is_deleted": False}
        assert await crud_moths.get(reading, **own) is None
        found = await crud_moths.get_multi(reading, offset, after=after, **own)
        assert (found["data"], found["total_count"], found["has_more"]) == ([], 0, False)
        own["created_by_user_id"] = crud_users.id_of("nobody")
        with pytest.raises(NotFoundError, match="User not found"):
            await crud_moths.get(reading, **own)
        with pytest.raises(NotFoundError, match="User not found"):
            await crud_moths.get_multi(reading, offset, after=after, **own)
        nothing = Lookup(User, "profile_image_url", {"id": user.id})  # the row is there, and the value is NULL
        assert await crud_moths.get(reading, title=nothing) is None
        with pytest.raises(NotFoundError, match="User or Drawer not found"):
            await crud_moths.get(reading, **own, title=Lookup(Drawer, "name", {"id": 1}))

    async def test_two_of_them(self, reading: Database, user: User) -> None:
        """Two lookups in one statement keep their own parameters, even if they use the same columns."""
        other = await make_user()
        await make_moth(user, title=other.username)

        async def has(owner: User, named: User) -> bool:
            title = Lookup(User, "username", {"id": named.id})
            return await crud_moths.exists(reading, created_by_user_id=crud_users.id_of(owner.username), title=title)

        assert await has(user, other)
        assert not await has(other, user)
        assert not await has(user, user)
        assert not await crud_users.exists(reading, id=crud_users.id_of(user.username), username=other.username)

    async def test_column_that_is_written_and_looked_up(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            values = {"username": "renamed", "name": "Renamed"}
            assert await crud_users.update(db, values, id=crud_users.id_of(user.username)) == 1
        assert [row["username"] for row in await fetch('SELECT username FROM "user"')] == ["renamed"]

    async def test_unknown_filter_of_the_other(self, reading: Database) -> None:
        with pytest.raises(UnknownFilterError, match="User has no column 'title'"):
            await crud_moths.exists(reading, created_by_user_id=Lookup(User, "id", {"title": "x"}))

    async def test_writes(self, user: User, fetch: Fetch) -> None:
        await make_moth(user)
        other = await make_moth(await make_user())
        async with transaction() as db:
            own = {"created_by_user_id": crud_users.id_of(user.username)}
            assert await crud_moths.update(db, MothUpdate(title="Changed"), **own) == 1
            assert await crud_moths.db_delete(db, **own) == 1
            assert await crud_moths.db_delete(db, created_by_user_id=crud_users.id_of("nobody")) == 0
        assert [row["id"] for row in await fetch("SELECT id FROM moth")] == [other.id]

    async def test_create(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            moth = MothCreate(title="Title", text="Text")
            await crud_moths.create(db, moth, created_by_user_id=crud_users.id_of(user.username))
            with pytest.raises(NotFoundError, match="User not found"):
                await crud_moths.create(db, moth, created_by_user_id=crud_users.id_of("nobody"))
        assert [row["created_by_user_id"] for row in await fetch("SELECT * FROM moth")] == [user.id]

    @pytest.mark.parametrize("write", ["create", "update", "update_one", "delete", "db_delete", "update_loaded"])
    async def test_writes_lock_the_row_that_is_looked_up(self, user: User, fetch: Fetch, write: str) -> None:
        moth = await make_moth(user)
        own = {"created_by_user_id": crud_users.id_of(user.username)}
        lock = 'SELECT id FROM "user" FOR NO KEY UPDATE NOWAIT'  # what an UPDATE of other columns takes
        async with transaction() as db:
            match write:
                case "create":
                    await crud_moths.create(db, MothCreate(title="Title", text="Text"), **own)
                case "update_loaded":
                    assert await db.get(Moth, moth.id)
                    assert await crud_moths.update(db, {"title": "Changed"}, **own)
                case "update" | "update_one":
                    assert await getattr(crud_moths, write)(db, {"title": "Changed"}, **own)
                case _:
                    assert await getattr(crud_moths, write)(db, **own)
            assert await fetch(lock) == [{"id": user.id}]
            with pytest.raises(asyncpg.LockNotAvailableError):
                await fetch('SELECT id FROM "user" FOR UPDATE NOWAIT')  # what a change of the name takes


class TestCreate:
    async def test_values_beside_the_schema(self, tables: None, fetch: Fetch) -> None:
        async with transaction() as db:
            row = await CRUDBase[Plain, Body, Body](Plain).create(db, Body(), first=1, second=2)
            assert (row.first, row.second, row.name) == (1, 2, "a")
        assert await fetch("SELECT * FROM crud_plain") == [{"first": 1, "second_column": 2, "name": "a"}]

    async def test_value_that_the_schema_has(self, tables: None) -> None:
        async with transaction() as db:
            with pytest.raises(TypeError, match="'second'"):
                await crud_plain.create(db, PlainBody(first=1, second=2), second=3)

    async def test_returns_the_model(self, fetch: Fetch) -> None:
        internal = UserCreateInternal(name="Ann Other", username="ann", email="Ann@example.com", hashed_password="x")
        async with transaction() as db:
            row = await crud_users.create(db, internal)
            assert isinstance(row, User)
            assert (row.id, row.username, row.email, row.is_deleted) == (1, "ann", "ann@example.com", False)
            assert await fetch('SELECT FROM "user"') == []
        [stored] = await fetch('SELECT * FROM "user"')
        assert stored == {name: getattr(row, name) for name in stored}

    async def test_duplicate(self, fetch: Fetch) -> None:
        await make_drawer("free")

        async def create_two() -> None:
            async with transaction() as db:
                await crud_drawers.create(db, DrawerCreate(name="other"))
                await crud_drawers.create(db, DrawerCreate(name="free"))

        with pytest.raises(DuplicateValueError, match="Name already taken"):
            await create_two()
        assert await fetch("SELECT name FROM drawer") == [{"name": "free"}]

    async def test_duplicate_inside_a_savepoint_leaves_the_transaction_usable(self, fetch: Fetch) -> None:
        await make_drawer("free")
        async with transaction() as db:
            await crud_drawers.create(db, DrawerCreate(name="before"))
            with pytest.raises(DuplicateValueError):
                async with db.begin_nested():
                    await crud_drawers.create(db, DrawerCreate(name="free"))
            await crud_drawers.create(db, DrawerCreate(name="after"))
        assert {row["name"] for row in await fetch("SELECT name FROM drawer")} == {"free", "before", "after"}


class TestUpdate:
    async def test_schema_changes_only_the_set_fields(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            assert await crud_users.update(db, UserUpdate(name="New Name"), id=user.id) == 1
        [row] = await fetch('SELECT * FROM "user"')
        assert is_recent(row["updated_at"])
        assert (row["name"], row["username"], row["email"]) == ("New Name", user.username, user.email)

    async def test_dict(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            await crud_users.update(db, {"name": "New Name", "profile_image_url": None}, username=user.username)
        [row] = await fetch('SELECT name, updated_at FROM "user"')
        assert row["name"] == "New Name"
        assert is_recent(row["updated_at"])

    async def test_row_that_the_session_holds_is_kept_in_step(self, user: User) -> None:
        async with transaction() as db:
            row = await db.get_one(User, user.id)
            await crud_users.update(db, {"name": "New Name"}, id=user.id)
            assert row.name == "New Name"
            changed = await crud_users.update_one(db, {"name": "Newer"}, ["name"], id=user.id)
            assert (changed, row.name) == ({"name": "Newer"}, "Newer")

    async def test_expression(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            await crud_users.update(db, {"name": func.upper(User.name), "profile_image_url": None}, id=user.id)
        [row] = await fetch('SELECT name FROM "user"')
        assert row["name"] == user.name.upper()

    async def test_every_row_that_matches(self, fetch: Fetch) -> None:
        for name in ("Same", "Same", "Else"):
            await make_user(name=name)
        async with transaction() as db:
            assert await crud_users.update(db, {"name": "New"}, name="Same") == 2
        rows = await fetch('SELECT name, updated_at IS NULL AS untouched FROM "user" ORDER BY id')
        assert [(*row.values(),) for row in rows] == [("New", False), ("New", False), ("Else", True)]

    async def test_none_that_matches(self, user: User) -> None:
        async with transaction() as db:
            assert await crud_users.update(db, {"name": "New"}, id=user.id + 1) == 0

    async def test_null_filter(self, fetch: Fetch) -> None:
        await make_user()
        await make_user(profile_image_url="https://example.com/image.png")
        async with transaction() as db:
            assert await crud_users.update(db, {"name": "New"}, profile_image_url=None) == 1
        assert [row["name"] for row in await fetch('SELECT name FROM "user" ORDER BY id')] == ["New", "Some User"]

    async def test_name_that_is_filter_and_value(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            assert await crud_users.update(db, {"name": "New Name"}, name=user.name) == 1
        assert await fetch('SELECT name FROM "user"') == [{"name": "New Name"}]

    async def test_nothing_set_still_touches(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            assert await crud_users.update(db, UserUpdate(), id=user.id) == 1
        assert is_recent((await fetch('SELECT updated_at FROM "user"'))[0]["updated_at"])

    async def test_updated_at_may_be_given(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            await crud_users.update(db, {"updated_at": user.created_at}, id=user.id)
        assert await fetch('SELECT updated_at FROM "user"') == [{"updated_at": user.created_at}]

    async def test_model_without_updated_at(self, tables: None) -> None:
        async with transaction() as db:
            await crud_plain.create(db, PlainBody(first=1, second=2))
            assert await crud_plain.update(db, Body(name="new"), second=2) == 1
        found = await crud_plain.get(default_engines.reader, first=1)
        assert found == {"first": 1, "second": 2, "name": "new"}

    async def test_nothing_set_on_model_without_updated_at(self, tables: None) -> None:
        async with transaction() as db:
            await crud_plain.create(db, PlainBody(first=1, second=2))
            assert await crud_plain.update(db, {}, second=2) == 1
            assert await crud_plain.update(db, {}, second=3) == 0
            found = await crud_plain.update_one(db, {}, first=1)
        assert found == {"first": 1, "second": 2, "name": "a"}

    async def test_without_filter(self, user: User, fetch: Fetch) -> None:
        with pytest.raises(UnknownFilterError, match="without a filter"):
            async with transaction() as db:
                await crud_users.update(db, {"name": "New"})
        assert await fetch('SELECT name FROM "user"') == [{"name": user.name}]

    async def test_unknown_names(self, user: User) -> None:
        async with transaction() as db:
            with pytest.raises(UnknownFilterError, match="'nothing'"):
                await crud_users.update(db, {"name": "New"}, nothing=None)
            with pytest.raises(UnknownFilterError, match="'nothing'"):
                await crud_users.update(db, {"name": "New", "nothing": 1}, id=user.id)

    async def test_duplicate(self, fetch: Fetch) -> None:
        await make_drawer("free")
        await make_drawer("pro")
        with pytest.raises(DuplicateValueError, match="Name already taken"):
            async with transaction() as db:
                await crud_drawers.update(db, DrawerUpdate(name="free"), name="pro")
        assert len(await fetch("SELECT FROM drawer WHERE name = 'pro'")) == 1

    async def test_one(self, fetch: Fetch) -> None:
        drawer = await make_drawer("free")
        async with transaction() as db:
            found = await crud_drawers.update_one(db, DrawerUpdate(name="pro"), DrawerRead, name="free")
            missing = await crud_drawers.update_one(db, DrawerUpdate(name="x"), DrawerRead, name="free")
        assert found == {"id": drawer.id, "name": "pro", "created_at": drawer.created_at}
        assert missing is None
        assert await fetch("SELECT name FROM drawer") == [{"name": "pro"}]

    async def test_one_without_filter(self) -> None:
        async with transaction() as db:
            with pytest.raises(UnknownFilterError, match="without a filter"):
                await crud_drawers.update_one(db, {"name": "x"})

    async def test_one_refuses_to_change_more_than_one(self, fetch: Fetch) -> None:
        await make_user(name="Same")
        await make_user(name="Same")
        with pytest.raises(Exception, match="Multiple rows"):
            async with transaction() as db:
                await crud_users.update_one(db, {"name": "New"}, ["id"], name="Same")
        assert await fetch("SELECT FROM \"user\" WHERE name = 'New'") == []


class TestTypeParameters:
    async def test_all_five(self, tables: None) -> None:
        crud = CRUDMixed(Mixed)
        async with transaction() as db:
            row = await crud.create(db, Body())
            assert await crud.update(db, Body(name="b"), id=row.id) == 1
            assert await crud.update_one(db, Rename(name="c"), ["name"], id=row.id) == {"name": "c"}
            assert await crud.delete(db, id=row.id) == 1

    async def test_the_last_two_have_defaults(self, tables: None) -> None:
        """Mypy checks this too: it refuses a schema that is not among the type parameters."""
        async with transaction() as db:
            row = await crud_mixed.create(db, Body())
            assert await crud_mixed.update(db, Body(name="b"), id=row.id) == 1
            assert await crud_mixed.update(db, Rename(name="c"), id=row.id) == 1  # type: ignore[arg-type]


class TestDelete:
    async def test_soft_with_mixin(self, user: User, fetch: Fetch) -> None:
        moth = await make_moth(user)
        async with transaction() as db:
            assert await crud_moths.delete(db, id=moth.id) == 1
        [row] = await fetch("SELECT * FROM moth")
        assert row["is_deleted"]
        assert is_recent(row["deleted_at"])
        assert (row["title"], row["updated_at"]) == (moth.title, None)

    async def test_soft_with_bare_columns(self, tables: None, fetch: Fetch) -> None:
        async with transaction() as db:
            row = await crud_bare.create(db, Body())
            assert await crud_bare.delete(db, id=row.id) == 1
        [stored] = await fetch("SELECT * FROM crud_bare")
        assert stored["is_deleted"]
        assert is_recent(stored["deleted_at"])

    async def test_soft_with_mixin_of_ones_own_table(self, tables: None, fetch: Fetch) -> None:
        async with transaction() as db:
            row = await crud_mixed.create(db, Body())
            assert await crud_mixed.delete(db, id=row.id) == 1
        assert [row["is_deleted"] for row in await fetch("SELECT * FROM crud_mixed")] == [True]

    async def test_soft_without_deleted_at(self, tables: None, fetch: Fetch) -> None:
        async with transaction() as db:
            row = await crud_flag_only.create(db, Body())
            assert await crud_flag_only.delete(db, id=row.id) == 1
        assert await fetch("SELECT * FROM crud_flag_only") == [{"id": 1, "name": "a", "is_deleted": True}]

    async def test_real_without_is_deleted(self, tables: None, fetch: Fetch) -> None:
        drawer = await make_drawer()
        async with transaction() as db:
            await crud_plain.create(db, PlainBody(first=1, second=2))
            assert await crud_plain.delete(db, second=2) == 1
            assert await crud_drawers.delete(db, id=drawer.id) == 1
        assert await fetch("SELECT FROM crud_plain") == []
        assert await fetch("SELECT FROM drawer") == []

    async def test_twice_keeps_the_first_moment(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            assert await crud_users.delete(db, id=user.id) == 1
        [before] = await fetch('SELECT deleted_at FROM "user"')
        async with transaction() as db:
            assert await crud_users.delete(db, id=user.id) == 0
        assert await fetch('SELECT deleted_at FROM "user"') == [before]

    @pytest.mark.parametrize("as_dict", [False, True])
    async def test_row_that_was_read(self, user: User, fetch: Fetch, as_dict: bool) -> None:
        moth, other = await make_moth(user), await make_moth(user)
        row = await crud_moths.get(default_engines.reader, id=moth.id) if as_dict else moth
        async with transaction() as db:
            assert await crud_moths.delete(db, db_row=row) == 1
        rows = await fetch("SELECT id, is_deleted FROM moth ORDER BY id")
        assert rows == [{"id": moth.id, "is_deleted": True}, {"id": other.id, "is_deleted": False}]

    async def test_row_beside_filters(self, user: User, fetch: Fetch) -> None:
        moth = await make_moth(user)
        async with transaction() as db:
            assert await crud_moths.delete(db, moth, created_by_user_id=user.id + 1) == 0
            assert await crud_moths.delete(db, moth, created_by_user_id=user.id) == 1

    async def test_row_with_a_key_of_two_columns(self, tables: None) -> None:
        async with transaction() as db:
            row = await crud_plain.create(db, PlainBody(first=1, second=2))
            await crud_plain.create(db, PlainBody(first=1, second=3))
            assert await crud_plain.delete(db, row) == 1
        assert await crud_plain.count(default_engines.reader) == 1

    @pytest.mark.parametrize(("is_deleted", "number"), [(False, 1), (True, 0)])
    async def test_filter_by_the_mark(self, user: User, is_deleted: bool, number: int) -> None:
        await make_moth(user)
        async with transaction() as db:
            assert await crud_moths.delete(db, is_deleted=is_deleted) == number

    async def test_every_row_that_matches(self, user: User, fetch: Fetch) -> None:
        for title in ("Same", "Same", "Else"):
            await make_moth(user, title=title)
        async with transaction() as db:
            assert await crud_moths.delete(db, title="Same") == 2
        assert await fetch("SELECT title FROM moth WHERE NOT is_deleted") == [{"title": "Else"}]

    async def test_without_filter(self, user: User, fetch: Fetch) -> None:
        await make_drawer()
        for crud in (crud_users, crud_drawers):
            with pytest.raises(UnknownFilterError, match="without a filter"):
                async with transaction() as db:
                    await crud.delete(db)
        assert len(await fetch('SELECT FROM "user" WHERE NOT is_deleted')) == 1
        assert len(await fetch("SELECT FROM drawer")) == 1

    async def test_unknown_filter(self, user: User, fetch: Fetch) -> None:
        async with transaction() as db:
            with pytest.raises(UnknownFilterError, match="'nothing'"):
                await crud_users.delete(db, nothing=None)


class TestDbDelete:
    async def test_real(self, user: User, fetch: Fetch) -> None:
        moth, other = await make_moth(user), await make_moth(user)
        async with transaction() as db:
            await crud_moths.delete(db, id=moth.id)
            assert await crud_moths.db_delete(db, id=moth.id) == 1
        assert await fetch("SELECT id FROM moth") == [{"id": other.id}]

    async def test_none_that_matches(self, user: User) -> None:
        async with transaction() as db:
            assert await crud_moths.db_delete(db, id=7) == 0

    async def test_every_row_that_matches(self, fetch: Fetch) -> None:
        drawer = await make_drawer()
        for path in ("a", "b"):
            await make_slip(drawer, path=path)
        async with transaction() as db:
            assert await crud_slips.db_delete(db, drawer_id=drawer.id) == 2

    async def test_without_filter(self, user: User, fetch: Fetch) -> None:
        with pytest.raises(UnknownFilterError, match="without a filter"):
            async with transaction() as db:
                await crud_users.db_delete(db)
        assert len(await fetch('SELECT FROM "user"')) == 1

    async def test_unknown_filter(self, user: User) -> None:
        async with transaction() as db:
            with pytest.raises(UnknownFilterError, match="'nothing'"):
                await crud_users.db_delete(db, nothing=None)


class TestUnitOfWork:
    async def test_writes_flush_and_never_commit(self, user: User, fetch: Fetch) -> None:
        moth = await make_moth(user)
        before = await fetch("SELECT * FROM moth")

        async def write_and_fail() -> None:
            async with transaction() as db:
                await crud_drawers.create(db, DrawerCreate(name="new"))
                await crud_moths.update(db, MothUpdate(title="New"), id=moth.id)
                await crud_users.delete(db, id=user.id)
                await crud_moths.db_delete(db, id=moth.id)
                assert await crud_moths.count(db) == 0
                raise RuntimeError("changed my mind")

        with pytest.raises(RuntimeError, match="changed my mind"):
            await write_and_fail()
        assert await fetch("SELECT * FROM moth") == before
        assert await fetch("SELECT FROM drawer") == []
        assert await fetch('SELECT is_deleted FROM "user"') == [{"is_deleted": False}]

    def test_models_are_those_of_their_names(self) -> None:
        assert (crud_users.model, crud_moths.model, crud_drawers.model) == (User, Moth, Drawer)

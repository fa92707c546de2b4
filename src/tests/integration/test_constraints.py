"""Errors of the database name the constraint and its columns, for every kind of constraint."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter
from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    MetaData,
    String,
    UniqueConstraint,
    delete,
    func,
    insert,
    text,
)
from sqlalchemy.dialects.postgresql import INT4RANGE, ExcludeConstraint, Range
from sqlalchemy.orm import Mapped, mapped_column

from app.api.dependencies import SessionDep
from app.core.database import Base, default_engines, transaction
from app.core.exceptions import (
    AppError,
    DuplicateValueError,
    InvalidValueError,
    MissingReferenceError,
    StillReferencedError,
)
from app.core.models import InputSchema, ReadSchema
from app.crud.crud_base import CRUDBase
from tests.fixtures import open_client
from tests.helper import assert_error
from tests.integration.own_app import build


class OwnBase(Base):
    __abstract__ = True
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)


class Shelf(OwnBase):
    __tablename__ = "constraint_shelf"

    id: Mapped[int] = mapped_column(primary_key=True)


class Review(OwnBase):
    """A table with each kind of constraint."""

    __tablename__ = "constraint_review"
    __table_args__ = (
        UniqueConstraint("user_id", "book_id"),
        Index("ix_review_code", func.lower(text("code")), unique=True),
        Index("ix_review_place", "shelf_id", "place_on_shelf", unique=True, postgresql_where=text("NOT is_deleted")),
        CheckConstraint("stars <= 5", "five_stars"),
        ExcludeConstraint(("days", "&&"), name="no_overlap"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    book_id: Mapped[int]
    code: Mapped[str] = mapped_column(String(9))
    days: Mapped[Range[int]] = mapped_column(INT4RANGE)
    shelf_id: Mapped[int] = mapped_column(ForeignKey(Shelf.id), default=1)
    place_on_shelf: Mapped[int | None] = mapped_column(default=None)
    stars: Mapped[int] = mapped_column(default=3)
    is_deleted: Mapped[bool] = mapped_column(default=False)


@pytest.fixture(autouse=True)
async def tables() -> AsyncIterator[None]:
    async with default_engines.write.begin() as connection:
        await connection.run_sync(OwnBase.metadata.create_all)
        await connection.execute(insert(Shelf).values(id=1))
        await connection.execute(insert(Review).values(**ROW))
    yield
    async with default_engines.write.begin() as connection:
        await connection.run_sync(OwnBase.metadata.drop_all)


ROW: dict[str, Any] = {
    "id": 1, "user_id": 1, "book_id": 1, "code": "a", "days": Range(1, 3), "shelf_id": 1, "place_on_shelf": 1,
    "stars": 5, "is_deleted": False,
}  # fmt: skip
OTHER = {**ROW, "id": 2, "user_id": 2, "book_id": 2, "code": "b", "days": Range(3, 5), "place_on_shelf": 2}


@pytest.mark.parametrize(
    ("values", "error", "constraint", "detail"),
    [
        ({"id": 1}, DuplicateValueError, "pk_constraint_review", "Id already taken"),
        (
            {"user_id": 1, "book_id": 1},
            DuplicateValueError,
            "uq_constraint_review_user_id_book_id",
            "User id and book id already taken",
        ),
        ({"place_on_shelf": 1}, DuplicateValueError, "ix_review_place", "Shelf id and place on shelf already taken"),
        ({"code": "A"}, DuplicateValueError, "ix_review_code", DuplicateValueError.detail),
        ({"days": Range(2, 9)}, DuplicateValueError, "no_overlap", "Days already taken"),
        ({"shelf_id": 9}, MissingReferenceError, "fk_constraint_review_shelf_id_constraint_shelf", None),
        ({"stars": 6}, InvalidValueError, "ck_constraint_review_five_stars", None),
        ({"code": "0123456789"}, InvalidValueError, None, None),
    ],
)
async def test_insert(
    values: dict[str, Any], error: type[AppError], constraint: str | None, detail: str | None
) -> None:
    with pytest.raises(AppError) as raised:
        async with transaction() as db:
            await db.execute(insert(Review).values({**OTHER, **values}))
    found = raised.value
    assert (type(found), found.constraint, found.detail) == (error, constraint, detail or error.detail)


async def test_delete() -> None:
    with pytest.raises(StillReferencedError) as raised:
        async with transaction() as db:
            await db.execute(delete(Shelf))
    assert raised.value.constraint == "fk_constraint_review_shelf_id_constraint_shelf"


class ReviewBody(InputSchema):
    id: int
    user_id: int
    book_id: int
    code: str


class ReviewRead(ReadSchema):
    id: int


router = APIRouter()
crud_reviews = CRUDBase[Review, ReviewBody, ReviewBody](Review)


@router.post("/review", response_model=ReviewRead, status_code=201)
async def write_review(review: ReviewBody, db: SessionDep) -> Review:
    try:
        return await crud_reviews.create(db, review, days=Range(10 * review.id, 10 * review.id + 1))
    except DuplicateValueError as error:
        if error.constraint == "uq_constraint_review_user_id_book_id":
            raise DuplicateValueError("You have already reviewed this book") from error
        raise


async def test_clone_s_own_words_for_one_constraint() -> None:
    async with open_client(build(router)) as client:
        body = {"id": 7, "user_id": 7, "book_id": 7, "code": "c"}
        assert (await client.post("/review", json=body)).status_code == 201
        again = await client.post("/review", json={**body, "id": 8, "code": "d"})
        assert_error(again, 409, "You have already reviewed this book")
        assert_error(await client.post("/review", json={**body, "book_id": 9}), 409, "Id already taken")

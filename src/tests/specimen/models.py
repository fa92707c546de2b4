"""Tables with what a clone's may have: owners, unique names and pairs, checks, soft and real deletion.

`python -m tests.specimen.models` creates them in a migrated database.
"""

import asyncio
from typing import ClassVar

from sqlalchemy import CheckConstraint, ForeignKey, Index, MetaData, String, UniqueConstraint, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from app.core.config import settings
from app.core.database import Base, database_url
from app.core.models import PersistentDeletion, TimestampModel, UUIDModel
from app.models.row_count import Counted
from app.models.user import User


class SpecimenBase(Base):
    __abstract__ = True
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)


class Drawer(TimestampModel, SpecimenBase):
    """A row with a unique name, which is really deleted, unless a moth lies in it."""

    __tablename__ = "drawer"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(50), unique=True)


class Moth(UUIDModel, TimestampModel, PersistentDeletion, Counted, SpecimenBase):
    """A row of a user, which is marked as deleted, and counted for each user."""

    __tablename__ = "moth"
    __counted_by__: ClassVar[str | None] = "created_by_user_id"
    __table_args__ = (
        Index("ix_moth_living", "created_by_user_id", "id", postgresql_where=text("NOT is_deleted")),
        Index("ix_moth_created_by_user_id", "created_by_user_id"),
        Index("ix_moth_drawer_id", "drawer_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    created_by_user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(30))
    text: Mapped[str] = mapped_column(String(63206))
    media_url: Mapped[str | None] = mapped_column(String(2048), default=None)
    drawer_id: Mapped[int | None] = mapped_column(ForeignKey(Drawer.id), default=None)


class Slip(TimestampModel, SpecimenBase):
    """A row with a unique name, a unique pair, and checks; its drawer takes it along."""

    __tablename__ = "slip"
    __table_args__ = (
        UniqueConstraint("drawer_id", "path"),
        CheckConstraint('"limit" >= 0', "limit_not_negative"),
        CheckConstraint("period >= 1", "period_positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    drawer_id: Mapped[int] = mapped_column(ForeignKey(Drawer.id, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(300), unique=True)
    path: Mapped[str] = mapped_column(String(255))
    limit: Mapped[int]
    period: Mapped[int]


async def create_tables() -> None:
    engine = create_async_engine(database_url(settings))
    async with engine.begin() as connection:
        await connection.run_sync(SpecimenBase.metadata.create_all)
        await connection.execute(text("SELECT keep_row_count('moth', 'created_by_user_id')"))
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())

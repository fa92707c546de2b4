from typing import ClassVar

from sqlalchemy import ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.core.models import PersistentDeletion, TimestampModel, UUIDModel
from app.models.row_count import Counted


class Post(UUIDModel, TimestampModel, PersistentDeletion, Counted, Base):
    __tablename__ = "post"
    __counted_by__: ClassVar[str | None] = "created_by_user_id"
    __table_args__ = (
        # Serves the list of a user's posts, page by page.
        Index("ix_post_living", "created_by_user_id", "id", postgresql_where=text("NOT is_deleted")),
        # Serves the deletion of a user's row, which cascades to deleted posts too.
        Index("ix_post_created_by_user_id", "created_by_user_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    created_by_user_id: Mapped[int] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(30))
    text: Mapped[str] = mapped_column(String(63206))
    media_url: Mapped[str | None] = mapped_column(String(2048), default=None)

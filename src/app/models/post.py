from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.core.models import PersistentDeletion, TimestampModel, UUIDModel


class Post(UUIDModel, TimestampModel, PersistentDeletion, Base):
    __tablename__ = "post"
    # Serves the list of a user's posts, in order.
    __table_args__ = (Index(None, "created_by_user_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    created_by_user_id: Mapped[int] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(30))
    text: Mapped[str] = mapped_column(String(63206))
    media_url: Mapped[str | None] = mapped_column(String(2048), default=None)

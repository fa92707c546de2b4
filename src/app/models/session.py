from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.core.models import UUIDModel, now


class Session(UUIDModel, Base):
    """A sign-in that has not ended. Tokens name it by `uuid`; refresh tokens are stored as hashes."""

    __tablename__ = "session"
    __table_args__ = (
        # Serves the list of a user's sessions, ending all of them, and the deletion of the user's row.
        Index("ix_session_user_id", "user_id"),
        # Serves the purge of expired sessions.
        Index("ix_session_expires_at", "expires_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    refresh_hash: Mapped[str] = mapped_column(String(64), repr=False)
    expires_at: Mapped[datetime]
    user_agent: Mapped[str] = mapped_column(String(255))
    address: Mapped[str] = mapped_column(String(64))
    spent_hash: Mapped[str | None] = mapped_column(String(64), default=None, init=False, repr=False)
    created_at: Mapped[datetime] = mapped_column(default_factory=now, init=False)
    last_used_at: Mapped[datetime] = mapped_column(default_factory=now, init=False)

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class PasswordReset(Base):
    """The hash of the token with which a user can set a new password; a user has one at most."""

    __tablename__ = "password_reset"
    # Serves the purge of expired tokens.
    __table_args__ = (Index("ix_password_reset_expires_at", "expires_at"),)

    user_id: Mapped[int] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True, repr=False)
    email: Mapped[str] = mapped_column(String(254))
    expires_at: Mapped[datetime]

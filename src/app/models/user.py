from sqlalchemy import CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.core.models import PersistentDeletion, TimestampModel, UUIDModel
from app.models.row_count import Counted


class User(UUIDModel, TimestampModel, PersistentDeletion, Counted, Base):
    """An account. Tokens name it by `uuid`. A deleted account keeps its username and e-mail address."""

    __tablename__ = "user"
    __table_args__ = (
        # With addresses in lower case, the unique constraint ignores case.
        CheckConstraint("email = lower(email)", "email_lower_case"),
        # Serves the list of users, page by page.
        Index("ix_user_living", "id", postgresql_where=text("NOT is_deleted")),
        # Serves the deletion of a tier, which removes deleted users from it, and the purge of their sessions.
        Index("ix_user_deleted", "tier_id", postgresql_where=text("is_deleted")),
        # Serves the deletion of a user, which locks all superusers.
        Index("ix_user_superuser", "id", postgresql_where=text("is_superuser AND NOT is_deleted")),
        # Serves the deletion of a tier, which must have no users.
        Index("ix_user_tier_id", "tier_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(30))
    username: Mapped[str] = mapped_column(String(20), unique=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    hashed_password: Mapped[str] = mapped_column(String(255), repr=False)
    profile_image_url: Mapped[str | None] = mapped_column(String(2048), default=None)
    tier_id: Mapped[int | None] = mapped_column(ForeignKey("tier.id"), default=None)
    is_superuser: Mapped[bool] = mapped_column(default=False)

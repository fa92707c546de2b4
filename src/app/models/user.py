from sqlalchemy import CheckConstraint, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.core.models import PersistentDeletion, TimestampModel, UUIDModel


class User(UUIDModel, TimestampModel, PersistentDeletion, Base):
    """An account. `uuid` names it in tokens; name and e-mail stay taken while the row is there, deleted or not."""

    __tablename__ = "user"
    # E-mails are stored in lower case, which makes the unique constraint one without regard to case.
    __table_args__ = (CheckConstraint("email = lower(email)", "email_lower_case"),)

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(30))
    username: Mapped[str] = mapped_column(String(20), unique=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    hashed_password: Mapped[str] = mapped_column(String(255), repr=False)
    profile_image_url: Mapped[str | None] = mapped_column(String(2048), default=None)
    tier_id: Mapped[int | None] = mapped_column(ForeignKey("tier.id"), index=True, default=None)
    is_superuser: Mapped[bool] = mapped_column(default=False)

from sqlalchemy import CheckConstraint, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.core.models import TimestampModel


class RateLimit(TimestampModel, Base):
    """At most `limit` requests in `period` seconds for each user of a tier, on one path."""

    __tablename__ = "rate_limit"
    __table_args__ = (
        UniqueConstraint("tier_id", "path"),
        CheckConstraint('"limit" >= 0', "limit_not_negative"),
        CheckConstraint("period >= 1", "period_positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    tier_id: Mapped[int] = mapped_column(ForeignKey("tier.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(300), unique=True)
    path: Mapped[str] = mapped_column(String(255))
    limit: Mapped[int]
    period: Mapped[int]

from typing import ClassVar

from sqlalchemy import BigInteger, Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Counted:
    """Mixin of models whose living rows are counted by triggers, which `keep_row_count` makes in a migration."""

    __counted_by__: ClassVar[str | None] = None
    """The column, an integer, whose every value has a count of its own; None: all rows have one."""


class RowCount(Base):
    """A part of a count: the sum of `rows` is how many living rows of `relation` are of `owner`, or in all (0)."""

    __tablename__ = "row_count"
    # Half of each page is left free: a count that changes stays on its page, and no index has to know.
    __table_args__ = ({"postgresql_with": {"fillfactor": 50}},)

    relation: Mapped[str] = mapped_column(String(63), primary_key=True)
    owner: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True, init=False)
    rows: Mapped[int] = mapped_column(BigInteger)

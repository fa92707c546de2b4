from typing import ClassVar

from sqlalchemy import BigInteger, Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Counted:
    """Mixin of models whose active rows are counted, by triggers that a migration makes: `SELECT keep_row_count(…)`."""

    __counted_by__: ClassVar[str | None] = None
    """An integer column with a count for each of its values; None: one count for all rows."""


class RowCount(Base):
    """A slot of a count: `rows`, summed over one relation and owner, is the number of active rows.

    The owner 0 stands for all owners. Only the functions in `migrations/row_count.sql` write here.
    """

    __tablename__ = "row_count"
    # Half of each page stays free, so that a new version of a slot stays on its page and needs no new index entry.
    __table_args__ = ({"postgresql_with": {"fillfactor": 50}},)

    relation: Mapped[str] = mapped_column(String(63), primary_key=True)
    owner: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True, init=False)
    rows: Mapped[int] = mapped_column(BigInteger)

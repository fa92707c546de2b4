from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.models import now
from app.models.password_reset import PasswordReset


class CRUDPasswordReset:
    """Not a `CRUDBase`: a token is issued, redeemed once or forgotten, and never read or changed."""

    async def issue(self, db: AsyncSession, user_id: int, email: str, token_hash: str, expires_at: datetime) -> None:
        """Let this token, mailed to this address, and no earlier one choose the user's password."""
        values = {"email": email, "token_hash": token_hash, "expires_at": expires_at}
        statement = insert(PasswordReset).values(user_id=user_id, **values)
        await db.execute(statement.on_conflict_do_update(index_elements=["user_id"], set_=values))

    async def redeem(self, db: AsyncSession, token_hash: str) -> tuple[int, str] | None:
        """Use a token up and return whose it is and the address it went to; None when there is none such any more."""
        statement = delete(PasswordReset).where(
            PasswordReset.token_hash == token_hash, PasswordReset.expires_at > now()
        )
        found = await db.execute(statement.returning(PasswordReset.user_id, PasswordReset.email))
        row = found.one_or_none()
        return None if row is None else (row.user_id, row.email)

    async def withdraw(self, db: AsyncSession, user_id: int) -> None:
        """Let no token that was issued before choose the user's password."""
        await db.execute(delete(PasswordReset).where(PasswordReset.user_id == user_id))

    async def purge(self, db: AsyncSession) -> int:
        """Remove what has expired; return how many there were."""
        statement = delete(PasswordReset).where(PasswordReset.expires_at <= now())
        return cast("CursorResult[Any]", await db.execute(statement)).rowcount


crud_password_resets = CRUDPasswordReset()

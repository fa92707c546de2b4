from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.models import now
from app.crud.crud_base import execute_write
from app.crud.statements import literal_limit
from app.models.password_reset import PasswordReset


class CRUDPasswordReset:
    """Writes of password reset tokens; `CRUDUser.reset_password` uses them up."""

    async def issue(self, db: AsyncSession, user_id: int, email: str, token_hash: str, expires_at: datetime) -> None:
        """Store the hash of a token that was mailed to `email`, in place of the user's earlier one."""
        values = {"email": email, "token_hash": token_hash, "expires_at": expires_at}
        statement = insert(PasswordReset).values(user_id=user_id, **values)
        await db.execute(statement.on_conflict_do_update(index_elements=["user_id"], set_=values))

    async def purge(self, db: AsyncSession, limit: int) -> int:
        """Delete at most `limit` expired tokens; return their number."""
        expired = select(PasswordReset.user_id).where(PasswordReset.expires_at <= now())
        oldest = expired.order_by(PasswordReset.expires_at).limit(literal_limit(limit))
        return await execute_write(db, delete(PasswordReset).where(PasswordReset.user_id.in_(oldest)))


crud_password_resets = CRUDPasswordReset()

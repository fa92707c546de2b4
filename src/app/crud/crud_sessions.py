from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, func, select, true, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import BUILT_ONCE, Database, fetch_all
from app.core.models import now
from app.core.security import RefreshToken, hash_of, new_secret
from app.crud.crud_base import CRUDBase, execute_write
from app.crud.statements import columns_of, literal_limit
from app.models.password_reset import PasswordReset
from app.models.session import Session
from app.models.user import User
from app.schemas.session import Client, SessionRead

_SESSION_KEYS = tuple(name for name in SessionRead.model_fields if name in columns_of(Session))
_ACTIVE = (Session.user_id == bindparam("user_id"), Session.expires_at > func.now())
_PAGE = (
    select(*(getattr(Session, key) for key in _SESSION_KEYS))
    .where(*_ACTIVE)
    .order_by(Session.id)
    .offset(bindparam("offset"))
    .limit(bindparam("limit"))
    .subquery("page")
)
_TOTAL = select(func.count().label("sessions")).select_from(Session).where(*_ACTIVE).subquery("total")
# A page beyond the last is one row with the total and without an id.
_SELECT_ACTIVE = (
    select(_PAGE, _TOTAL)
    .select_from(_TOTAL.outerjoin(_PAGE, true()))
    .order_by(_PAGE.c.id)
    .execution_options(**BUILT_ONCE)
)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The session of a refresh token and the token's successor, or None in its place if the token was used twice.

    Then another client has the token too, and the session has been ended.
    """

    user_id: int
    user: UUID
    token: RefreshToken | None
    issued: datetime


class CRUDSession(CRUDBase[Session, Client, Client]):
    async def start(
        self, db: AsyncSession, user_id: int, client: Client, lifetime: timedelta
    ) -> tuple[Session, RefreshToken]:
        """Create a session and return it with its first refresh token."""
        secret = new_secret()
        values = {"user_id": user_id, "refresh_hash": hash_of(secret), "expires_at": now() + lifetime}
        session = await self.create(db, client, **values)
        return session, RefreshToken(session.uuid, secret)

    async def refresh(
        self,
        db: AsyncSession,
        token: RefreshToken,
        successor: RefreshToken,
        client: Client,
        lifetime: timedelta,
        grace: timedelta,
    ) -> Refreshed | None:
        """Exchange a refresh token for its successor; return None if it has no active session.

        The client that has just used a token gets the same successor again within `grace`, since the response may have
        been lost. Any other use of a spent token ends the session.
        """
        statement = (
            select(*Session.__table__.columns, User.uuid.label("user"))
            .join(User, User.id == Session.user_id)
            .where(Session.uuid == token.session, Session.expires_at > now(), ~User.is_deleted)
            .with_for_update(of=Session)
        )
        session = (await db.execute(statement)).one_or_none()
        if session is None:
            return None
        moment, presented = now(), hash_of(token.secret)
        if presented == session.refresh_hash:
            hashes = {"refresh_hash": hash_of(successor.secret), "spent_hash": presented}
            moments = {"last_used_at": moment, "expires_at": moment + lifetime}
            await self.update(db, {**client.model_dump(), **hashes, **moments}, id=session.id)
            return Refreshed(session.user_id, session.user, successor, moment)
        is_repeated = (
            presented == session.spent_hash
            and moment - session.last_used_at < grace
            and (client.user_agent, client.address) == (session.user_agent, session.address)
        )
        if is_repeated:
            return Refreshed(session.user_id, session.user, successor, session.last_used_at)
        await self.db_delete(db, id=session.id)
        return Refreshed(session.user_id, session.user, None, moment)

    async def end(self, db: AsyncSession, uuid: UUID) -> Row[int, int] | None:
        """End the session with this uuid; return its id and user_id, or None if there is no such session."""
        statement = delete(Session).where(Session.uuid == uuid).returning(Session.id, Session.user_id)
        return (await db.execute(statement)).one_or_none()

    async def end_all(self, db: AsyncSession, user_id: int, *, except_id: int | None = None) -> int:
        """End the sessions of a user, except the one with the id `except_id`; return their number."""
        # With None, SQLAlchemy writes IS NOT NULL, which is true of every id.
        return await execute_write(db, delete(Session).where(Session.user_id == user_id, Session.id != except_id))

    async def end_all_and_revoke_reset(self, db: AsyncSession, user_id: int, *, except_id: int | None = None) -> None:
        """End the sessions of a user, except the one with the id `except_id`, and revoke a mailed reset token."""
        await self.end_all(db, user_id, except_id=except_id)
        await db.execute(delete(PasswordReset).where(PasswordReset.user_id == user_id))

    async def get_active(self, db: Database, user_id: int, offset: int, limit: int) -> dict[str, Any]:
        """Return one page of a user's unexpired sessions, as `get_multi` does."""
        rows = await fetch_all(db, _SELECT_ACTIVE, {"user_id": user_id, "offset": offset, "limit": limit})
        data = [dict(zip(_SESSION_KEYS, row, strict=False)) for row in rows if row[0] is not None]
        return {"data": data, "total_count": rows[0][-1]}

    async def purge(self, db: AsyncSession, limit: int) -> int:
        """Delete at most `limit` sessions that have expired or belong to deleted users; return their number."""
        moment, at_most = now(), literal_limit(limit)
        expired = select(Session.id).where(Session.expires_at <= moment).order_by(Session.expires_at).limit(at_most)
        # Unexpired only: a session in both parts would count twice towards `limit`.
        of_user = select(Session.id).where(Session.user_id == User.id, Session.expires_at > moment)
        unexpired = of_user.limit(at_most).lateral()
        of_deleted = select(unexpired.c.id).select_from(User).join(unexpired, true()).where(User.is_deleted)
        dead = union_all(expired, of_deleted.limit(at_most)).limit(at_most)
        return await execute_write(db, delete(Session).where(Session.id.in_(dead)))


crud_sessions = CRUDSession(Session)

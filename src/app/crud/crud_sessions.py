from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, Row, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.models import now
from app.core.security import RefreshToken, hash_of, new_secret
from app.crud.crud_base import CRUDBase
from app.models.session import Session
from app.models.user import User
from app.schemas.session import (
    Client,
    SessionCreateInternal,
    SessionDelete,
    SessionUpdate,
    SessionUpdateInternal,
)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The session of a refresh token that was presented, and what it may have in exchange; None: the token was spent
    before, so somebody else has it too, and the session has been ended.
    """

    user_id: int
    user: UUID
    token: RefreshToken | None
    issued: datetime


class CRUDSession(CRUDBase[Session, SessionCreateInternal, SessionUpdate, SessionUpdateInternal, SessionDelete]):
    async def start(
        self, db: AsyncSession, user_id: int, client: Client, lifetime: timedelta
    ) -> tuple[Session, RefreshToken]:
        """Begin a session and return it with its first refresh token."""
        secret = new_secret()
        values = SessionCreateInternal(
            user_id=user_id,
            refresh_hash=hash_of(secret),
            expires_at=now() + lifetime,
            user_agent=client.user_agent,
            address=client.address,
        )
        session = await self.create(db, values)
        return session, RefreshToken(session.uuid, secret)

    async def refresh(
        self, db: AsyncSession, token: RefreshToken, client: Client, lifetime: timedelta, grace: timedelta
    ) -> Refreshed | None:
        """Exchange a refresh token for its successor; None when it has no living session.

        The client that has just spent a token gets the same successor again within `grace`, since the answer may have
        been lost. Anybody else who presents a spent token ends the session.
        """
        statement = (
            select(Session, User.uuid)
            .join(User, User.id == Session.user_id)
            .where(Session.uuid == token.session, Session.expires_at > now(), ~User.is_deleted)
            .with_for_update(of=Session)
        )
        found = (await db.execute(statement)).one_or_none()
        if found is None:
            return None
        session, user = found
        moment, presented = now(), hash_of(token.secret)
        if presented == session.refresh_hash:
            values = SessionUpdateInternal(
                refresh_hash=hash_of(token.successor().secret),
                spent_hash=presented,
                last_used_at=moment,
                expires_at=moment + lifetime,
                user_agent=client.user_agent,
                address=client.address,
            )
            await self.update(db, values, id=session.id)
            return Refreshed(session.user_id, user, token.successor(), moment)
        is_repeated = (
            presented == session.spent_hash
            and moment - session.last_used_at < grace
            and client == Client(session.user_agent, session.address)
        )
        if is_repeated:
            return Refreshed(session.user_id, user, token.successor(), session.last_used_at)
        await self.db_delete(db, id=session.id)
        return Refreshed(session.user_id, user, None, moment)

    async def end(self, db: AsyncSession, uuid: UUID) -> Row[int, int] | None:
        """End the session of this uuid; return its id and user_id, or None if there is none such."""
        statement = delete(Session).where(Session.uuid == uuid).returning(Session.id, Session.user_id)
        return (await db.execute(statement)).one_or_none()

    async def end_all(self, db: AsyncSession, user_id: int, *, but: int | None = None) -> int:
        """End the sessions of a user, but one if an id is given; return how many there were."""
        statement = delete(Session).where(Session.user_id == user_id)
        if but is not None:
            statement = statement.where(Session.id != but)
        return cast("CursorResult[Any]", await db.execute(statement)).rowcount

    async def purge(self, db: AsyncSession) -> int:
        """Remove the sessions that have expired, and those of deleted users; return how many there were."""
        deleted = select(User.id).where(User.is_deleted)
        statement = delete(Session).where((Session.expires_at <= now()) | Session.user_id.in_(deleted))
        return cast("CursorResult[Any]", await db.execute(statement)).rowcount


crud_sessions = CRUDSession(Session)

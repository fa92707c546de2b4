from typing import Any, cast
from uuid import UUID

from sqlalchemy import and_, bindparam, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import BUILT_ONCE, Database, fetch_all
from app.core.exceptions import ConflictError
from app.crud.crud_base import CRUDBase
from app.crud.statements import Lookup, columns_of
from app.models.password_reset import PasswordReset
from app.models.rate_limit import RateLimit
from app.models.session import Session
from app.models.user import User
from app.schemas.rate_limit import RateLimitRead
from app.schemas.user import Caller, UserCreateInternal, UserReadOwn, UserUpdate

_SELECT_CALLER = (
    select(
        *(getattr(User, key) for key in Caller.__annotations__ if key in columns_of(User)),
        Session.id.label("session_id"),
        Session.created_at.label("session_created_at"),
        RateLimit.limit.label("rate_limit"),
        RateLimit.period.label("rate_period"),
    )
    .outerjoin(
        Session,
        and_(Session.user_id == User.id, Session.uuid == bindparam("session"), Session.expires_at > func.now()),
    )
    .outerjoin(RateLimit, and_(RateLimit.tier_id == User.tier_id, RateLimit.path == bindparam("path")))
    .where(User.uuid == bindparam("user"), ~User.is_deleted)
    .execution_options(**BUILT_ONCE)
)
_CALLER_KEYS = tuple(_SELECT_CALLER.selected_columns.keys())

_OWN_KEYS = tuple(UserReadOwn.model_fields)
_LIMIT_KEYS = tuple(RateLimitRead.model_fields)
_SELECT_WITH_RATE_LIMITS = (
    select(
        *(getattr(User, key) for key in _OWN_KEYS),
        *(getattr(RateLimit, key).label(f"rate_limit_{key}") for key in _LIMIT_KEYS),
    )
    .outerjoin(RateLimit, RateLimit.tier_id == User.tier_id)
    .where(User.username == bindparam("username"), ~User.is_deleted)
    .order_by(RateLimit.id)
    .execution_options(**BUILT_ONCE)
)


class LastSuperuserError(ConflictError):
    detail = "The last superuser cannot be deleted: make another one first"


class CRUDUser(CRUDBase[User, UserCreateInternal, UserUpdate]):
    """Queries on users. An active user is one that is not deleted."""

    async def get_caller(
        self, db: Database, uuid: UUID, session: UUID | None = None, *, path: str = ""
    ) -> Caller | None:
        """Return the active user whom a token names, with the rate limit of their tier for a sanitized path, or None.

        `session_id` is None if the session with this uuid has ended.
        """
        rows = await fetch_all(db, _SELECT_CALLER, {"user": uuid, "path": path, "session": session})
        return cast(Caller, dict(zip(_CALLER_KEYS, rows[0], strict=True))) if rows else None

    async def get_with_rate_limits(self, db: Database, username: str) -> dict[str, Any] | None:
        """Return the active user of this name as `UserReadRateLimits` has it, or None."""
        rows = await fetch_all(db, _SELECT_WITH_RATE_LIMITS, {"username": username})
        if not rows:
            return None
        user = dict(zip(_OWN_KEYS, rows[0], strict=False))
        limits = [dict(zip(_LIMIT_KEYS, row[len(_OWN_KEYS) :], strict=True)) for row in rows]
        return {**user, "tier_rate_limits": [limit for limit in limits if limit["id"] is not None]}

    async def get_credentials(self, db: Database, username_or_email: str) -> dict[str, Any] | None:
        """Return id, uuid, is_superuser and hashed_password of the active user with this name or address, or None."""
        if not username_or_email.isprintable():
            return None
        is_email = "@" in username_or_email
        named = {"email": username_or_email.lower()} if is_email else {"username": username_or_email}
        return await self.get(db, ["id", "uuid", "is_superuser", "hashed_password"], **named, is_deleted=False)

    async def lock_password(self, db: AsyncSession, user_id: int) -> str | None:
        """Lock the password of an active user until the commit; return its hash, or None if there is no such user."""
        statement = select(User.hashed_password).where(User.id == user_id, ~User.is_deleted)
        return (await db.execute(statement.with_for_update(key_share=True))).scalar_one_or_none()

    async def change_password(self, db: AsyncSession, user_id: int, old_hash: str, new_hash: str) -> bool:
        """Replace the hash of an active user's password; return False if it is no longer the old one."""
        values = {"hashed_password": new_hash}
        return bool(await self.update(db, values, id=user_id, hashed_password=old_hash, is_deleted=False))

    async def reset_password(self, db: AsyncSession, token_hash: str, new_hash: str) -> dict[str, Any] | None:
        """Use up a mailed token and set the password of its active user; return id, username and email, or None.

        The token must not have expired, and the user must still have the address that it was mailed to.
        """
        is_valid = PasswordReset.token_hash == token_hash, PasswordReset.expires_at > func.now()
        redeem = delete(PasswordReset).where(*is_valid).returning(PasswordReset.user_id, PasswordReset.email)
        if (token := (await db.execute(redeem)).one_or_none()) is None:
            return None
        owner = {"id": token.user_id, "email": token.email, "is_deleted": False}
        return await self.update_one(db, {"hashed_password": new_hash}, ["id", "username", "email"], **owner)

    def id_of(self, username: str, **filters: Any) -> Lookup:
        """The id of the active user with this name, as a value in queries of other tables."""
        return Lookup(User, "id", {"username": username, "is_deleted": False, **filters})

    async def lock_for_deletion(self, db: AsyncSession, username: str) -> dict[str, Any] | None:
        """Lock the user with this name until the commit; return id and is_deleted, or None if there is no such user.

        The rows of all superusers are locked too, so that of two superusers who delete each other one waits here.
        Raises LastSuperuserError.
        """
        superuser = and_(User.is_superuser, ~User.is_deleted)
        statement = (
            select(User.id, User.username, User.is_deleted, superuser.label("is_superuser"))
            .where(or_(User.username == username, superuser))
            .order_by(User.id)
            .with_for_update()
        )
        rows = (await db.execute(statement)).all()
        user = next((row for row in rows if row.username == username), None)
        if user is None:
            return None
        if [row.id for row in rows if row.is_superuser] == [user.id]:
            raise LastSuperuserError
        return {"id": user.id, "is_deleted": user.is_deleted}


crud_users = CRUDUser(User)

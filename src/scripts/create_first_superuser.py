"""Create the superuser that ADMIN_NAME, ADMIN_EMAIL, ADMIN_USERNAME and ADMIN_PASSWORD describe."""

import sys
from typing import Any

from pydantic import ValidationError

from app.core.config import DEFAULT_ADMIN_PASSWORD, EnvironmentOption, FirstUserSettings, settings
from app.core.database import transaction
from app.core.exceptions import DuplicateValueError
from app.core.security import PasswordHasher
from app.core.settings_group import require
from app.crud.crud_users import crud_users
from app.schemas.user import UserCreate, UserCreateInternal
from scripts.runner import ScriptError, run

SUPERUSER = {"is_superuser": True, "is_deleted": False}


async def create_first_superuser() -> str:
    require(settings, FirstUserSettings)
    try:
        admin = UserCreate(
            name=settings.ADMIN_NAME,
            email=settings.ADMIN_EMAIL,
            username=settings.ADMIN_USERNAME,
            password=settings.ADMIN_PASSWORD.get_secret_value(),
        )
    except ValidationError as error:
        # Of the checks of the whole, only that of a weak password refuses: its location is empty.
        reasons = "; ".join(
            f"ADMIN_{str(next(iter(item['loc']), 'password')).upper()}: {item['msg']}" for item in error.errors()
        )
        raise ScriptError(f"the superuser's settings are refused: {reasons}") from None
    there = await _find(admin.username)
    if there == SUPERUSER:
        return f"Superuser {admin.username} is already there."
    if there:
        raise ScriptError(
            f"the username {admin.username} belongs to a user who is deleted or no superuser: choose another "
            "ADMIN_USERNAME, or delete that user from the database"
        )
    if settings.ENVIRONMENT is not EnvironmentOption.LOCAL and admin.password == DEFAULT_ADMIN_PASSWORD:
        raise ScriptError("ADMIN_PASSWORD is the default that everybody knows: set another one")
    hashed_password = await PasswordHasher(settings).hash(admin.password)
    internal = admin.model_dump(exclude={"password"}) | {"hashed_password": hashed_password, "is_superuser": True}
    try:
        async with transaction() as db:
            await crud_users.create(db, UserCreateInternal(**internal))
    except DuplicateValueError as error:
        if await _find(admin.username) == SUPERUSER:  # the script ran twice at once
            return f"Superuser {admin.username} is already there."
        raise ScriptError(f"the superuser cannot be created: {error}") from None
    return f"Superuser {admin.username} created."


async def _find(username: str) -> dict[str, Any] | None:
    async with transaction() as db:
        return await crud_users.get(db, [*SUPERUSER], username=username)


if __name__ == "__main__":
    sys.exit(run(create_first_superuser))

"""Create the tier that TIER_NAME names."""

import sys

from pydantic import ValidationError

from app.core.config import FirstUserSettings, settings
from app.core.database import transaction
from app.core.exceptions import DuplicateValueError
from app.core.settings_group import require
from app.crud.crud_tier import crud_tiers
from app.schemas.tier import TierCreate
from scripts.runner import ScriptError, run


async def create_first_tier() -> str:
    require(settings, FirstUserSettings)
    try:
        tier = TierCreate(name=settings.TIER_NAME)
    except ValidationError as error:
        raise ScriptError(f"TIER_NAME is refused: {error.errors()[0]['msg']}") from None
    try:
        async with transaction() as db:
            if await crud_tiers.exists(db, name=tier.name):
                return f"Tier {tier.name} is already there."
            await crud_tiers.create(db, tier)
    except DuplicateValueError:
        return f"Tier {tier.name} is already there."
    return f"Tier {tier.name} created."


if __name__ == "__main__":
    sys.exit(run(create_first_tier))

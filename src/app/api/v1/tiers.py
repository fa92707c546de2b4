from typing import Any

from fastapi import APIRouter, Depends

from app.api.dependencies import ReaderDep, SessionDep, get_current_superuser
from app.api.exceptions import ensure_found, responses
from app.api.paginated import CursorPageDep, PaginatedListResponse
from app.core import exceptions as errors
from app.core.models import Message, Text
from app.crud.crud_tier import crud_tiers
from app.crud.crud_users import crud_users
from app.models.tier import Tier
from app.schemas.tier import TierCreate, TierRead, TierUpdate

router = APIRouter(
    tags=["tiers"],
    dependencies=[Depends(get_current_superuser)],
    responses=responses(errors.UnauthorizedError, errors.ForbiddenError),
)


@router.post("/tier", response_model=TierRead, status_code=201, responses=responses(errors.DuplicateValueError))
async def write_tier(tier: TierCreate, db: SessionDep) -> Tier:
    """Create a tier."""
    return await crud_tiers.create(db, tier)


@router.get("/tiers", response_model=PaginatedListResponse[TierRead])
async def read_tiers(db: ReaderDep, page: CursorPageDep) -> dict[str, Any]:
    """List the tiers."""
    return page.response(await crud_tiers.get_multi(db, page.offset, page.items_per_page, TierRead, after=page.after))


@router.get("/tier/{name}", response_model=TierRead, responses=responses(errors.NotFoundError))
async def read_tier(name: Text, db: ReaderDep) -> dict[str, Any]:
    """Read a tier."""
    return ensure_found(await crud_tiers.get(db, TierRead, name=name), "Tier")


@router.patch(
    "/tier/{name}", response_model=TierRead, responses=responses(errors.NotFoundError, errors.DuplicateValueError)
)
async def patch_tier(name: Text, values: TierUpdate, db: SessionDep) -> dict[str, Any]:
    """Rename a tier."""
    return ensure_found(await crud_tiers.update_one(db, values, TierRead, name=name), "Tier")


@router.delete("/tier/{name}", responses=responses(errors.NotFoundError, errors.StillReferencedError))
async def erase_tier(name: Text, db: SessionDep, reader: ReaderDep) -> Message:
    """Delete an unused tier with its rate limits; deleted users are removed from it."""
    tier = ensure_found(await crud_tiers.get(reader, ["id"], name=name), "Tier")
    await crud_users.update(db, {"tier_id": None}, tier_id=tier["id"], is_deleted=True)
    ensure_found(await crud_tiers.delete(db, id=tier["id"], name=name), "Tier")
    return Message(message="Tier deleted")

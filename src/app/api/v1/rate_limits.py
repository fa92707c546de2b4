from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from app.api.dependencies import ReaderDep, SessionDep, get_current_superuser
from app.api.exceptions import ensure_found, responses
from app.api.paginated import CursorPageDep, PaginatedListResponse
from app.core.exceptions import DuplicateValueError, ForbiddenError, NotFoundError, UnauthorizedError
from app.core.models import Message, RowId, Text
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_tier import crud_tiers
from app.models.rate_limit import RateLimit
from app.schemas.rate_limit import RateLimitCreate, RateLimitRead, RateLimitUpdate

router = APIRouter(
    prefix="/tier/{tier_name}",
    tags=["rate limits"],
    dependencies=[Depends(get_current_superuser)],
    responses=responses(UnauthorizedError, ForbiddenError, NotFoundError),
)


RateLimitId = Annotated[RowId, Path()]


@router.post("/rate_limit", response_model=RateLimitRead, status_code=201, responses=responses(DuplicateValueError))
async def write_rate_limit(tier_name: Text, rate_limit: RateLimitCreate, db: SessionDep) -> RateLimit:
    """Limit what each user of the tier may request on a path."""
    return await crud_rate_limits.create(db, rate_limit, tier_id=crud_tiers.id_of(tier_name))


@router.get("/rate_limits", response_model=PaginatedListResponse[RateLimitRead])
async def read_rate_limits(tier_name: Text, db: ReaderDep, page: CursorPageDep) -> dict[str, Any]:
    """List the rate limits of a tier."""
    limits = await crud_rate_limits.get_multi(
        db, page.offset, page.items_per_page, RateLimitRead, after=page.after, tier_id=crud_tiers.id_of(tier_name)
    )
    return page.response(limits)


@router.get("/rate_limit/{id}", response_model=RateLimitRead)
async def read_rate_limit(id: RateLimitId, tier_name: Text, db: ReaderDep) -> dict[str, Any]:
    """Read a rate limit."""
    rate_limit = await crud_rate_limits.get(db, RateLimitRead, id=id, tier_id=crud_tiers.id_of(tier_name))
    return ensure_found(rate_limit, "Rate limit")


@router.patch("/rate_limit/{id}", response_model=RateLimitRead, responses=responses(DuplicateValueError))
async def patch_rate_limit(id: RateLimitId, tier_name: Text, values: RateLimitUpdate, db: SessionDep) -> dict[str, Any]:
    """Change the fields that the body names in a rate limit."""
    own = {"id": id, "tier_id": crud_tiers.id_of(tier_name)}
    rate_limit = await crud_rate_limits.update_one(db, values, RateLimitRead, **own)
    return ensure_found(rate_limit, "Rate limit")


@router.delete("/rate_limit/{id}")
async def erase_rate_limit(id: RateLimitId, tier_name: Text, db: SessionDep) -> Message:
    """Delete a rate limit; the default limit replaces it."""
    if not await crud_rate_limits.delete(db, id=id, tier_id=crud_tiers.id_of(tier_name)):
        raise NotFoundError("Rate limit not found")
    return Message(message="Rate limit deleted")

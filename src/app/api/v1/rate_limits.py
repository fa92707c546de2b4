import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.routing import APIRoute, iter_route_contexts

from app.api.dependencies import ReaderDep, SessionDep, get_current_superuser, rate_limiter
from app.api.exceptions import ensure_found, ensure_found_under, responses
from app.api.paginated import CursorPageDep, PaginatedListResponse
from app.core.exceptions import DuplicateValueError, ForbiddenError, NotFoundError, UnauthorizedError
from app.core.models import Message, RowId, Text, sanitize_path
from app.crud.crud_rate_limit import crud_rate_limits
from app.crud.crud_tier import crud_tiers
from app.models.rate_limit import RateLimit
from app.schemas.rate_limit import RateLimitCreate, RateLimitRead, RateLimitUpdate

logger = logging.getLogger(__name__)

router = APIRouter(
    prefix="/tier/{tier_name}",
    tags=["rate limits"],
    dependencies=[Depends(get_current_superuser)],
    responses=responses(UnauthorizedError, ForbiddenError, NotFoundError),
)
RateLimitId = Annotated[RowId, Path()]


@router.post("/rate_limit", response_model=RateLimitRead, status_code=201, responses=responses(DuplicateValueError))
async def write_rate_limit(request: Request, tier_name: Text, rate_limit: RateLimitCreate, db: SessionDep) -> RateLimit:
    """Limit what each user of the tier may request on a path."""
    row = await crud_rate_limits.create(db, rate_limit, tier_id=crud_tiers.id_of(tier_name))
    _warn_if_unlimited(request, row.path)
    return row


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
async def patch_rate_limit(
    request: Request, id: RateLimitId, tier_name: Text, values: RateLimitUpdate, db: SessionDep
) -> dict[str, Any]:
    """Change the fields that the body names in a rate limit."""
    tier_id = crud_tiers.id_of(tier_name)
    row = await crud_rate_limits.update_one(db, values, RateLimitRead, id=id, tier_id=tier_id)
    rate_limit = await ensure_found_under(row, "Rate limit", db, tier_id)
    _warn_if_unlimited(request, rate_limit["path"])
    return rate_limit


@router.delete("/rate_limit/{id}")
async def erase_rate_limit(id: RateLimitId, tier_name: Text, db: SessionDep) -> Message:
    """Delete a rate limit; the default limit replaces it."""
    tier_id = crud_tiers.id_of(tier_name)
    await ensure_found_under(await crud_rate_limits.delete(db, id=id, tier_id=tier_id), "Rate limit", db, tier_id)
    return Message(message="Rate limit deleted")


def _warn_if_unlimited(request: Request, path: str) -> None:
    """Log a path that no route with `rate_limiter` has: it may be misspelt, or its route is not written yet."""
    limited = {
        sanitize_path(each.path)
        for each in iter_route_contexts(request.app.routes)
        if each.path and isinstance(each.original_route, APIRoute) and _is_limited(each.dependant)
    }
    if path not in limited:
        values = {"path": path, "limited": ",".join(sorted(limited))}
        logger.warning("no limited route has the path of this rate limit", extra=values)


def _is_limited(dependant: Any) -> bool:
    return dependant.call is rate_limiter or any(_is_limited(each) for each in dependant.dependencies)

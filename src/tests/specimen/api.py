"""Routes with what a clone's may have: owners, cached answers, soft and real deletion, cursors, limits, jobs."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from app.api import cache_keys
from app.api.dependencies import (
    TOKEN_OPTIONAL,
    OwnLookup,
    ReaderDep,
    SessionDep,
    get_current_superuser,
    rate_limiter,
)
from app.api.exceptions import ensure_found, responses
from app.api.paginated import (
    Cursor,
    CursorPageDep,
    ItemsPerPage,
    PageNumber,
    PaginatedListResponse,
    get_cursor_page,
)
from app.core import exceptions as errors
from app.core.cache import cache, do_not_store
from app.core.models import Message, RowId, Text
from app.core.queue import ArqJob, queue_of
from app.crud.crud_users import crud_users
from app.crud.statements import Lookup
from app.models.user import User
from app.schemas.user import Username
from tests.specimen.crud import crud_drawers, crud_moths, crud_slips
from tests.specimen.models import Drawer, Moth, Slip
from tests.specimen.schemas import (
    DrawerCreate,
    DrawerRead,
    DrawerUpdate,
    MothCreate,
    MothRead,
    MothUpdate,
    SlipCreate,
    SlipRead,
    SlipUpdate,
)

MOTHS = "{username}_moths"
MOTH = "{username}_moth_cache"
_LISTS = [f"{MOTHS}:*"]
cache_keys.OF_USER += [*_LISTS, f"{MOTH}:*"]
_ERRORS = responses(errors.UnauthorizedError, errors.ForbiddenError, errors.NotFoundError)

MothId = Annotated[RowId, Path()]
SlipId = Annotated[RowId, Path()]
_changes_moth = partial(cache, MOTH, resource_id_name="id", pattern_to_invalidate_extra=_LISTS)


async def get_own_moth(id: MothId, user_id: OwnLookup) -> dict[str, Any]:
    """The filters for a moth of the caller."""
    return {"id": id, "created_by_user_id": user_id}


OwnMoth = Annotated[dict[str, Any], Depends(get_own_moth)]


def deleted(what: str, rows: int) -> Message:
    if not rows:
        raise errors.NotFoundError(f"{what} not found")
    return Message(message=f"{what} deleted")


# -------- moths --------
moths = APIRouter(tags=["moths"])


@moths.get("/{username}/moths", response_model=PaginatedListResponse[MothRead])
@cache(f"{MOTHS}:page_{{page}}{{cursor}}:items_per_page:{{items_per_page}}", resource_id_name="username", expiration=60)
async def read_moths(
    request: Request,
    username: Username,
    db: ReaderDep,
    page: PageNumber = 1,
    items_per_page: ItemsPerPage = 10,
    cursor: Cursor = "",
) -> dict[str, Any]:
    wanted = await get_cursor_page(request, page, items_per_page, cursor)
    own: dict[str, Any] = {"created_by_user_id": crud_users.id_of(username), "is_deleted": False}
    found = await crud_moths.get_multi(db, wanted.offset, items_per_page, MothRead, after=wanted.after, **own)
    if page != wanted.page or wanted.offset > found["total_count"]:
        do_not_store(request)
    return wanted.response(found)


@moths.get("/{username}/moth/{id}", response_model=MothRead)
@cache(MOTH, resource_id_name="id")
async def read_moth(request: Request, username: Username, id: MothId, db: ReaderDep) -> dict[str, Any]:
    moth = await crud_moths.get(db, MothRead, id=id, created_by_user_id=crud_users.id_of(username), is_deleted=False)
    return ensure_found(moth, "Moth")


@moths.post("/{username}/moth", response_model=MothRead, status_code=201, responses=_ERRORS)
@cache(MOTHS, resource_id_name="username", pattern_to_invalidate_extra=_LISTS)
async def write_moth(
    request: Request, username: Username, db: SessionDep, user_id: OwnLookup, moth: MothCreate
) -> Moth:
    return await crud_moths.create(db, moth, created_by_user_id=user_id)


@moths.patch("/{username}/moth/{id}", response_model=MothRead, responses=_ERRORS)
@_changes_moth()
async def patch_moth(
    request: Request, username: Username, id: MothId, db: SessionDep, own: OwnMoth, values: MothUpdate
) -> dict[str, Any]:
    return ensure_found(await crud_moths.update_one(db, values, MothRead, **own, is_deleted=False), "Moth")


@moths.delete("/{username}/moth/{id}", responses=_ERRORS)
@_changes_moth()
async def erase_moth(request: Request, username: Username, id: MothId, db: SessionDep, own: OwnMoth) -> Message:
    return deleted("Moth", await crud_moths.delete(db, **own))


@moths.delete("/{username}/db_moth/{id}", responses=_ERRORS, dependencies=[Depends(get_current_superuser)])
@_changes_moth()
async def erase_db_moth(request: Request, username: Username, id: MothId, db: SessionDep) -> Message:
    owner_id = Lookup(User, "id", {"username": username})  # also of a deleted user
    return deleted("Moth", await crud_moths.db_delete(db, id=id, created_by_user_id=owner_id))


# -------- drawers and their slips, for superusers --------
drawers = APIRouter(
    tags=["drawers"],
    dependencies=[Depends(get_current_superuser)],
    responses=responses(errors.UnauthorizedError, errors.ForbiddenError),
)


@drawers.get("/drawers", response_model=PaginatedListResponse[DrawerRead])
async def read_drawers(db: ReaderDep, page: CursorPageDep) -> dict[str, Any]:
    return page.response(
        await crud_drawers.get_multi(db, page.offset, page.items_per_page, DrawerRead, after=page.after)
    )


@drawers.get("/drawer/{name}", response_model=DrawerRead)
async def read_drawer(name: Text, db: ReaderDep) -> dict[str, Any]:
    return ensure_found(await crud_drawers.get(db, DrawerRead, name=name), "Drawer")


@drawers.post("/drawer", response_model=DrawerRead, status_code=201, responses=responses(errors.DuplicateValueError))
async def write_drawer(drawer: DrawerCreate, db: SessionDep) -> Drawer:
    return await crud_drawers.create(db, drawer)


@drawers.patch("/drawer/{name}", response_model=DrawerRead)
async def patch_drawer(name: Text, values: DrawerUpdate, db: SessionDep) -> dict[str, Any]:
    return ensure_found(await crud_drawers.update_one(db, values, DrawerRead, name=name), "Drawer")


@drawers.delete("/drawer/{name}", responses=responses(errors.StillReferencedError))
async def erase_drawer(name: Text, db: SessionDep) -> Message:
    return deleted("Drawer", await crud_drawers.delete(db, name=name))


slips = APIRouter(
    prefix="/drawer/{drawer_name}",
    tags=["slips"],
    dependencies=[Depends(get_current_superuser)],
    responses=responses(errors.UnauthorizedError, errors.ForbiddenError, errors.NotFoundError),
)


@slips.post("/slip", response_model=SlipRead, status_code=201)
async def write_slip(drawer_name: Text, slip: SlipCreate, db: SessionDep) -> Slip:
    return await crud_slips.create(db, slip, drawer_id=crud_drawers.id_of(drawer_name))


@slips.get("/slips", response_model=PaginatedListResponse[SlipRead])
async def read_slips(drawer_name: Text, db: ReaderDep, page: CursorPageDep) -> dict[str, Any]:
    own: dict[str, Any] = {"drawer_id": crud_drawers.id_of(drawer_name)}
    found = await crud_slips.get_multi(db, page.offset, page.items_per_page, SlipRead, after=page.after, **own)
    return page.response(found)


@slips.get("/slip/{id}", response_model=SlipRead)
async def read_slip(id: SlipId, drawer_name: Text, db: ReaderDep) -> dict[str, Any]:
    slip = await crud_slips.get(db, SlipRead, id=id, drawer_id=crud_drawers.id_of(drawer_name))
    return ensure_found(slip, "Slip")


@slips.patch("/slip/{id}", response_model=SlipRead)
async def patch_slip(drawer_name: Text, id: SlipId, values: SlipUpdate, db: SessionDep) -> dict[str, Any]:
    own: dict[str, Any] = {"id": id, "drawer_id": crud_drawers.id_of(drawer_name)}
    return ensure_found(await crud_slips.update_one(db, values, SlipRead, **own), "Slip")


@slips.delete("/slip/{id}")
async def erase_slip(drawer_name: Text, id: SlipId, db: SessionDep) -> Message:
    return deleted("Slip", await crud_slips.delete(db, id=id, drawer_id=crud_drawers.id_of(drawer_name)))


# -------- jobs --------
jobs = APIRouter(tags=["jobs"])


@jobs.post("/specimen/job", status_code=201, dependencies=[Depends(rate_limiter)], openapi_extra=TOKEN_OPTIONAL)
async def write_job(request: Request, message: Annotated[Text, Query(max_length=1000)]) -> dict[str, str]:
    queue = queue_of(request)
    async with queue.server.guard():
        job = await queue.pool.enqueue_job("greet", message)
    assert job
    return {"id": job.job_id}


@jobs.get("/specimen/job/{id}")
async def read_job(request: Request, id: str) -> dict[str, str]:
    queue = queue_of(request)
    async with queue.server.guard():
        return {"status": await ArqJob(id, queue.pool).status()}


# `/{username}/moths` would match `/drawer/moths`: below the drawers.
routers = (drawers, slips, moths)

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from app.api import cache_keys
from app.api.dependencies import CurrentSuperuser, OwnLookup, ReaderDep, SessionDep
from app.api.exceptions import ensure_found, ensure_found_under, responses
from app.api.paginated import Cursor, ItemsPerPage, PageNumber, PaginatedListResponse, get_cursor_page
from app.core.cache import cache, do_not_store
from app.core.exceptions import ForbiddenError, NotFoundError, UnauthorizedError
from app.core.models import Message, RowId
from app.crud.crud_posts import crud_posts
from app.crud.crud_users import crud_users
from app.crud.statements import Lookup
from app.models.post import Post
from app.models.user import User
from app.schemas.post import PostCreate, PostRead, PostUpdate
from app.schemas.user import Username

router = APIRouter(tags=["posts"])

PostId = Annotated[RowId, Path()]
_LIST_KEY, _KEY = "{username}_posts", "{username}_post_cache"
_LISTS = [f"{_LIST_KEY}:*"]
cache_keys.OF_USER += [*_LISTS, f"{_KEY}:*"]
_ERRORS = responses(UnauthorizedError, ForbiddenError, NotFoundError)


@router.get("/{username}/posts", response_model=PaginatedListResponse[PostRead], responses=responses(NotFoundError))
@cache(
    f"{_LIST_KEY}:page_{{page}}{{cursor}}:items_per_page:{{items_per_page}}",
    resource_id_name="username",
    expiration=60,
)
async def read_posts(
    request: Request,
    username: Username,
    db: ReaderDep,
    page: PageNumber = 1,
    items_per_page: ItemsPerPage = 10,
    cursor: Cursor = "",
) -> dict[str, Any]:
    """List a user's posts, oldest first."""
    # Not CursorPageDep: the cache key has these parameters, and StoredAnswers serves no route with such a dependency.
    wanted = await get_cursor_page(request, page, items_per_page, cursor)
    own: dict[str, Any] = {"created_by_user_id": crud_users.id_of(username), "is_deleted": False}
    posts = await crud_posts.get_multi(db, wanted.offset, items_per_page, PostRead, after=wanted.after, **own)
    if page != wanted.page or wanted.offset > posts["total_count"]:
        do_not_store(request)  # any number of such pages could be requested
    return wanted.response(posts)


@router.get("/{username}/post/{id}", response_model=PostRead, responses=responses(NotFoundError))
@cache(_KEY, resource_id_name="id")
async def read_post(request: Request, username: Username, id: PostId, db: ReaderDep) -> dict[str, Any]:
    """Read a post."""
    post = await crud_posts.get(db, PostRead, id=id, created_by_user_id=crud_users.id_of(username), is_deleted=False)
    return ensure_found(post, "Post")


@router.post("/{username}/post", response_model=PostRead, status_code=201, responses=_ERRORS)
@cache(_LIST_KEY, resource_id_name="username", pattern_to_invalidate_extra=_LISTS)
async def write_post(
    request: Request, username: Username, post: PostCreate, db: SessionDep, user_id: OwnLookup
) -> Post:
    """Write a post of one's own."""
    return await crud_posts.create(db, post, created_by_user_id=user_id)


@router.patch("/{username}/post/{id}", response_model=PostRead, responses=_ERRORS)
@cache(_KEY, resource_id_name="id", pattern_to_invalidate_extra=_LISTS)
async def patch_post(
    request: Request, username: Username, id: PostId, values: PostUpdate, db: SessionDep, user_id: OwnLookup
) -> dict[str, Any]:
    """Change the fields that the body names in one's own post."""
    post = await crud_posts.update_one(db, values, PostRead, id=id, created_by_user_id=user_id, is_deleted=False)
    return ensure_found(post, "Post")


@router.delete("/{username}/post/{id}", responses=_ERRORS)
@cache(_KEY, resource_id_name="id", pattern_to_invalidate_extra=_LISTS)
async def erase_post(request: Request, username: Username, id: PostId, db: SessionDep, user_id: OwnLookup) -> Message:
    """Delete one's own post; the row stays."""
    ensure_found(await crud_posts.delete(db, id=id, created_by_user_id=user_id), "Post")
    return Message(message="Post deleted")


@router.delete("/{username}/db_post/{id}", responses=_ERRORS)
@cache(_KEY, resource_id_name="id", pattern_to_invalidate_extra=_LISTS)
async def erase_db_post(
    request: Request, username: Username, id: PostId, db: SessionDep, _: CurrentSuperuser
) -> Message:
    """Delete the row of a post, also of one that was deleted before."""
    author_id = Lookup(User, "id", {"username": username})  # a deleted user's posts, too
    deleted = await crud_posts.db_delete(db, id=id, created_by_user_id=author_id)
    await ensure_found_under(deleted, "Post", db, author_id)
    return Message(message="Post deleted from the database")

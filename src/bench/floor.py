"""The same endpoints written by hand, as small as FastAPI, SQLAlchemy Core, python-jose, redis and arq allow.

Without layers, middleware, settings and specific errors, this is the minimum cost of a request with these libraries.
"""

import base64
import hmac
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from arq.connections import ArqRedis
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.security import OAuth2PasswordBearer
from jose import JWTError, jwt
from pydantic import BaseModel
from redis.asyncio import ConnectionPool
from sqlalchemy import Row, TextClause, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

KEY = os.environ["SECRET_KEY"]
LIMIT, PERIOD = (int(os.environ[f"DEFAULT_RATE_LIMIT_{of}"]) for of in ("LIMIT", "PERIOD"))
POOL = {"pool_size": 20, "max_overflow": 0}
URL = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")

engine = create_async_engine(URL, **POOL)
reader = create_async_engine(URL, **POOL, isolation_level="AUTOCOMMIT")
redis = ArqRedis(ConnectionPool.from_url(os.environ["REDIS_URL"]), job_serializer=lambda job: json.dumps(job).encode())

SELECT_USER = text(
    'SELECT id, name, username, profile_image_url, tier_id FROM "user" WHERE username = :username AND NOT is_deleted'
)
SELECT_USERS = text(
    "SELECT id, name, username, profile_image_url, tier_id, "
    '(SELECT count(*) FROM "user" WHERE NOT is_deleted) AS total_count '
    'FROM "user" WHERE NOT is_deleted ORDER BY id LIMIT :limit OFFSET :offset'
)
SELECT_POST = text(
    "SELECT post.id, title, text, media_url, created_by_user_id, post.created_at "
    'FROM post JOIN "user" ON "user".id = created_by_user_id '
    'WHERE post.id = :id AND username = :username AND NOT post.is_deleted AND NOT "user".is_deleted'
)
SELECT_ME = text(
    'SELECT "user".id, name, username, profile_image_url, tier_id, email, is_superuser '
    'FROM "user" JOIN session ON session.user_id = "user".id '
    'WHERE "user".uuid = :user AND session.uuid = :session AND expires_at > now() AND NOT is_deleted'
)
SELECT_LIMIT = text(
    'SELECT "user".id, "limit", period '
    'FROM "user" JOIN session ON session.user_id = "user".id '
    "LEFT JOIN rate_limit ON rate_limit.tier_id = \"user\".tier_id AND path = 'api_v1_tasks_task' "
    'WHERE "user".uuid = :user AND session.uuid = :session AND expires_at > now() AND NOT is_deleted'
)
UPDATE_POST = text(
    "UPDATE post SET title = coalesce(:title, title), text = coalesce(:text, text), updated_at = now() "
    "WHERE id = :id AND created_by_user_id = :user_id AND NOT is_deleted "
    "RETURNING id, title, text, media_url, created_by_user_id, created_at"
)
hit = redis.register_script("""
local used = redis.call('INCR', KEYS[1])
if used == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return used
""")


class Health(BaseModel):
    status: str


class User(BaseModel):
    id: int
    name: str
    username: str
    profile_image_url: str | None
    tier_id: int | None


class Me(User):
    email: str
    is_superuser: bool


class Users(BaseModel):
    data: list[User]
    total_count: int
    has_more: bool
    page: int
    items_per_page: int
    next_cursor: str | None


class Post(BaseModel):
    id: int
    title: str
    text: str
    media_url: str | None
    created_by_user_id: int
    created_at: datetime


class PostUpdate(BaseModel):
    title: str | None = None
    text: str | None = None


class Job(BaseModel):
    id: str


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    await redis.aclose(close_connection_pool=True)
    await engine.dispose()
    await reader.dispose()


app = FastAPI(lifespan=lifespan)
token_required = OAuth2PasswordBearer("/api/v1/login")
token_optional = OAuth2PasswordBearer("/api/v1/login", auto_error=False)


async def caller(token: str, statement: TextClause) -> Row[Any]:
    try:
        claims = jwt.decode(token, KEY, algorithms=["HS256"])
        named = {"user": UUID(claims["sub"]), "session": UUID(claims["sid"])}
    except (JWTError, KeyError, ValueError):
        raise HTTPException(401) from None
    async with reader.connect() as connection:
        row = (await connection.execute(statement, named)).one_or_none()
    if row is None or claims["type"] != "access":
        raise HTTPException(401)
    return row


def cursor(last: int) -> str:
    signature = hmac.digest(KEY.encode(), str(last).encode(), "sha256")
    return f"{last}.{base64.urlsafe_b64encode(signature).decode()}"


@app.get("/health", response_model=Health)
async def read_health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/api/v1/user/me", response_model=Me)
async def read_me(token: Annotated[str, Depends(token_required)]) -> dict[str, Any]:
    return (await caller(token, SELECT_ME))._asdict()


@app.get("/api/v1/user/{username}", response_model=User)
async def read_user(username: str) -> dict[str, Any]:
    async with reader.connect() as connection:
        row = (await connection.execute(SELECT_USER, {"username": username})).one_or_none()
    if row is None:
        raise HTTPException(404)
    return row._asdict()


@app.get("/api/v1/users", response_model=Users)
async def read_users(
    page: Annotated[int, Query(ge=1)] = 1, items_per_page: Annotated[int, Query(ge=1, le=100)] = 10
) -> dict[str, Any]:
    values = {"limit": items_per_page, "offset": (page - 1) * items_per_page}
    async with reader.connect() as connection:
        rows = (await connection.execute(SELECT_USERS, values)).all()
    total = rows[0].total_count if rows else 0
    has_more = page * items_per_page < total
    return {
        "data": [row._asdict() for row in rows],
        "total_count": total,
        "has_more": has_more,
        "page": page,
        "items_per_page": items_per_page,
        "next_cursor": cursor(rows[-1].id) if has_more else None,
    }


@app.get("/api/v1/{username}/post/{id}", response_model=Post)
async def read_post(username: str, id: int) -> Response:
    key = f"post:{username}:{id}"
    body = await redis.get(key)
    if body is None:
        async with reader.connect() as connection:
            row = (await connection.execute(SELECT_POST, {"username": username, "id": id})).one_or_none()
        if row is None:
            raise HTTPException(404)
        body = Post.model_validate(row, from_attributes=True).model_dump_json()
        await redis.set(key, body, ex=3600)
    return Response(body, media_type="application/json")


@app.patch("/api/v1/{username}/post/{id}", response_model=Post)
async def patch_post(
    username: str, id: int, values: PostUpdate, token: Annotated[str, Depends(token_required)]
) -> dict[str, Any]:
    user = await caller(token, SELECT_ME)
    if user.username != username:
        raise HTTPException(403)
    async with engine.begin() as connection:
        row = (
            await connection.execute(UPDATE_POST, {"id": id, "user_id": user.id, **values.model_dump()})
        ).one_or_none()
    if row is None:
        raise HTTPException(404)
    await redis.delete(f"post:{username}:{id}")
    return row._asdict()


@app.post("/api/v1/tasks/task", status_code=201, response_model=Job)
async def create_task(
    request: Request,
    message: Annotated[str, Query(max_length=1000)],
    token: Annotated[str | None, Depends(token_optional)],
) -> dict[str, str]:
    job_id, limit, period = uuid4().hex, LIMIT, PERIOD
    client = f"address:{request.client and request.client.host}"
    if token is not None:
        user = await caller(token, SELECT_LIMIT)
        client, job_id = f"user:{user.id}", f"{user.id}-{job_id}"
        limit, period = user.limit or LIMIT, user.period or PERIOD
    if await hit([f"limit:{client}"], [period]) > limit:
        raise HTTPException(429)
    await redis.enqueue_job("sample_background_task", message, _job_id=job_id)
    return {"id": job_id}

"""The same endpoints directly on ASGI, asyncpg and redis: the lower limit of the cost with any framework."""

import base64
import hmac
import json
import os
import time
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import asyncpg
from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send

KEY = os.environ["SECRET_KEY"].encode()
LIMIT, PERIOD = (int(os.environ[f"DEFAULT_RATE_LIMIT_{of}"]) for of in ("LIMIT", "PERIOD"))

SELECT_USER = 'SELECT id, name, username, profile_image_url, tier_id FROM "user" WHERE username = $1 AND NOT is_deleted'
USER_KEYS = ("id", "name", "username", "profile_image_url", "tier_id")
SELECT_USERS = (
    'SELECT id, name, username, profile_image_url, tier_id, (SELECT count(*) FROM "user" WHERE NOT is_deleted) '
    'FROM "user" WHERE NOT is_deleted ORDER BY id LIMIT $1 OFFSET $2'
)
SELECT_POST = (
    "SELECT post.id, title, text, media_url, created_by_user_id, post.created_at "
    'FROM post JOIN "user" ON "user".id = created_by_user_id '
    'WHERE post.id = $1 AND username = $2 AND NOT post.is_deleted AND NOT "user".is_deleted'
)
SELECT_ME = (
    'SELECT "user".id, name, username, profile_image_url, tier_id, email, is_superuser '
    'FROM "user" JOIN session ON session.user_id = "user".id '
    'WHERE "user".uuid = $1 AND session.uuid = $2 AND expires_at > now() AND NOT is_deleted'
)
SELECT_LIMIT = (
    'SELECT "user".id, "limit", period '
    'FROM "user" JOIN session ON session.user_id = "user".id '
    "LEFT JOIN rate_limit ON rate_limit.tier_id = \"user\".tier_id AND path = 'api_v1_tasks_task' "
    'WHERE "user".uuid = $1 AND session.uuid = $2 AND expires_at > now() AND NOT is_deleted'
)
UPDATE_POST = (
    "UPDATE post SET title = coalesce($3, title), text = coalesce($4, text), updated_at = now() "
    "WHERE id = $1 AND created_by_user_id = $2 AND NOT is_deleted "
    "RETURNING id, title, text, media_url, created_by_user_id, created_at"
)

pool: "asyncpg.Pool[asyncpg.Record]"
redis = Redis.from_url(os.environ["REDIS_URL"])
hit = redis.register_script("""
local used = redis.call('INCR', KEYS[1])
if used == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return used
""")
enqueue = redis.register_script("""
if redis.call('SET', KEYS[1], ARGV[1], 'PX', 86400000, 'NX') then redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3]) end
""")


def utc(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=utc).encode


async def skip_reset(_: object) -> None:
    """Skip the reset of a connection: these statements leave no session state."""


async def lifespan(receive: Receive, send: Send) -> None:
    global pool  # noqa: PLW0603
    await receive()
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=20, max_size=20, reset=skip_reset)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await pool.close()
    await redis.aclose(close_connection_pool=True)
    await send({"type": "lifespan.shutdown.complete"})


async def caller(headers: list[tuple[bytes, bytes]], statement: str) -> asyncpg.Record | None:
    """Return the row of the token's user; None without a token."""
    header = dict(headers).get(b"authorization")
    if header is None:
        return None
    signed, _, signature = header.removeprefix(b"Bearer ").rpartition(b".")
    ours = base64.urlsafe_b64encode(hmac.digest(KEY, signed, "sha256")).rstrip(b"=")
    claims = json.loads(base64.urlsafe_b64decode(signed.partition(b".")[2] + b"=="))
    if not hmac.compare_digest(ours, signature) or claims["exp"] < time.time() or claims["type"] != "access":
        raise PermissionError
    row = await pool.fetchrow(statement, UUID(claims["sub"]), UUID(claims["sid"]))
    if row is None:
        raise PermissionError
    return row


def cursor(last: int) -> str:
    signature = hmac.digest(KEY, str(last).encode(), "sha256")
    return f"{last}.{base64.urlsafe_b64encode(signature).decode()}"


async def read_users(query: dict[bytes, list[bytes]]) -> dict[str, Any]:
    page, size = int(query.get(b"page", [b"1"])[0]), int(query.get(b"items_per_page", [b"10"])[0])
    rows = await pool.fetch(SELECT_USERS, size, (page - 1) * size)
    total = rows[0][-1] if rows else 0
    has_more = page * size < total
    return {
        "data": [dict(zip(USER_KEYS, row, strict=False)) for row in rows],
        "total_count": total,
        "has_more": has_more,
        "page": page,
        "items_per_page": size,
        "next_cursor": cursor(rows[-1][0]) if has_more else None,
    }


async def read_post(username: str, id: str) -> bytes:
    key = f"limit:post:{username}:{id}"
    body: bytes | None = await redis.get(key)
    if body is None:
        row = await pool.fetchrow(SELECT_POST, int(id), username)
        body = encode(row and dict(row)).encode()
        await redis.set(key, body, ex=3600)
    return body


async def patch_post(scope: Scope, receive: Receive, username: str, id: str) -> dict[str, Any]:
    user = await caller(scope["headers"], SELECT_ME)
    if user is None or user["username"] != username:
        raise PermissionError
    values = json.loads((await receive())["body"])
    row = await pool.fetchrow(UPDATE_POST, int(id), user["id"], values.get("title"), values.get("text"))
    await redis.delete(f"limit:post:{username}:{id}")
    return dict(row or {})


async def create_task(scope: Scope) -> dict[str, str]:
    client, job_id, limit, period = f"address:{scope['client'][0]}", uuid4().hex, LIMIT, PERIOD
    user = await caller(scope["headers"], SELECT_LIMIT)
    if user is not None:
        client, job_id = f"user:{user['id']}", f"{user['id']}-{job_id}"
        limit, period = user["limit"] or LIMIT, user["period"] or PERIOD
    if await hit([f"limit:limit:{client}"], [period]) > limit:
        raise PermissionError
    now, message = int(time.time() * 1000), parse_qs(scope["query_string"].decode())["message"][0]
    job = encode({"t": None, "f": "sample_background_task", "a": [message], "k": {}, "et": now})
    await enqueue([f"arq:job:{job_id}", "arq:queue"], [job, now, job_id])
    return {"id": job_id}


async def answer(scope: Scope, receive: Receive) -> Any:
    content: Any = None
    match scope["method"], scope["path"].split("/")[1:]:
        case "GET", ["health"]:
            content = {"status": "ok"}
        case "GET", ["api", "v1", "users"]:
            content = await read_users(parse_qs(scope["query_string"]))
        case "GET", ["api", "v1", "user", "me"]:
            content = dict(await caller(scope["headers"], SELECT_ME) or {})
        case "GET", ["api", "v1", "user", username]:
            content = dict(await pool.fetchrow(SELECT_USER, username) or {})
        case "POST", ["api", "v1", "tasks", "task"]:
            content = await create_task(scope)
        case "GET", ["api", "v1", username, "post", id]:
            content = await read_post(username, id)
        case "PATCH", ["api", "v1", username, "post", id]:
            content = await patch_post(scope, receive, username, id)
    return content


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    content = await answer(scope, receive)
    status = 201 if scope["method"] == "POST" else 200 if content else 404
    body = content if isinstance(content, bytes) else encode(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

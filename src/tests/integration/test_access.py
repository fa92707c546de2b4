"""Access rights: every operation of the OpenAPI document, tried as each kind of caller."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from arq.jobs import serialize_result

from app.core import queue
from app.main import app as the_app
from app.models.post import Post
from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from app.models.user import User
from tests.factories import (
    PASSWORD,
    make_password_reset,
    make_post,
    make_rate_limit,
    make_superuser,
    make_tier,
    make_user,
    passwords,
)
from tests.helper import assert_unauthorized, sign_in

WHO = ("anonymous", "other", "owner", "superuser", "deleted", "ended")
# The statuses for these callers, in this order. Every route that reads tokens refuses those of ended sessions.
EVERYBODY = "200 200 200 200 200 200"
PUBLIC = "200 200 200 200 401 401"
SIGNED_IN = "401 200 200 200 401 401"
OWNER = "401 403 200 403 401 401"
OWNER_OR_SUPERUSER = "401 403 200 200 401 401"
SUPERUSER = "401 403 403 200 401 401"


@dataclass
class World:
    """The caller, and the rows that the request may affect, all of which belong to the owner."""

    caller: User
    headers: dict[str, str]
    owner: User
    post: Post
    tier: Tier
    limit: RateLimit
    task_id: str
    session_id: int


@dataclass
class Row:
    """The expected statuses, where `success` replaces 200; the values for the path; the rest of the request."""

    answers: str
    path: Callable[[World], dict[str, Any]] = lambda _: {}
    request: Callable[[World], dict[str, Any]] = lambda _: {}
    success: str = "200"

    def answer_to(self, who: str) -> int:
        return int(self.answers.replace("200", self.success).split()[WHO.index(who)])


def post_of_owner(world: World) -> dict[str, Any]:
    return {"username": world.owner.username, "id": world.post.id}


def limit_of_tier(world: World) -> dict[str, Any]:
    return {"tier_name": world.tier.name, "name": world.tier.name, "id": world.limit.id}


def task_of_owner(world: World) -> dict[str, Any]:
    return {"task_id": world.task_id}


def session_of_caller(world: World) -> dict[str, Any]:
    return {"id": world.session_id}


def json(**body: Any) -> Callable[[World], dict[str, Any]]:
    return lambda _: {"json": body}


def sign_in_as_owner(world: World) -> dict[str, Any]:
    return {"data": {"username": world.owner.username, "password": PASSWORD}}


def change_of_password(world: World) -> dict[str, Any]:
    return {"json": {"current_password": passwords[world.caller.username], "new_password": "N3w&better"}}


SIGN_UP = json(name="New User", username="newuser", email="new@example.com", password=PASSWORD)

ROWS = {
    "read_health": Row(EVERYBODY),
    "read_readiness": Row(EVERYBODY),
    "login_for_access_token": Row(EVERYBODY, request=sign_in_as_owner),
    "refresh_access_token": Row("401 401 401 401 401 401"),
    "logout": Row(EVERYBODY, success="204"),
    "read_sessions": Row(SIGNED_IN),
    "erase_session": Row(SIGNED_IN, session_of_caller),
    "erase_other_sessions": Row(SIGNED_IN),
    "change_password": Row(SIGNED_IN, request=change_of_password),
    "forget_password": Row(EVERYBODY, request=json(email="somebody@example.com"), success="202"),
    "reset_password": Row(EVERYBODY, request=json(token="mailed", new_password="N3w&better")),
    "write_user": Row(PUBLIC, request=SIGN_UP, success="201"),
    "read_users": Row(EVERYBODY),
    "read_users_me": Row(SIGNED_IN),
    "read_user": Row(PUBLIC, post_of_owner),
    "patch_user": Row(OWNER_OR_SUPERUSER, post_of_owner, json(name="New Name")),
    "erase_user": Row(OWNER_OR_SUPERUSER, post_of_owner),
    "erase_db_user": Row(SUPERUSER, post_of_owner),
    "read_user_rate_limits": Row(SUPERUSER, post_of_owner),
    "patch_user_tier": Row(SUPERUSER, post_of_owner, json(tier_id=None)),
    "write_post": Row(OWNER, post_of_owner, json(title="A title", text="Some text"), success="201"),
    "read_posts": Row(EVERYBODY, post_of_owner),
    "read_post": Row(EVERYBODY, post_of_owner),
    "patch_post": Row(OWNER, post_of_owner, json(title="New title")),
    "erase_post": Row(OWNER, post_of_owner),
    "erase_db_post": Row(SUPERUSER, post_of_owner),
    "create_task": Row(PUBLIC, request=lambda _: {"params": {"message": "x"}}, success="201"),
    "get_task": Row("404 404 200 200 401 401", task_of_owner),
    "read_failed_tasks": Row(SUPERUSER),
    "retry_failed_task": Row(SUPERUSER, task_of_owner),
    "write_tier": Row(SUPERUSER, request=json(name="new"), success="201"),
    "read_tiers": Row(SUPERUSER),
    "read_tier": Row(SUPERUSER, limit_of_tier),
    "patch_tier": Row(SUPERUSER, limit_of_tier, json(name="renamed")),
    "erase_tier": Row(SUPERUSER, limit_of_tier),
    "write_rate_limit": Row(SUPERUSER, limit_of_tier, json(path="users", limit=1, period=1), success="201"),
    "read_rate_limits": Row(SUPERUSER, limit_of_tier),
    "read_rate_limit": Row(SUPERUSER, limit_of_tier),
    "patch_rate_limit": Row(SUPERUSER, limit_of_tier, json(limit=7)),
    "erase_rate_limit": Row(SUPERUSER, limit_of_tier),
}


def operations() -> dict[str, tuple[str, str]]:
    """Return method and path of each operation in the application's OpenAPI document."""
    paths = the_app.openapi()["paths"].items()
    return {what["operationId"]: (method, path) for path, methods in paths for method, what in methods.items()}


def test_every_operation_has_a_row() -> None:
    assert sorted(ROWS) == sorted(operations())


@pytest.fixture
async def world(client: httpx.AsyncClient, who: str) -> World:
    owner = await make_user()
    if who in {"owner", "ended"}:
        caller = owner
    else:
        caller = await (make_superuser() if who == "superuser" else make_user())
    headers = await sign_in(client, caller)
    sessions = (await client.get("/api/v1/user/me/sessions", headers=headers)).json()["data"]
    if who == "deleted":
        assert (await client.delete(f"/api/v1/user/{caller.username}", headers=headers)).status_code == 200
    if who == "ended":
        assert (await client.post("/api/v1/logout", headers=headers)).status_code == 204
    client.cookies.clear()
    tier = await make_tier("some")
    await make_password_reset(owner, "mailed")
    task_id = f"{owner.id}-{'0' * 32}"
    await fail_task(task_id)
    return World(
        caller=caller,
        headers={} if who == "anonymous" else headers,
        owner=owner,
        post=await make_post(owner),
        tier=tier,
        limit=await make_rate_limit(tier),
        task_id=task_id,
        session_id=sessions[0]["id"],
    )


async def fail_task(task_id: str) -> None:
    """Store the data that a worker leaves after a failed job."""
    result = serialize_result(
        "sample_background_task", ("x",), {}, 1, 0, False, "it broke", 0, 0, "", "arq:queue", task_id,
        serializer=queue.serialize,
    )  # fmt: skip
    assert result
    async with queue.pool.pipeline() as pipe:
        pipe.set(f"arq:result:{task_id}", result)
        await pipe.execute()


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("operation", ROWS)
async def test_answer(client: httpx.AsyncClient, world: World, operation: str, who: str) -> None:
    row = ROWS[operation]
    method, path = operations()[operation]
    url = path.format_map(row.path(world))
    response = await client.request(method, url, headers=world.headers, **row.request(world))
    assert response.status_code == row.answer_to(who), response.text
    if response.status_code == 401:
        assert_unauthorized(response)

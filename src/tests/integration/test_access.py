"""Access rights and number of statements: every operation of the OpenAPI document, tried as each kind of caller."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from arq.jobs import serialize_result
from fastapi.routing import APIRoute, iter_route_contexts

from app.api.dependencies import (
    get_current_superuser,
    get_current_user,
    get_editable_user_id,
    get_optional_user,
    get_own_lookup,
)
from app.core import queue
from app.main import app as the_app
from app.models.user import User
from tests.factories import PASSWORD, make_password_reset, make_superuser, make_user, passwords
from tests.fixtures import Statements
from tests.helper import assert_unauthorized, sign_in
from tests.operations import Operation, Rows, operations, place, refused

WHO = ("anonymous", "other", "owner", "superuser", "deleted", "ended")
# The statuses for these callers, in this order. Every route that reads tokens refuses those of ended sessions.
EVERYBODY = "200 200 200 200 200 200"
PUBLIC = "200 200 200 200 401 401"
SIGNED_IN = "401 200 200 200 401 401"
OWNER = "401 403 200 403 401 401"
OWN_ROWS = "401 404 200 404 401 401"  # the query has the caller as a filter: rows of others are not found
OWNER_OR_SUPERUSER = "401 403 200 200 401 401"
SUPERUSER = "401 403 403 200 401 401"


ROWS = {
    "read_health": EVERYBODY,
    "read_readiness": EVERYBODY,
    "login_for_access_token": EVERYBODY,
    "refresh_access_token": "401 401 401 401 401 401",
    "logout": EVERYBODY,
    "read_sessions": SIGNED_IN,
    "erase_session": SIGNED_IN,
    "erase_other_sessions": SIGNED_IN,
    "change_password": SIGNED_IN,
    "forget_password": EVERYBODY,
    "reset_password": EVERYBODY,
    "write_user": PUBLIC,
    "read_users": EVERYBODY,
    "read_users_me": SIGNED_IN,
    "read_user": PUBLIC,
    "patch_user": OWNER_OR_SUPERUSER,
    "erase_user": OWNER_OR_SUPERUSER,
    "erase_db_user": SUPERUSER,
    "read_user_rate_limits": SUPERUSER,
    "patch_user_tier": SUPERUSER,
    "write_post": OWNER,
    "read_posts": EVERYBODY,
    "read_post": EVERYBODY,
    "patch_post": OWNER,
    "erase_post": OWNER,
    "erase_db_post": SUPERUSER,
    "create_task": PUBLIC,
    "get_task": "404 404 200 200 401 401",
    "read_failed_tasks": SUPERUSER,
    "retry_failed_task": SUPERUSER,
    "write_tier": SUPERUSER,
    "read_tiers": SUPERUSER,
    "read_tier": SUPERUSER,
    "patch_tier": SUPERUSER,
    "erase_tier": SUPERUSER,
    "write_rate_limit": SUPERUSER,
    "read_rate_limits": SUPERUSER,
    "read_rate_limit": SUPERUSER,
    "patch_rate_limit": SUPERUSER,
    "erase_rate_limit": SUPERUSER,
}


# One reads the caller, one looks something up, two write.
FEW = 4
# Routes that run more statements, with their number.
STATEMENTS: dict[str, int] = {
    "change_password": 5,
}  # fmt: skip


@dataclass
class World:
    """The caller, and the owner of the rows that the request may affect."""

    caller: User
    headers: dict[str, str]
    owner: User
    rows: Rows


# Requests for which one made from the schema does not do.
REQUESTS: dict[str, Callable[[World], dict[str, Any]]] = {
    "login_for_access_token": lambda world: {"data": {"username": world.owner.username, "password": PASSWORD}},
    "change_password": lambda world: {
        "json": {"current_password": passwords[world.caller.username], "new_password": "N3w&better"}
    },
    "reset_password": lambda _: {"json": {"token": "mailed", "new_password": "N3w&better"}},
    "patch_user": lambda _: {"json": {"name": "New Name"}},
    "erase_user": lambda _: {},
    "erase_db_user": lambda _: {},
    "refresh_access_token": lambda _: {},
    "logout": lambda _: {},
}


def likely_answers(name: str) -> str:
    """Return the name of the answers that the dependencies of an endpoint lead to expect."""
    pending = [
        context.dependant
        for context in iter_route_contexts(the_app.routes)
        if isinstance(context.original_route, APIRoute) and context.original_route.endpoint.__name__ == name
    ]
    calls = set[Any]()
    while pending:
        each = pending.pop()
        calls.add(each.call)
        pending += each.dependencies
    by_dependency = {
        get_own_lookup: "OWNER", get_editable_user_id: "OWNER_OR_SUPERUSER", get_current_superuser: "SUPERUSER",
        get_current_user: "SIGNED_IN", get_optional_user: "PUBLIC",
    }  # fmt: skip
    return next((answers for call, answers in by_dependency.items() if call in calls), "EVERYBODY")


def test_every_operation_has_a_row() -> None:
    missing = [f'    "{name}": {likely_answers(name)},' for name in operations() if name not in ROWS]
    gone = [f'    "{name}"' for name in ROWS.keys() - operations().keys()]
    where = place("integration/test_access.py", "ROWS")
    assert not missing, "\n".join(["", f"Add to ROWS, at {where}, whom each answers:", *missing])
    assert not gone, "\n".join(["", f"Remove from ROWS, at {where}, since no operation has the name:", *sorted(gone)])


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
    makers = [await sign_in(client, owner), await sign_in(client, await make_superuser())]
    client.cookies.clear()
    await make_password_reset(owner, "mailed")
    task_id = f"{owner.id}-{'0' * 32}"
    await fail_task(task_id)
    known = {
        "username": owner.username, "task_id": task_id, "/api/v1/user/me/sessions/{id}": sessions[0]["id"],
    }  # fmt: skip
    return World(caller, {} if who == "anonymous" else headers, owner, Rows(client, makers, known))


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
@pytest.mark.parametrize("name", [name for name in ROWS if name in operations()])
async def test_answer(client: httpx.AsyncClient, world: World, statements: Statements, name: str, who: str) -> None:
    operation = operations()[name]
    answer = ROWS[name].replace("200", str(operation.success)).split()[WHO.index(who)]
    request = REQUESTS[name](world) if name in REQUESTS else await world.rows.request(operation)
    url = await world.rows.url(operation)
    statements.clear()
    response = await client.request(operation.method, url, headers=world.headers, **request)
    if response.status_code == 404 and who in {"other", "superuser"}:
        where = place("integration/test_access.py", "ROWS")
        assert response.status_code == int(answer), (
            f"{operation} finds no row for a caller who is not its owner. If this is meant, change its row in ROWS, "
            f'below {where}, to\n    "{name}": OWN_ROWS,'
        )
    if response.status_code in {404, 409, 422}:
        assert response.status_code == int(answer), refused(operation, response)
    assert response.status_code == int(answer), response.text
    if response.status_code == 401:
        assert_unauthorized(response)
    assert_few_statements(operation, statements)


def assert_few_statements(operation: Operation, statements: Statements) -> None:
    """Assert that a request ran few statements, and those of its write in one transaction."""
    begun = [sql for sql in statements.written if sql.startswith("BEGIN")]
    ran = [sql for _, sql in statements.all if not sql.startswith(("BEGIN", "COMMIT", "ROLLBACK"))]
    listed = "\n".join(ran)
    assert len(begun) <= 1, f"{operation} began {len(begun)} transactions:\n{listed}"
    line = f'    "{operation.name}": {len(ran)},\n'
    assert len(ran) <= STATEMENTS.get(operation.name, FEW), (
        f"{operation} ran these statements:\n{listed}\n"
        f"If it needs them all, add to STATEMENTS, at {place('integration/test_access.py', 'STATEMENTS')}\n{line}"
    )

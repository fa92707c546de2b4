"""Audit events: one for each request that changes data or uses a superuser's rights, without secrets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter, HTTPException, Request

from app.core.http import audit
from app.models.user import User
from scripts.servers import HOST
from tests.environment import SRC
from tests.factories import PASSWORD, make_user
from tests.fixtures import Fetch, LogRecords, RunServer, open_client
from tests.integration.own_app import MODULE, build

LOGS = SRC / "app" / "logs"

router = APIRouter()


@router.post("/things/{name}")
async def write_thing(request: Request, name: str, status: int = 201) -> None:
    audit.note(request.scope, who=7, session="a")
    audit.note(request.scope, session="b", reason="because")
    if status == 500:
        raise RuntimeError
    if status != 201:
        raise HTTPException(status)


@router.get("/things")
async def read_things(request: Request, superuser: bool) -> None:
    audit.note(request.scope, who=7, superuser=superuser)


@router.post("/silent")
async def write_silently() -> None:
    pass


@pytest.fixture
async def own(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(build(router), client=("192.0.2.7", 1234)) as own:
        yield own


def events(logs: LogRecords) -> list[dict[str, Any]]:
    """Return the logged events with their own fields only."""
    names = {"who", "address", "method", "path", "status", "session", "reason", "superuser", "target", "tier"}
    return [
        {"event": record.getMessage(), **{name: value for name, value in vars(record).items() if name in names}}
        for record in logs.records
        if record.name == "app.audit"
    ]


@pytest.mark.parametrize("status", [201, 403, 500])
async def test_write(own: httpx.AsyncClient, logs: LogRecords, status: int) -> None:
    answer = await own.post(f"/things/a%20name?token=secret&status={status}")
    assert answer.status_code == (200 if status == 201 else status)
    assert events(logs) == [
        {
            "event": "write_thing",
            "who": 7,
            "address": "192.0.2.7",
            "method": "POST",
            "path": "/things/a name",
            "status": answer.status_code,
            "session": "b",
            "reason": "because",
        }
    ]


async def test_refused_before_the_endpoint_runs(own: httpx.AsyncClient, logs: LogRecords) -> None:
    assert (await own.post("/things/x?status=odd")).status_code == 422
    assert events(logs) == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_reading_is_an_event_for_superusers_only(own: httpx.AsyncClient, logs: LogRecords, method: str) -> None:
    await own.request(method, "/things?superuser=false")
    assert events(logs) == []
    await own.request(method, "/things?superuser=true")
    (event,) = events(logs)
    assert (event["event"], event["method"], event["superuser"]) == ("read_things", method, True)


async def test_nothing_noted(own: httpx.AsyncClient, logs: LogRecords) -> None:
    await own.post("/silent")
    await own.post("/nowhere")
    assert events(logs) == []


async def test_request_that_takes_too_long(client: httpx.AsyncClient, logs: LogRecords) -> None:
    async def wait(request: Request) -> None:
        audit.note(request.scope, who=7)
        await asyncio.sleep(60)

    slow = APIRouter()
    slow.post("/slow")(wait)
    async with open_client(build(slow, REQUEST_TIMEOUT=0.1)) as own:
        assert (await own.post("/slow")).status_code == 503
    assert [(event["event"], event["status"]) for event in events(logs)] == [("wait", 503)]


class TestAccounts:
    """A log search by id finds every operation on an account, despite renames."""

    async def test_changes_of_an_account_by_superusers(
        self, client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str], logs: LogRecords
    ) -> None:
        user = await make_user()
        path = f"/api/v1/user/{user.username}"
        await client.patch(path, json={"name": "New Name"}, headers=superuser_headers)
        await client.delete(path, headers=superuser_headers)
        await client.delete(f"/api/v1/db_user/{user.username}", headers=superuser_headers)
        done = [(event["event"], event["who"], event["target"]) for event in events(logs) if "target" in event]
        operations = ["patch_user", "erase_user", "erase_db_user"]
        assert done == [(operation, superuser.id, user.id) for operation in operations]

    async def test_failed_sign_in(self, client: httpx.AsyncClient, user: User, logs: LogRecords) -> None:
        for name in (user.username, "nobody"):
            await client.post("/api/v1/login", data={"username": name, "password": "wrong"})
        assert [(event["event"], event["who"], event["status"]) for event in events(logs)] == [
            ("login_for_access_token", user.id, 401),
            ("login_for_access_token", None, 401),
        ]

    async def test_thief_of_a_refresh_token(self, client: httpx.AsyncClient, user: User, logs: LogRecords) -> None:
        form = {"username": user.username, "password": PASSWORD}
        token = (await client.post("/api/v1/login?refresh_in_body=true", data=form)).json()["refresh_token"]
        for agent in ("owner", "thief"):
            body = {"refresh_token": token}
            await client.post("/api/v1/refresh", json=body, headers={"User-Agent": agent})
        last = events(logs)[-1]
        assert (last["event"], last["who"], last["status"]) == ("refresh_access_token", user.id, 401)
        assert last["reason"] == "a spent refresh token ended the session"


@pytest.mark.parametrize("name", ["name", "args", "message", "created"])
def test_name_that_log_records_have_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        audit.note({}, **{name: 1})


SECRETIVE = """
from sqlalchemy import text

from app.core.database import on_commit, transaction


@router.post("/wrong-answer", response_model=list[int])
async def wrong_answer(db: SessionDep) -> object:
    return [dict(row._mapping) for row in await db.execute(text('SELECT * FROM "user"'))]


@router.post("/refused-row")
async def refused_row(db: SessionDep) -> None:
    await db.execute(text('CREATE TEMP VIEW nobody AS SELECT * FROM "user" WHERE false WITH CHECK OPTION'))
    columns = "name, is_superuser, is_deleted, created_at, hashed_password"
    others = f"SELECT {columns}, 'other', 'other', gen_random_uuid() FROM \\"user\\""
    await db.execute(text(f"INSERT INTO nobody ({columns}, username, email, uuid) {others}"))


@router.post("/broken-callback")
async def broken_callback(db: SessionDep) -> None:
    async def fail() -> None:
        async with transaction() as other:
            await other.execute(text('INSERT INTO "user" SELECT * FROM "user"'))

    on_commit(db, fail)
    await db.execute(text("SELECT 1"))


@router.post("/failing-statement")
async def failing_statement(db: SessionDep) -> None:
    row = (await db.execute(text('SELECT * FROM "user"'))).first()
    await db.execute(text("SELECT :hash FROM nowhere()"), {"hash": row.hashed_password})
"""


class TestSecrets:
    """No output and no log of a process contains a secret, even after errors."""

    @pytest.mark.parametrize("workers", [None, 1], ids=["uvicorn", "gunicorn"])
    async def test_are_in_no_log(
        self, run_server: RunServer, tmp_path: Path, fetch: Fetch, workers: int | None
    ) -> None:
        (tmp_path / "own.py").write_text(MODULE.replace("{routes}", SECRETIVE))
        command = ["uvicorn", "own:app", "--port", "{port}"]
        if workers:
            command = ["gunicorn", "own:app", "-k", "uvicorn.workers.UvicornWorker", "-b", f"{HOST}:{{port}}"]
            command += ["--access-logfile", "-", "--no-control-socket"]
        server = await run_server(command, environment={"PYTHONPATH": str(SRC)}, cwd=tmp_path)
        client = server.client
        password, wrong = f"Aa1!{uuid4().hex}", f"Aa1!{uuid4().hex}"
        body = {"name": "Some User", "username": "someuser", "email": "someuser@example.com", "password": password}
        for email, status in (("someuser@example.com", 201), ("someuser@example.com", 409), ("no address", 422)):
            assert (await client.post("/api/v1/user", json={**body, "email": email})).status_code == status
        await client.post("/api/v1/login", data={"username": "someuser", "password": wrong})
        answer = await client.post("/api/v1/login", data={"username": "someuser", "password": password})
        token = answer.json()["access_token"]
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await client.get("/api/v1/user/me", headers=bearer)).status_code == 200
        await client.get(f"/api/v1/user/me?access_token={token}", headers={"Authorization": f"Bearer {token}x"})
        for path, status in (
            ("/wrong-answer", 500),
            ("/refused-row", 500),
            ("/failing-statement", 500),
            ("/broken-callback", 200),
        ):
            assert (await client.post(path, headers=bearer)).status_code == status, path
        (row,) = await fetch('SELECT hashed_password FROM "user"')
        await server.stop()
        output = server.output + "".join(file.read_text() for file in LOGS.glob("app.log*"))
        for line in ("unhandled error", "after-commit callback failed", "Traceback", "POST /api/v1/login HTTP", "500"):
            assert line in server.output
        hidden = (password, wrong, row["hashed_password"][:40], token, token.split(".")[2])
        assert [secret for secret in hidden if secret in output] == []

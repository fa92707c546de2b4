"""WebSockets with the dependencies of requests."""

import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.extending.clone import Clone
from tests.fixtures import RunningServer

ROUTES = """
from typing import Annotated

from fastapi import APIRouter, Depends, Query, WebSocket

from app.api.dependencies import CurrentSuperuser, CurrentUser, OptionalUser, ReaderDep, SessionDep, rate_limiter
from app.core.database import engines_of, transaction
from app.core.exceptions import ForbiddenError
from app.crud.crud_users import crud_users

router = APIRouter()


@router.websocket("/chat")
async def chat(websocket: WebSocket, user: CurrentUser, db: ReaderDep) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        row = await crud_users.get(db, ["name"], id=user["id"])
        await websocket.send_json({"from": row["name"], "text": text})


@router.websocket("/rename")
async def rename(websocket: WebSocket, user: CurrentUser) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        async with transaction(engines_of(websocket)) as db:
            await crud_users.update(db, {"name": text}, id=user["id"])
        await websocket.send_json({"saved": text})


@router.websocket("/anyone")
async def anyone(websocket: WebSocket, user: OptionalUser) -> None:
    await websocket.accept()
    await websocket.send_json(user and user["username"])


@router.websocket("/admins")
async def admins(websocket: WebSocket, user: CurrentSuperuser) -> None:
    await websocket.accept()


@router.websocket("/limited", dependencies=[Depends(rate_limiter)])
async def limited(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json("accepted")


@router.websocket("/checked")
async def checked(websocket: WebSocket, number: Annotated[int, Query(ge=1)]) -> None:
    await websocket.accept()


@router.websocket("/refused-later")
async def refuse_later(websocket: WebSocket) -> None:
    await websocket.accept()
    raise ForbiddenError("Not any more")


@router.websocket("/request-session")
async def use_request_session(websocket: WebSocket, db: SessionDep) -> None:
    await websocket.accept()
"""


@pytest.fixture(scope="module")
async def server(clone: Clone) -> RunningServer:
    return await clone.start(
        CORS_ORIGINS="https://app.example.com", ALLOWED_HOSTS="127.0.0.1", DEFAULT_RATE_LIMIT_LIMIT="2"
    )


@pytest.fixture(scope="module")
async def token(server: RunningServer) -> str:
    person = {"name": "Ann", "username": "ann", "email": "ann@example.com", "password": "Pr1de&Prejudice"}
    assert (await server.client.post("/user", json=person)).status_code == 201
    answer = await server.client.post("/login", data={"username": "ann", "password": "Pr1de&Prejudice"})
    return str(answer.json()["access_token"])


def address(server: RunningServer, path: str) -> str:
    return f"ws://127.0.0.1:{server.port}/api/v1{path}"


async def refused(server: RunningServer, path: str, **headers: str) -> tuple[int, Any]:
    """Return status and body of the answer to an attempt to connect."""
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(address(server, path), additional_headers=headers):
            pass
    response = refusal.value.response
    body = response.body or b""
    return response.status_code, json.loads(body) if body.startswith(b"{") else body


class TestUser:
    async def test_signed_in(self, server: RunningServer, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        async with connect(address(server, "/chat"), additional_headers=headers) as socket:
            await socket.send("hello")
            assert json.loads(await socket.recv())["text"] == "hello"
        async with connect(address(server, "/anyone"), additional_headers=headers) as socket:
            assert json.loads(await socket.recv()) == "ann"

    async def test_anonymous(self, server: RunningServer) -> None:
        async with connect(address(server, "/anyone")) as socket:
            assert json.loads(await socket.recv()) is None
        status, answer = await refused(server, "/chat")
        assert (status, answer["detail"][:17]) == (401, "Not authenticated")

    async def test_forged_token(self, server: RunningServer) -> None:
        assert (await refused(server, "/chat", Authorization="Bearer nonsense"))[0] == 401
        assert (await refused(server, "/anyone", Authorization="Bearer nonsense"))[0] == 401

    async def test_no_superuser(self, server: RunningServer, token: str) -> None:
        assert await refused(server, "/admins", Authorization=f"Bearer {token}") == (
            403,
            {"detail": "Only superusers are allowed to do this"},
        )

    async def test_refused_after_it_was_accepted(self, server: RunningServer) -> None:
        async with connect(address(server, "/refused-later")) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "Not any more")


class TestTransaction:
    async def test_what_was_acknowledged_is_saved(self, server: RunningServer, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        async with connect(address(server, "/rename"), additional_headers=headers) as socket:
            for name in ("Ann One", "Ann Two"):
                await socket.send(name)
                assert json.loads(await socket.recv()) == {"saved": name}
                assert (await server.client.get("/user/ann")).json()["name"] == name

    async def test_of_a_request_is_refused(self, server: RunningServer) -> None:
        assert (await refused(server, "/request-session"))[0] == 500
        await server.wait_for_output("a WebSocket has no transaction of its own")


class TestLimits:
    async def test_rate_limit(self, server: RunningServer) -> None:
        for _ in range(2):
            async with connect(address(server, "/limited")) as socket:
                assert json.loads(await socket.recv()) == "accepted"
        status, answer = await refused(server, "/limited")
        assert (status, answer["detail"][:19]) == (429, "Rate limit exceeded")

    async def test_malformed_parameter(self, server: RunningServer) -> None:
        assert (await refused(server, "/checked?number=0"))[0] == 403

    @pytest.mark.parametrize("origin", ["https://app.example.com", "http://127.0.0.1:{port}"])
    async def test_own_and_listed_origins(self, server: RunningServer, origin: str) -> None:
        headers = {"Origin": origin.format(port=server.port)}
        async with connect(address(server, "/anyone"), additional_headers=headers) as socket:
            assert json.loads(await socket.recv()) is None

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "http://127.0.0.1", "null", "https://app.example.com.evil"]
    )
    async def test_foreign_origin(self, server: RunningServer, origin: str) -> None:
        status, answer = await refused(server, "/anyone", Origin=origin)
        assert (status, "CORS_ORIGINS" in answer["detail"]) == (403, True)

    async def test_foreign_host(self, server: RunningServer) -> None:
        assert (await refused(server, "/anyone", Host="evil.example"))[0] == 400

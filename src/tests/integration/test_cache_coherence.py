"""After the answer to a write, no read returns the older value, in any interleaving of reads and writes."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request

from app.api.dependencies import ReaderDep, SessionDep
from app.core.cache import CacheStore, cache, store
from app.core.cache.store import LEASE_MARGIN, MAX_LEASES_AWAITED
from app.core.config import settings
from app.core.database import on_commit
from app.core.exceptions import NotFoundError
from app.core.redis import RedisServer
from app.models.user import User
from tests.environment import SRC, connected
from tests.factories import make_user
from tests.fixtures import Fetch, HeadersFor, RedisRoles, RunServer, open_client
from tests.helper import assert_error, running, wait_until
from tests.in_between import wait_for_locks
from tests.integration.own_app import MODULE, build, count_statuses, sealed, send
from tests.specimen.crud import crud_moths
from tests.specimen.factories import make_moth
from tests.specimen.main import SPECIMEN
from tests.specimen.models import Moth

pytestmark = pytest.mark.drill

API = "/api/v1"
Hook = Callable[[], Awaitable[None]]


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


async def _go_on() -> None:
    pass


class Hooks:
    """The points at which a test can hold an endpoint."""

    after_read: Hook = staticmethod(_go_on)
    before_commit: Hook = staticmethod(_go_on)
    after_commit: Hook = staticmethod(_go_on)
    reads = 0


class Gate:
    """A gate: `await gate()` blocks until `open()`; `await gate.arrived.wait()` waits for the first caller."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self._open = asyncio.Event()

    async def __call__(self) -> None:
        self.arrived.set()
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
async def moth(user: User) -> Moth:
    return await make_moth(user, title="old")


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


@pytest.fixture
async def own(app: FastAPI, hooks: Hooks) -> AsyncIterator[httpx.AsyncClient]:
    """An application whose endpoints read and change the titles of real moths, and wait for the hooks."""
    router = APIRouter()

    @router.get("/moths/{id}")
    @cache("title", resource_id_name="id")
    async def read(request: Request, id: int, db: ReaderDep) -> dict[str, Any] | None:
        hooks.reads += 1
        moth = await crud_moths.get(db, ["title"], id=id)
        await hooks.after_read()
        return moth

    async def change(id: int, title: str, db: SessionDep) -> None:
        await crud_moths.update(db, {"title": title}, id=id)
        await hooks.before_commit()

    @router.patch("/moths/{id}")
    @cache("title", resource_id_name="id")
    async def patch(request: Request, id: int, title: str, db: SessionDep) -> None:
        await change(id, title, db)

    @router.patch("/moths/{id}/by_pattern")
    @cache("other", resource_id_name="id", pattern_to_invalidate_extra=["tit*"])
    async def patch_by_pattern(request: Request, id: int, title: str, db: SessionDep) -> None:
        on_commit(db, hooks.after_commit)
        await change(id, title, db)

    class Titles:
        """A dependency that uses the session, so that endpoints need not."""

        def __init__(self, db: SessionDep) -> None:
            self.db = db

        async def change(self, id: int, title: str) -> None:
            on_commit(self.db, hooks.after_commit)
            await crud_moths.update(self.db, {"title": title}, id=id)

    @router.patch("/moths/{id}/by_service")
    @cache("title", resource_id_name="id")
    async def patch_by_service(request: Request, id: int, title: str, titles: Annotated[Titles, Depends()]) -> None:
        await titles.change(id, title)

    async with open_client(build(router, MAX_CONCURRENT_REQUESTS=1000)) as client:
        yield client


@pytest.mark.parametrize("way", ["", "/by_pattern"])
class TestInterleavings:
    async def test_read_before_the_commit_and_stored_after_it(
        self, own: httpx.AsyncClient, hooks: Hooks, redis: RedisRoles, moth: Moth, way: str
    ) -> None:
        hooks.after_read = gate = Gate()
        async with running(own.get(f"/moths/{moth.id}")) as (slow,):
            await gate.arrived.wait()
            hooks.after_read = _go_on
            assert (await own.patch(f"/moths/{moth.id}{way}?title=new")).status_code == 200
            gate.open()
            assert (await slow).json() == {"title": "old"}
        assert await redis.cache.get(f"title:{moth.id}") is None
        assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "new"}
        assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "new"}
        assert hooks.reads == 2

    async def test_slow_reader_does_not_replace_a_later_answer(
        self, own: httpx.AsyncClient, hooks: Hooks, redis: RedisRoles, moth: Moth, way: str
    ) -> None:
        hooks.after_read = gate = Gate()
        async with running(own.get(f"/moths/{moth.id}")) as (slow,):
            await gate.arrived.wait()
            hooks.after_read = _go_on
            await own.patch(f"/moths/{moth.id}{way}?title=new")
            assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "new"}
            gate.open()
            assert (await slow).json() == {"title": "old"}
        assert await redis.cache.get(f"title:{moth.id}") == sealed(f"title:{moth.id}", b'{"title":"new"}')

    async def test_stored_between_the_change_and_its_commit(
        self, own: httpx.AsyncClient, hooks: Hooks, redis: RedisRoles, moth: Moth, way: str
    ) -> None:
        hooks.before_commit = gate = Gate()
        async with running(own.patch(f"/moths/{moth.id}{way}?title=new")) as (write,):
            await gate.arrived.wait()
            assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "old"}
            assert await redis.cache.get(f"title:{moth.id}") == sealed(f"title:{moth.id}", b'{"title":"old"}')
            gate.open()
            assert (await write).status_code == 200
        assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "new"}

    @pytest.mark.usefixtures("long_leases")
    async def test_waiting_readers_get_the_value_after_the_write(
        self, own: httpx.AsyncClient, hooks: Hooks, moth: Moth, way: str
    ) -> None:
        hooks.after_read = gate = Gate()
        async with running(own.get(f"/moths/{moth.id}")) as (slow,):
            await gate.arrived.wait()
            hooks.after_read = _go_on
            async with running(*(own.get(f"/moths/{moth.id}") for _ in range(10))) as waiting:
                await own.patch(f"/moths/{moth.id}{way}?title=new")
                answers = [(await reader).json() for reader in waiting]
            gate.open()
        assert answers == [{"title": "new"}] * 10
        assert (await slow).json() == {"title": "old"}
        assert hooks.reads == 2

    async def test_write_that_fails_at_its_end(
        self, own: httpx.AsyncClient, hooks: Hooks, redis: RedisRoles, moth: Moth, way: str
    ) -> None:
        async def fail() -> None:
            raise RuntimeError

        hooks.before_commit = fail
        await own.get(f"/moths/{moth.id}")
        assert (await own.patch(f"/moths/{moth.id}{way}?title=new")).status_code == 500
        assert await redis.cache.get(f"title:{moth.id}") == sealed(f"title:{moth.id}", b'{"title":"old"}')
        assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "old"}


async def test_read_between_the_commit_and_the_answer_of_the_write(
    own: httpx.AsyncClient, hooks: Hooks, moth: Moth
) -> None:
    """Before the answer to the write, both values are right. After it, the old value must not remain."""
    await own.get(f"/moths/{moth.id}")
    hooks.after_commit = gate = Gate()
    async with running(own.patch(f"/moths/{moth.id}/by_pattern?title=new")) as (write,):
        await gate.arrived.wait()
        await own.get(f"/moths/{moth.id}")
        gate.open()
        await write
    assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "new"}


async def test_removal_follows_the_commit_wherever_the_session_is(
    own: httpx.AsyncClient, hooks: Hooks, redis: RedisRoles, moth: Moth
) -> None:
    stored: list[bytes | None] = []

    async def look() -> None:
        stored.append(await redis.cache.get(f"title:{moth.id}"))

    hooks.after_commit = look
    await own.get(f"/moths/{moth.id}")
    assert (await own.patch(f"/moths/{moth.id}/by_service?title=new")).status_code == 200
    assert stored == [sealed(f"title:{moth.id}", b'{"title":"old"}')]
    assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "new"}


class TestRename:
    """Each write invalidates the answers that are stored under the name of its path, despite concurrent renames."""

    @pytest.fixture
    async def held(self) -> AsyncIterator[Callable[[str], Awaitable[Hook]]]:
        """Lock rows until the test calls the returned hook."""
        async with connected(settings.POSTGRES_DB) as connection:
            transaction = connection.transaction()

            async def hold(statement: str) -> Hook:
                await transaction.start()
                await connection.execute(statement)
                return transaction.rollback

            yield hold

    @pytest.mark.parametrize(
        ("way", "overtakes"), [*product(["PATCH", "DELETE", "DELETE db_moth"], [True, False]), ("POST", False)]
    )
    async def test_comes_while_a_moth_is_written(
        self,
        client: httpx.AsyncClient,
        redis: RedisRoles,
        moth: Moth,
        user: User,
        user_headers: dict[str, str],
        superuser_headers: dict[str, str],
        held: Callable[[str], Awaitable[Hook]],
        fetch: Fetch,
        way: str,
        overtakes: bool,
    ) -> None:
        """A write locks the name of its user, so that the rename waits for it, unless it has not got so far.

        A PATCH or DELETE that waits for the table of moths has not begun. A POST has locked the name before.
        """
        method, _, kind = way.partition(" ")
        path = f"{API}/{user.username}/{kind or 'moth'}"
        path = path if way == "POST" else f"{path}/{moth.id}"
        headers = superuser_headers if kind else user_headers
        body = {"title": "new", "text": "text"} if method != "DELETE" else None

        async def read_all() -> list[Any]:
            paths = [f"{name}/{what}" for name in (user.username, "renamed") for what in ("moths", f"moth/{moth.id}")]
            return [(await client.get(f"{API}/{path}")).json() for path in paths]

        async def rename_and_read() -> None:
            answer = await client.patch(
                f"{API}/user/{user.username}", json={"username": "renamed"}, headers=user_headers
            )
            assert answer.status_code == 200
            await read_all()

        whole = overtakes or way == "POST"
        release = await held("LOCK TABLE moth IN EXCLUSIVE MODE" if whole else "SELECT FROM moth FOR UPDATE")
        async with running(client.request(method, path, headers=headers, json=body)) as (write,):
            await wait_for_locks(fetch, 1)
            async with running(rename_and_read()) as (rename,):
                if overtakes:
                    await rename
                else:
                    await wait_for_locks(fetch, 2)
                await release()
                answer = await write
                await rename
        if overtakes:
            assert_error(answer, 404, "Moth not found")
        else:
            assert answer.status_code == (201 if way == "POST" else 200)
        served = await read_all()
        await redis.cache.flushdb()
        assert served == await read_all()

    async def test_comes_before_a_deletion_by_the_old_name(
        self,
        client: httpx.AsyncClient,
        user: User,
        superuser_headers: dict[str, str],
        held: Callable[[str], Awaitable[Hook]],
        fetch: Fetch,
    ) -> None:
        path = f"{API}/user/{user.username}"
        release = await held(f'SELECT FROM "user" WHERE id = {user.id} FOR UPDATE')
        async with running(client.patch(path, json={"username": "renamed"}, headers=superuser_headers)) as (rename,):
            await wait_for_locks(fetch, 1)
            async with running(client.delete(path, headers=superuser_headers)) as (deletion,):
                await wait_for_locks(fetch, 2)
                await release()
                assert (await rename).status_code == 200
                assert (await deletion).status_code == 404
        assert (await client.get(f"{API}/user/renamed")).status_code == 200


class TestTakenOverName:
    """A user takes over a name before the rename that freed it has invalidated the answers stored under it."""

    @pytest.fixture
    async def late(self, monkeypatch: pytest.MonkeyPatch) -> Gate:
        """A gate that holds the first removal."""
        gate, remove = Gate(), CacheStore.remove

        async def remove_late(store: CacheStore, keys: Sequence[str], patterns: Sequence[str]) -> None:
            if not gate.arrived.is_set():
                await gate()
            await remove(store, keys, patterns)

        monkeypatch.setattr(CacheStore, "remove", remove_late)
        return gate

    @pytest.mark.parametrize("way", ["rename", "sign-up"])
    async def test_shows_nothing_of_the_former_owner(
        self,
        client: httpx.AsyncClient,
        user: User,
        moth: Moth,
        superuser_headers: dict[str, str],
        late: Gate,
        way: str,
    ) -> None:
        other = await make_user()
        paths = [f"{API}/{user.username}/{what}" for what in ("moths", f"moth/{moth.id}")]
        for path in paths:
            assert (await client.get(path)).status_code == 200
        giving_up = client.patch(f"{API}/user/{user.username}", json={"username": "renamed"}, headers=superuser_headers)
        async with running(giving_up) as (rename,):
            async with asyncio.timeout(10):
                await late.arrived.wait()
            if way == "rename":
                taken = await client.patch(
                    f"{API}/user/{other.username}", json={"username": user.username}, headers=superuser_headers
                )
                assert taken.status_code == 200
            else:
                body = {"name": "New", "username": user.username, "email": "n@example.com", "password": "Sense&Sensib"}
                assert (await client.post(f"{API}/user", json=body)).status_code == 201
            assert (await client.get(paths[0])).json()["data"] == []
            assert (await client.get(paths[1])).status_code == 404
            late.open()
            assert (await rename).status_code == 200


@pytest.fixture
def long_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no request give up waiting for another's answer, however slow the machine is."""
    monkeypatch.setattr(store, "LEASE_MARGIN", 60)


class TestStampede:
    @pytest.mark.usefixtures("long_leases")
    async def test_a_hundred_misses_run_the_endpoint_once(
        self, own: httpx.AsyncClient, hooks: Hooks, moth: Moth
    ) -> None:
        hooks.after_read = gate = Gate()
        async with running(*(own.get(f"/moths/{moth.id}") for _ in range(100))) as readers:
            await gate.arrived.wait()
            await asyncio.sleep(0.05)  # time for other requests to arrive
            gate.open()
            answers = [(await reader).json() for reader in readers]
        assert answers == [{"title": "old"}] * 100
        assert hooks.reads == 1

    @pytest.mark.usefixtures("long_leases")
    async def test_next_one_goes_on_when_the_first_fails(
        self, own: httpx.AsyncClient, hooks: Hooks, moth: Moth
    ) -> None:
        gate = Gate()

        async def fail_once() -> None:
            hooks.after_read = _go_on
            await gate()
            raise RuntimeError

        hooks.after_read = fail_once
        async with running(*(own.get(f"/moths/{moth.id}") for _ in range(20))) as readers:
            await gate.arrived.wait()
            gate.open()
            answers = [await reader for reader in readers]
        assert sorted(answer.status_code for answer in answers) == [200] * 19 + [500]
        assert hooks.reads == 2

    @pytest.mark.usefixtures("long_leases")
    async def test_concurrent_misses_without_a_stored_answer_run_in_parallel(
        self, own: httpx.AsyncClient, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After two answers that are not stored, those that have waited for both wait for no third."""
        guard, lookups = RedisServer.guard, Counter[Any]()
        are_enough = Gate()
        together = 0

        @asynccontextmanager
        async def counted(server: RedisServer, **options: Any) -> AsyncIterator[None]:
            async with guard(server, **options):
                yield
            lookups[asyncio.current_task()] += 1

        async def are_all_waiting() -> bool:  # the first lookup may have been sent before the lease was taken
            return sum(times > 1 for times in lookups.values()) >= 200 - hooks.reads

        async def fail() -> None:
            nonlocal together
            if hooks.reads <= MAX_LEASES_AWAITED:
                lookups.clear()
                await wait_until(are_all_waiting)
                raise NotFoundError
            together += 1
            if together > 100:
                are_enough.open()
            await are_enough()
            raise NotFoundError

        monkeypatch.setattr(RedisServer, "guard", counted)
        hooks.after_read = fail
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(own.get("/moths/1") for _ in range(200)))
        assert [answer.status_code for answer in answers] == [404] * 200

    async def test_answer_that_takes_longer_than_a_lease(
        self, own: httpx.AsyncClient, hooks: Hooks, redis: RedisRoles, moth: Moth
    ) -> None:
        hooks.after_read = gate = Gate()
        async with running(own.get(f"/moths/{moth.id}")) as (slow,):
            await gate.arrived.wait()
            hooks.after_read = _go_on
            assert (
                0
                < await redis.cache.pttl(f"title:{moth.id}")
                <= (settings.POSTGRES_STATEMENT_TIMEOUT + LEASE_MARGIN) * 1000
            )
            await redis.cache.pexpire(f"title:{moth.id}", 1)
            assert (await own.get(f"/moths/{moth.id}")).json() == {"title": "old"}
            gate.open()
            assert (await slow).status_code == 200


OWN_ROUTES = """
from app.core.cache import store

store.LEASE_MARGIN = float(os.environ.get("LEASE_MARGIN", store.LEASE_MARGIN))


@router.get("/slow/{id}")
@cache("slow")
async def slow(request: Request, id: int) -> dict[str, int]:
    runs = await queue.pool.incr(f"runs:{id}")
    await asyncio.sleep(float(os.environ["SLOW_SECONDS"]))
    return {"run": runs}
"""


async def is_running(redis: RedisRoles) -> bool:
    return await redis.queue.get("runs:1") is not None


class TestSeveralProcesses:
    @pytest.fixture
    def module(self, tmp_path: Path) -> Path:
        (tmp_path / "own.py").write_text(MODULE.replace("{routes}", OWN_ROUTES))
        return tmp_path

    async def test_two_hundred_misses_on_four_processes_run_the_endpoint_once(
        self, run_server: RunServer, redis: RedisRoles, module: Path
    ) -> None:
        environment = {"PYTHONPATH": str(SRC), "SLOW_SECONDS": "0.8", "LEASE_MARGIN": "60"}
        command = ["uvicorn", "own:app", "--port", "{port}"]
        servers = await asyncio.gather(*(run_server(command, environment=environment, cwd=module) for _ in range(4)))
        for number in (1, 2):  # the first round opens the connections of each process
            path = f"/slow/{number}"
            counts = await asyncio.gather(*(count_statuses(server.port, "GET", path, times=50) for server in servers))
            assert [count[200] for count in counts] == [50] * 4
            assert await redis.queue.get(f"runs:{number}") == b"1"

    async def test_lease_of_a_killed_process_ends(self, run_server: RunServer, redis: RedisRoles, module: Path) -> None:
        environment = {"PYTHONPATH": str(SRC), "SLOW_SECONDS": "60"}
        command = ["uvicorn", "own:app", "--port", "{port}"]
        killed, other = await asyncio.gather(
            run_server(command, environment=environment, cwd=module),
            run_server(command, environment={**environment, "SLOW_SECONDS": "0"}, cwd=module),
        )
        async with running(send(killed.port, "GET", "/slow/1")):
            await killed.wait_until(lambda: is_running(redis), "the endpoint does not run")
            os.kill(killed.pid, signal.SIGKILL)
        assert await redis.cache.exists("slow:1") == 1
        async with asyncio.timeout(20):
            status, _, body = await send(other.port, "GET", "/slow/1")
        assert (status, body) == (200, b'{"run":2}')

    async def test_reads_and_writes_on_two_workers(
        self, run_server: RunServer, client: httpx.AsyncClient, headers_for: HeadersFor
    ) -> None:
        """Each reader records the last acknowledged write, then reads: the answer may be newer, never older."""
        server = await run_server(app=SPECIMEN, workers=2)
        users = [await make_user() for _ in range(2)]
        moths = [await make_moth(user, text="0") for user in users]
        acknowledged = [0, 0]
        checked = 0
        done = False

        async def write(which: int) -> None:
            headers = [f"{name}: {value}" for name, value in (await headers_for(users[which])).items()]
            path = f"/api/v1/{users[which].username}/moth/{moths[which].id}"
            for number in range(1, 61):
                body = f'{{"text": "{number}"}}'
                status, _, _ = await send(server.port, "PATCH", path, headers, body)
                assert status == 200
                acknowledged[which] = number

        async def read(which: int, path: str, key: Callable[[Any], Any]) -> None:
            nonlocal checked
            while not done:
                known = acknowledged[which]
                status, _, body = await send(server.port, "GET", path)
                assert status == 200
                assert int(key(json.loads(body))["text"]) >= known
                checked += 1

        async with asyncio.TaskGroup() as readers:
            for which, (user, moth) in enumerate(zip(users, moths, strict=True)):
                name = user.username
                readers.create_task(read(which, f"/api/v1/{name}/moth/{moth.id}", lambda answer: answer))
                readers.create_task(read(which, f"/api/v1/{name}/moths", lambda answer: answer["data"][0]))
            async with asyncio.TaskGroup() as writers:
                for which in range(2):
                    writers.create_task(write(which))
            done = True
        assert checked > 200

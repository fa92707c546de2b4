"""Writes that commit during a request, after one of its statements.

The answer must have been right at some moment of the request. The rows must be as after a serial execution. An endpoint
with two statements must not combine different states of the database. Authentication is an exception: the token decides
at the beginning of the request who the caller is and what they may do. `test_names.py` and `test_races.py` also test
writes that wait for a lock until the request has committed.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from app.core.cache import CacheStore
from app.core.database import Reader, transaction
from app.core.queue import ArqJob, retry_failed_job
from app.crud.crud_rate_limit import crud_rate_limits
from app.main import app as the_app
from app.models.tier import Tier
from app.models.user import User
from tests.factories import PASSWORD, make_post, make_rate_limit, make_superuser, make_tier, make_user
from tests.fixtures import Fetch, HeadersFor
from tests.helper import assert_error, running, sign_in, wait_until
from tests.integration.own_worker import run_jobs

API = "/api/v1"
NO_TIER = "Tier not found"
WAITING = (
    "SELECT count(*) AS waiting FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
Headers = dict[str, str]
Write = Callable[[], Awaitable[Any]]
Between = Callable[[int, Write], None]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    """`between(2, write)`: the next request waits for `write()` after its second statement on the reader."""
    fetch_all = Reader.fetch_all
    countdown: list[Write | None] = []

    async def fetch_all_and_write(reader: Reader, *arguments: Any) -> Sequence[Any]:
        rows = await fetch_all(reader, *arguments)
        if countdown and (write := countdown.pop()) is not None:
            await write()
        return rows

    def set_up(statement: int, write: Write) -> None:
        countdown[:] = [write, *[None] * (statement - 1)]

    monkeypatch.setattr(Reader, "fetch_all", fetch_all_and_write)
    return set_up


@pytest.fixture
async def alice() -> User:
    return await make_user(username="alice")


@pytest.fixture
async def heir() -> User:
    return await make_user(username="heir")


@pytest.fixture
async def tier() -> Tier:
    return await make_tier("free")


RENAME_ALICE = """UPDATE "user" SET username = 'bobby' WHERE username = 'alice'"""
RENAME_HEIR = """UPDATE "user" SET username = 'alice' WHERE username = 'heir'"""
DELETE_ALICE = """UPDATE "user" SET is_deleted = true, deleted_at = now() WHERE username = 'alice'"""
RENAME_TIER = "UPDATE tier SET name = 'old' WHERE name = 'free'"
RENAME_NEXT_TIER = "UPDATE tier SET name = 'free' WHERE name = 'next'"
DELETE_TIER = "DELETE FROM tier WHERE name = 'free'"
CHANGE_LIMIT = 'UPDATE rate_limit SET "limit" = 99'


@pytest.mark.parametrize("statement", [1, 2])
class TestReads:
    """The answer equals the endpoint's answer before the writes, between two of them, or after the last one."""

    @pytest.fixture
    def check(
        self,
        client: httpx.AsyncClient,
        between: Between,
        fetch: Fetch,
        monkeypatch: pytest.MonkeyPatch,
        statement: int,
    ) -> Callable[..., Awaitable[None]]:
        monkeypatch.setattr(CacheStore, "is_open", False)

        async def check(path: str, *writes: str, headers: Headers | None = None) -> None:
            async def read() -> tuple[int, Any]:
                response = await client.get(f"{API}/{path}", headers=headers)
                return response.status_code, response.json()

            async def write() -> None:
                for sql in writes:
                    await fetch(sql)
                    possible.append(await read())

            possible = [await read()]
            between(statement, write)
            assert await read() in possible

        return check

    @pytest.mark.parametrize("query", ["", "?page=2&items_per_page=1", "?page=9"])
    async def test_posts_under_a_name_that_their_author_takes(self, check: Any, alice: User, query: str) -> None:
        for _ in range(3):
            await make_post(alice)
        await check(f"bobby/posts{query}", RENAME_ALICE)

    async def test_posts_under_a_name_that_changes_hands(self, check: Any, alice: User, heir: User) -> None:
        await make_post(heir)
        await check("alice/posts", RENAME_ALICE, RENAME_HEIR)

    async def test_posts_of_an_author_who_is_deleted(self, check: Any, alice: User) -> None:
        await make_post(alice)
        await check("alice/posts", DELETE_ALICE)

    async def test_page_after_a_cursor(self, check: Any, client: httpx.AsyncClient, alice: User, heir: User) -> None:
        for author in (alice, heir, alice, heir):
            await make_post(author)
        cursor = (await client.get(f"{API}/alice/posts?items_per_page=1")).json()["next_cursor"]
        await check(f"alice/posts?cursor={cursor}", RENAME_ALICE, RENAME_HEIR)

    async def test_post_under_a_name_that_its_author_takes(self, check: Any, alice: User) -> None:
        post = await make_post(alice)
        await check(f"bobby/post/{post.id}", RENAME_ALICE)

    async def test_post_that_is_not_there(self, check: Any, alice: User) -> None:
        await check("alice/post/99", RENAME_ALICE)

    async def test_user_by_the_former_owner_of_the_name(
        self, check: Any, headers_for: HeadersFor, alice: User, heir: User
    ) -> None:
        await check("user/alice", RENAME_ALICE, RENAME_HEIR, headers=await headers_for(alice))

    async def test_user_by_the_next_owner_of_the_name(
        self, check: Any, headers_for: HeadersFor, alice: User, heir: User
    ) -> None:
        await check("user/alice", RENAME_ALICE, RENAME_HEIR, headers=await headers_for(heir))

    async def test_user_with_rate_limits(
        self, check: Any, superuser_headers: Headers, alice: User, tier: Tier, fetch: Fetch
    ) -> None:
        await make_rate_limit(tier)
        await fetch("UPDATE \"user\" SET tier_id = $1 WHERE username = 'alice'", tier.id)
        leave = "UPDATE \"user\" SET tier_id = NULL WHERE username = 'alice'"
        await check("user/alice/rate_limits", leave, CHANGE_LIMIT, headers=superuser_headers)

    @pytest.mark.parametrize("path", ["rate_limits", "rate_limits?page=2&items_per_page=1", "rate_limit/1"])
    @pytest.mark.parametrize("writes", [(DELETE_TIER,), (RENAME_TIER, CHANGE_LIMIT), (RENAME_TIER, RENAME_NEXT_TIER)])
    async def test_rate_limits_of_a_tier(
        self, check: Any, superuser_headers: Headers, tier: Tier, path: str, writes: Sequence[str]
    ) -> None:
        for each in (tier, await make_tier("next")):
            await make_rate_limit(each)
        await check(f"tier/free/{path}", *writes, headers=superuser_headers)

    @pytest.mark.parametrize("path", ["user/me", "user/me/sessions"])
    async def test_own_account(self, check: Any, headers_for: HeadersFor, alice: User, path: str) -> None:
        headers = await headers_for(alice)
        await headers_for(alice)
        await check(path, RENAME_ALICE, "DELETE FROM session WHERE id = 2", headers=headers)

    @pytest.mark.parametrize("path", ["users", "tiers", "tier/free"])
    async def test_others(self, check: Any, superuser_headers: Headers, alice: User, tier: Tier, path: str) -> None:
        await check(path, DELETE_ALICE, RENAME_TIER, headers=superuser_headers)


async def test_task_that_is_queued_once_more(
    client: httpx.AsyncClient, superuser_headers: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint reads the status and the result separately; a complete task must still have its result."""

    async def sample_background_task(ctx: dict[str, Any], message: str) -> None:
        raise ValueError

    status = ArqJob.status

    async def status_and_retry(job: ArqJob) -> Any:
        found = await status(job)
        await retry_failed_job(the_app.state.resources.queue.server, job.job_id)
        return found

    task = (await client.post(f"{API}/tasks/task?message=x")).json()["id"]
    await run_jobs(sample_background_task, tries=1)
    with monkeypatch.context() as patches:
        patches.setattr(ArqJob, "status", status_and_retry)
        read = await client.get(f"{API}/tasks/task/{task}", headers=superuser_headers)
    assert (read.json()["status"], read.json()["success"]) == ("queued", None)
    assert read.json() == (await client.get(f"{API}/tasks/task/{task}", headers=superuser_headers)).json()


@pytest.mark.parametrize("statement", [1, 2, 3])
class TestWrites:
    """The request writes the same rows as if it had run before the writes in between, or after them."""

    @pytest.fixture
    def do(self, between: Between, fetch: Fetch, statement: int) -> Callable[..., Awaitable[httpx.Response]]:
        """Send a request, and commit the writes after its statement `statement`, or after its end if it has fewer."""

        async def do(request: Awaitable[httpx.Response], *writes: str) -> httpx.Response:
            waiting = [*writes]

            async def write() -> None:
                while waiting:
                    await fetch(waiting.pop(0))

            between(statement, write)
            response = await request
            await write()
            return response

        return do

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "user/alice", {"name": "New Name"}),
            ("DELETE", "user/alice", None),
            ("POST", "alice/post", {"title": "New", "text": "x"}),
        ],
    )
    async def test_under_a_name_that_the_caller_takes(
        self, client: httpx.AsyncClient, do: Any, heir: User, method: str, path: str, body: Any
    ) -> None:
        """The name is unknown before the rename and the caller's after it, so no answer may be a 403."""
        headers = await sign_in(client, heir)
        response = await do(client.request(method, f"{API}/{path}", json=body, headers=headers), RENAME_HEIR)
        assert response.status_code in {200, 201, 404}, response.text

    @pytest.mark.parametrize("who", ["owner", "superuser"])
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PATCH", "user/alice", {"name": "New Name"}),
            ("PATCH", "user/alice", {"email": "new@example.com", "current_password": PASSWORD}),
            ("DELETE", "user/alice", None),
            ("DELETE", "user/alice", {"current_password": PASSWORD}),
            ("DELETE", "db_user/alice", None),
            ("PATCH", "user/alice/tier", {"tier_id": 1}),
            ("POST", "alice/post", {"title": "New", "text": "x"}),
            ("PATCH", "alice/post/1", {"title": "New"}),
            ("DELETE", "alice/post/1", None),
            ("DELETE", "alice/db_post/1", None),
        ],
    )
    async def test_under_a_name_that_changes_hands(
        self,
        client: httpx.AsyncClient,
        do: Any,
        fetch: Fetch,
        alice: User,
        heir: User,
        tier: Tier,
        who: str,
        method: str,
        path: str,
        body: Any,
    ) -> None:
        """The request changes rows of the former owner, of the next owner if the caller may, or none."""
        await make_post(alice)
        superuser = await make_superuser(username="super", password=PASSWORD)

        async def rows(user: User) -> list[dict[str, Any]]:
            return await fetch(
                'SELECT name, email, tier_id, "user".is_deleted, title, post.is_deleted AS is_post_deleted '
                'FROM "user" LEFT JOIN post ON created_by_user_id = "user".id WHERE "user".id = $1',
                user.id,
            )

        before = [await rows(alice), await rows(heir)]
        headers = await sign_in(client, alice if who == "owner" else superuser)
        request = client.request(method, f"{API}/{path}", json=body, headers=headers)
        response = await do(request, RENAME_ALICE, RENAME_HEIR)
        is_changed = [now != then for now, then in zip([await rows(alice), await rows(heir)], before, strict=True)]
        assert response.status_code in {200, 201, 403, 404}, response.text
        assert is_changed.count(True) == (response.status_code < 400)
        assert not (is_changed[1] and who == "owner")

    async def test_limit_for_a_tier_that_is_deleted(
        self, client: httpx.AsyncClient, do: Any, superuser_headers: Headers, tier: Tier
    ) -> None:
        body = {"name": "limit", "path": "api/v1/tasks/task", "limit": 5, "period": 60}
        request = client.post(f"{API}/tier/free/rate_limit", json=body, headers=superuser_headers)
        response = await do(request, DELETE_TIER)
        if response.status_code != 201:
            assert_error(response, 404, NO_TIER)

    @pytest.mark.parametrize("method", ["PATCH", "DELETE"])
    async def test_limit_of_a_tier_that_is_renamed(
        self, client: httpx.AsyncClient, do: Any, superuser_headers: Headers, tier: Tier, fetch: Fetch, method: str
    ) -> None:
        """The write in between uses the tier's new name, so no change under the old name may come after it."""
        limits = [99] if method == "PATCH" else []
        await make_rate_limit(tier)
        body = {"limit": 7} if method == "PATCH" else None
        request = client.request(method, f"{API}/tier/free/rate_limit/1", json=body, headers=superuser_headers)
        response = await do(request, RENAME_TIER, CHANGE_LIMIT)
        found = [row["limit"] for row in await fetch("SELECT * FROM rate_limit")]
        assert (response.status_code, found) in [(200, limits), (404, [99])]

    @pytest.mark.parametrize(("method", "body"), [("PATCH", {"name": "pro"}), ("DELETE", None)])
    async def test_tier_whose_name_changes_hands(
        self,
        client: httpx.AsyncClient,
        do: Any,
        superuser_headers: Headers,
        tier: Tier,
        fetch: Fetch,
        method: str,
        body: Any,
    ) -> None:
        await make_tier("next")
        request = client.request(method, f"{API}/tier/free", json=body, headers=superuser_headers)
        response = await do(request, RENAME_TIER, RENAME_NEXT_TIER)
        found = [(row["id"], row["name"]) for row in await fetch("SELECT id, name FROM tier ORDER BY id")]
        possible = [(404, [(1, "old"), (2, "free")])]
        if method == "PATCH":
            possible += [(200, [(1, "pro"), (2, "free")]), (200, [(1, "old"), (2, "pro")])]
        else:
            possible += [(200, [(2, "free")]), (200, [(1, "old")])]
        assert (response.status_code, found) in possible

    async def test_password_that_is_changed_after_it_confirmed_a_request(
        self, client: httpx.AsyncClient, do: Any, alice: User, fetch: Fetch
    ) -> None:
        """Both writes change different columns, as if the confirmed request had come first."""
        headers = await sign_in(client, alice)
        body = {"email": "new@example.com", "current_password": PASSWORD}
        request = client.patch(f"{API}/user/alice", json=body, headers=headers)
        response = await do(request, "UPDATE \"user\" SET hashed_password = '!'")
        [row] = await fetch('SELECT email, hashed_password FROM "user"')
        assert row["hashed_password"] == "!"
        assert (response.status_code, row["email"]) in {(200, body["email"]), (403, alice.email)}

    @pytest.mark.parametrize("write", [DELETE_ALICE, RENAME_ALICE, 'DELETE FROM "user"'])
    async def test_sign_in_of_a_user_who_changes(
        self, client: httpx.AsyncClient, do: Any, alice: User, fetch: Fetch, write: str, statement: int
    ) -> None:
        """A sign-in never starts a session for a deleted user."""
        form = {"username": "alice", "password": PASSWORD}
        response = await do(client.post(f"{API}/login", data=form), write)
        is_gone = write != RENAME_ALICE and statement == 1
        assert response.status_code == (401 if is_gone else 200)
        query = 'SELECT 1 FROM session JOIN "user" ON "user".id = user_id AND NOT is_deleted'
        assert bool(await fetch(query)) is (write == RENAME_ALICE)


class TestLocks:
    async def test_tier_keeps_its_name_until_its_limit_is_written(
        self, client: httpx.AsyncClient, superuser_headers: Headers, tier: Tier, fetch: Fetch
    ) -> None:
        await make_rate_limit(tier)
        path = f"{API}/tier/free/rate_limit/1"

        async def are_waiting(number: int) -> bool:
            return bool((await fetch(WAITING))[0]["waiting"] == number)

        async with AsyncExitStack() as stack, transaction() as db:
            await crud_rate_limits.update(db, {"period": 9}, id=1)
            change = running(client.patch(path, json={"limit": 7}, headers=superuser_headers))
            (changed,) = await stack.enter_async_context(change)
            await wait_until(lambda: are_waiting(1))
            rename = running(client.patch(f"{API}/tier/free", json={"name": "pro"}, headers=superuser_headers))
            (renamed,) = await stack.enter_async_context(rename)
            await wait_until(lambda: are_waiting(2))
            assert (await client.get(f"{API}/tier/free", headers=superuser_headers)).status_code == 200
        assert (changed.result().status_code, renamed.result().status_code) == (200, 200)
        assert changed.result().json()["limit"] == 7

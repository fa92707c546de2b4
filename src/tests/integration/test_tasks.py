"""The routes of tasks, and the worker that runs the task of the service."""

import asyncio
import json
import math
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from arq.jobs import JobStatus
from arq.worker import Worker
from fastapi import FastAPI

from app.core import queue
from app.core.queue import ArqJob, retry_failed_job
from app.main import app as the_app
from app.models.user import User
from tests.factories import make_superuser, make_user
from tests.fixtures import HeadersFor, RedisRoles, RunWorker
from tests.helper import assert_error, assert_unauthorized, is_recent
from tests.integration.own_worker import JobFunction, crash, fail, failures, run_jobs

pytestmark = pytest.mark.usefixtures("app")

TASK = "/api/v1/tasks/task"
FAILED = "/api/v1/tasks/failed"
NOT_FOUND = "There is no failed task of this id"

Work = Callable[..., Awaitable[Worker]]


async def sample_background_task(ctx: dict[str, Any], name: str) -> str:
    """Replace the worker's job of this name; skip its five seconds."""
    return f"Task {name} is complete!"


@pytest.fixture
def work(app: FastAPI) -> Work:
    """Run all queued jobs with these functions."""

    async def run(*functions: JobFunction) -> Worker:
        return await run_jobs(*functions or (sample_background_task,))

    return run


async def enqueue(client: httpx.AsyncClient, message: str = "hello", headers: dict[str, str] | None = None) -> str:
    response = await client.post(TASK, params={"message": message}, headers=headers)
    assert response.status_code == 201
    assert response.json().keys() == {"id"}
    return str(response.json()["id"])


class TestGetTask:
    async def test_queued(self, client: httpx.AsyncClient) -> None:
        job_id = await enqueue(client)
        response = await client.get(f"{TASK}/{job_id}")
        body = response.json()
        assert response.status_code == 200
        assert is_recent(body.pop("enqueue_time"))
        assert body == {
            "id": job_id,
            "status": "queued",
            "function": "sample_background_task",
            "args": ["hello"],
            "kwargs": {},
            "job_try": None,
            "success": None,
            "result": None,
            "start_time": None,
            "finish_time": None,
            "queue_name": None,
        }

    async def test_complete(self, client: httpx.AsyncClient, work: Work) -> None:
        job_id = await enqueue(client)
        await work()
        body = (await client.get(f"{TASK}/{job_id}")).json()
        assert all(is_recent(body.pop(name)) for name in ("enqueue_time", "start_time", "finish_time"))
        assert body == {
            "id": job_id,
            "status": "complete",
            "function": "sample_background_task",
            "args": ["hello"],
            "kwargs": {},
            "job_try": 1,
            "success": True,
            "result": "Task hello is complete!",
            "queue_name": "arq:queue",
        }

    async def test_running(self, client: httpx.AsyncClient, work: Work) -> None:
        job_id = await enqueue(client)
        seen = []

        async def sample_background_task(ctx: dict[str, Any], name: str) -> None:
            seen.append((await client.get(f"{TASK}/{job_id}")).json()["status"])

        await work(sample_background_task)
        assert seen == ["in_progress"]

    async def test_failed(self, client: httpx.AsyncClient, work: Work) -> None:
        job_id = await enqueue(client)

        async def sample_background_task(ctx: dict[str, Any], name: str) -> None:
            raise ValueError("no such " + name)

        await work(sample_background_task)
        body = (await client.get(f"{TASK}/{job_id}")).json()
        assert (body["status"], body["success"], body["result"]) == ("complete", False, "ValueError: no such hello")

    async def test_result_that_json_does_not_know(self, client: httpx.AsyncClient, work: Work) -> None:
        job_id = await enqueue(client)

        async def sample_background_task(ctx: dict[str, Any], name: str) -> object:
            return object()

        await work(sample_background_task)
        body = (await client.get(f"{TASK}/{job_id}")).json()
        assert (body["status"], body["success"]) == ("complete", False)
        assert "unable to serialize result" in body["result"]

    async def test_finishes_while_it_is_looked_up(
        self, client: httpx.AsyncClient, work: Work, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """arq looks for a result and then for the job; the job finishes between the two."""
        job_id = await enqueue(client)
        pool = the_app.state.resources.queue.pool  # not `queue.pool`, which may be another application's
        get = pool.get

        async def get_and_let_it_finish(name: str) -> Any:
            monkeypatch.setattr(pool, "get", get)
            value = await get(name)
            await work()
            return value

        monkeypatch.setattr(pool, "get", get_and_let_it_finish)
        response = await client.get(f"{TASK}/{job_id}")
        assert response.status_code == 200
        assert response.json()["status"] == "complete"
        assert response.json()["result"] == "Task hello is complete!"

    @pytest.mark.parametrize("prefix", ["", "1-", "99-"])
    async def test_not_found(self, client: httpx.AsyncClient, superuser_headers: dict[str, str], prefix: str) -> None:
        for headers in ({}, superuser_headers):
            response = await client.get(f"{TASK}/{prefix}{'0' * 32}", headers=headers)
            assert (response.status_code, response.json()) == (404, {"detail": "Task not found"})

    @pytest.mark.parametrize("task_id", ["x", "arq:queue", f"{'0' * 32}x", f"-{'0' * 32}", f"1-2-{'0' * 32}"])
    async def test_no_id_of_ours(self, client: httpx.AsyncClient, task_id: str) -> None:
        assert (await client.get(f"{TASK}/{task_id}")).status_code == 404

    async def test_malformed(self, client: httpx.AsyncClient) -> None:
        assert (await client.get(f"{TASK}/%00")).status_code == 422


class TestWhoMayLook:
    async def test_made_without_a_token(self, client: httpx.AsyncClient, headers_for: HeadersFor, user: User) -> None:
        job_id = await enqueue(client)
        for headers in ({}, await headers_for(user)):
            assert (await client.get(f"{TASK}/{job_id}", headers=headers)).status_code == 200

    async def test_made_with_a_token(self, client: httpx.AsyncClient, headers_for: HeadersFor) -> None:
        maker, other, superuser = await make_user(), await make_user(), await make_superuser()
        makers = await headers_for(maker)
        job_id = await enqueue(client, headers=makers)
        for headers, status in (
            (makers, 200),
            (await headers_for(superuser), 200),
            (await headers_for(other), 404),
            ({}, 404),
            ({"Authorization": "Bearer x"}, 401),
        ):
            assert (await client.get(f"{TASK}/{job_id}", headers=headers)).status_code == status
        without_maker = job_id.partition("-")[2]
        assert (await client.get(f"{TASK}/{without_maker}")).status_code == 404

    async def test_maker_who_changed_the_name(self, client: httpx.AsyncClient, headers_for: HeadersFor) -> None:
        maker = await make_user()
        headers = await headers_for(maker)
        job_id = await enqueue(client, headers=headers)
        await client.patch(f"/api/v1/user/{maker.username}", json={"username": "renamed"}, headers=headers)
        successor = await make_user(username=maker.username, email="successor@example.com")
        assert (await client.get(f"{TASK}/{job_id}", headers=headers)).status_code == 200
        assert (await client.get(f"{TASK}/{job_id}", headers=await headers_for(successor))).status_code == 404


class TestTheWorkerOfTheService:
    async def test_runs_queued_jobs_and_finishes_them_when_stopped(
        self, client: httpx.AsyncClient, run_worker: RunWorker
    ) -> None:
        worker = await run_worker()
        job_id = (await client.post(TASK, params={"message": "nightly"})).json()["id"]
        await worker.wait_for_output(f"→ {job_id}:sample_background_task(")
        assert (await client.get(f"{TASK}/{job_id}")).json()["status"] == "in_progress"
        os.kill(worker.pid, signal.SIGTERM)
        assert await worker.wait() == 0
        body = (await client.get(f"{TASK}/{job_id}")).json()
        assert (body["status"], body["success"]) == ("complete", True)
        assert body["result"] == "Task nightly is complete!"
        assert "nightly" not in worker.output  # arguments and results may be secrets


async def test_no_client_keeps_the_state_of_a_task(client: httpx.AsyncClient) -> None:
    response = await client.get(f"{TASK}/{await enqueue(client)}")
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "private, no-store")


async def test_is_limited_by_address(client: httpx.AsyncClient) -> None:
    statuses = [(await client.post(TASK, params={"message": "x"})).status_code for _ in range(11)]
    assert statuses == [201] * 10 + [429]


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_of_a_session_that_has_ended(
    client: httpx.AsyncClient, user_headers: dict[str, str], method: str
) -> None:
    await client.post("/api/v1/logout", headers=user_headers)
    path = TASK if method == "POST" else f"{TASK}/x"
    assert_unauthorized(await client.request(method, path, params={"message": "x"}, headers=user_headers))


async def test_task_that_is_queued_once_more(
    client: httpx.AsyncClient, superuser_headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint reads the status and the result separately; a complete task must still have its result."""

    async def sample_background_task(ctx: dict[str, Any], message: str) -> None:
        raise ValueError

    status = ArqJob.status

    async def status_and_retry(job: ArqJob) -> Any:
        found = await status(job)
        await retry_failed_job(the_app.state.resources.queue.server, job.job_id)
        return found

    task = (await client.post(f"{TASK}?message=x")).json()["id"]
    await run_jobs(sample_background_task, tries=1)
    with monkeypatch.context() as patches:
        patches.setattr(ArqJob, "status", status_and_retry)
        read = await client.get(f"{TASK}/{task}", headers=superuser_headers)
    assert (read.json()["status"], read.json()["success"]) == ("queued", None)
    assert read.json() == (await client.get(f"{TASK}/{task}", headers=superuser_headers)).json()


@pytest.mark.parametrize(("method", "path"), [("GET", FAILED), ("POST", f"{FAILED}/x/retry")])
class TestAccess:
    async def test_anonymous(self, client: httpx.AsyncClient, method: str, path: str) -> None:
        await fail("x")
        assert_unauthorized(await client.request(method, path))

    async def test_not_allowed(
        self, client: httpx.AsyncClient, user_headers: dict[str, str], method: str, path: str
    ) -> None:
        await fail("x")
        response = await client.request(method, path, headers=user_headers)
        assert_error(response, 403, "Only superusers are allowed to do this")
        assert len(await failures()) == 1


@pytest.mark.parametrize(("method", "path"), [("GET", FAILED), ("POST", f"{FAILED}/x/retry")])
async def test_queue_is_away(
    client: httpx.AsyncClient,
    superuser_headers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(the_app.state.resources.queue.server, "is_away", True)
        patch.setattr(the_app.state.resources.queue.server, "_next_try", math.inf)
        response = await client.request(method, path, headers=superuser_headers)
    assert_error(response, 503, "The queue server is away: try again")
    assert response.headers["Retry-After"] == "1"


class TestReadFailedTasks:
    async def test_none(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        response = await client.get(FAILED, headers=superuser_headers)
        assert response.status_code == 200
        assert response.json() == {"data": [], "total_count": 0, "has_more": False, "page": 1, "items_per_page": 10}

    async def test_pages(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        for number in range(3):
            await fail(f"job{number}", "grün", number=number)
        page = {"page": 1, "items_per_page": 2}
        body = (await client.get(FAILED, params=page, headers=superuser_headers)).json()
        assert [job["id"] for job in body.pop("data")] == ["job2", "job1"]
        assert body == {**page, "total_count": 3, "has_more": True}
        page = {"page": 2, "items_per_page": 2}
        body = (await client.get(FAILED, params=page, headers=superuser_headers)).json()
        (job,) = body.pop("data")
        assert body == {**page, "total_count": 3, "has_more": False}
        assert is_recent(job.pop("enqueue_time"))
        assert is_recent(job.pop("failed_at"))
        assert job == {
            "id": "job0",
            "function": "crash",
            "args": ["grün"],
            "kwargs": {"number": 0},
            "error": "ValueError: no such grün",
            "job_try": 1,
        }


class TestRetryFailedTask:
    async def test_runs_as_it_was_queued_first(
        self, client: httpx.AsyncClient, superuser_headers: dict[str, str], redis: RedisRoles
    ) -> None:
        await fail("x", "a", [], b={})
        response = await client.post(f"{FAILED}/x/retry", headers=superuser_headers)
        assert (response.status_code, response.json()) == (200, {"id": "x"})
        assert await failures() == []
        job = ArqJob("x", queue.pool)
        assert await job.status() is JobStatus.queued
        assert json.loads(await redis.queue.get("arq:job:x") or b"").keys() == {"t", "f", "a", "k", "et"}

        async def crash(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> list[Any]:
            return [ctx["job_try"], args, kwargs]

        await run_jobs(crash)
        assert await job.result(timeout=5) == [1, ["a", []], {"b": {}}]

    async def test_fails_again(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        await fail("x", "book")
        assert (await client.post(f"{FAILED}/x/retry", headers=superuser_headers)).status_code == 200
        await run_jobs(crash, tries=2)
        assert await failures() == [("x", "crash", "ValueError: no such book", 2)]

    async def test_two_at_once(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        await fail("x")
        answers = await asyncio.gather(
            *(client.post(f"{FAILED}/x/retry", headers=superuser_headers) for _ in range(10))
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [404] * 9
        assert [job.job_id for job in await queue.pool.queued_jobs()] == ["x"]
        worker = await run_jobs(crash, tries=1)
        assert worker.jobs_failed == 1

    @pytest.mark.parametrize("job_id", ["x", "failed_jobs", "arq:queue", "grün", "1" * 200])
    async def test_not_found(self, client: httpx.AsyncClient, superuser_headers: dict[str, str], job_id: str) -> None:
        response = await client.post(f"{FAILED}/{job_id}/retry", headers=superuser_headers)
        assert_error(response, 404, NOT_FOUND)

    async def test_id_is_in_use(self, client: httpx.AsyncClient, superuser_headers: dict[str, str]) -> None:
        """After the expiry of its result, a job with a fixed id may have been queued again."""
        await fail("x", "old")
        await queue.pool.delete("arq:result:x")
        await queue.pool.enqueue_job("other", "new", _job_id="x")
        response = await client.post(f"{FAILED}/x/retry", headers=superuser_headers)
        assert_error(response, 409, "A task of this id is in the queue")
        assert [job_id for job_id, *_ in await failures()] == ["x"]
        assert [job.function for job in await queue.pool.queued_jobs()] == ["other"]


async def test_job_of_another_function_is_a_task(client: httpx.AsyncClient) -> None:
    job_id = uuid4().hex
    await queue.pool.enqueue_job("crash", "book", _job_id=job_id)
    await run_jobs(crash, tries=1)
    body = (await client.get(f"{TASK}/{job_id}")).json()
    assert (body["function"], body["args"], body["result"]) == ("crash", ["book"], "ValueError: no such book")


@pytest.mark.parametrize("job_id", ["cron:work:1700000000000", "nightly", "1-2"])
async def test_task_whose_id_can_be_guessed_is_for_superusers(
    client: httpx.AsyncClient, user_headers: dict[str, str], superuser_headers: dict[str, str], job_id: str
) -> None:
    await queue.pool.enqueue_job("crash", _job_id=job_id)
    path = f"{TASK}/{job_id}"
    for headers, status in (({}, 404), (user_headers, 404), (superuser_headers, 200)):
        assert (await client.get(path, headers=headers)).status_code == status

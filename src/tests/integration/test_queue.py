"""Jobs between the API and a worker: the stored data, access to their status, and the context of a job."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from arq.connections import ArqRedis
from arq.jobs import JobStatus, SerializationError
from arq.worker import Worker
from fastapi import APIRouter, FastAPI

from app.api.dependencies import SessionDep
from app.core import queue
from app.core.database import on_commit
from app.core.exceptions import NotFoundError
from app.core.queue import ArqJob
from app.core.queue.failed_jobs import JOB_LIFETIME
from app.crud.crud_users import crud_users
from app.models.user import User
from tests.fixtures import Fetch, RedisRoles, open_client
from tests.helper import is_recent
from tests.integration.own_app import build
from tests.integration.own_worker import JobFunction, run_jobs

pytestmark = pytest.mark.usefixtures("app")

Work = Callable[..., Awaitable[Worker]]


async def greet(ctx: dict[str, Any], name: str) -> str:
    return f"Hello {name}!"


@pytest.fixture
def work(app: FastAPI) -> Work:
    """Run all queued jobs with these functions."""

    async def run(*functions: JobFunction) -> Worker:
        return await run_jobs(*functions or (greet,))

    return run


async def enqueue(name: str = "Ann") -> str:
    job = await queue.pool.enqueue_job("greet", name)
    assert job
    return job.job_id


class TestJson:
    async def test_job(self, redis: RedisRoles) -> None:
        job_id = await enqueue("grün")
        job = json.loads(await redis.queue.get(f"arq:job:{job_id}") or b"")
        assert is_recent(datetime.fromtimestamp(job.pop("et") / 1000, UTC))
        assert job == {"t": None, "f": "greet", "a": ["grün"], "k": {}}
        assert await redis.queue.zscore("arq:queue", job_id)

    async def test_result(self, redis: RedisRoles, work: Work) -> None:
        job_id = await enqueue()
        await work()
        result = json.loads(await redis.queue.get(f"arq:result:{job_id}") or b"")
        assert (result["s"], result["r"]) == (True, "Hello Ann!")
        assert 3500 < await redis.queue.ttl(f"arq:result:{job_id}") <= 3600
        assert await redis.queue.exists(f"arq:job:{job_id}", f"arq:in-progress:{job_id}", "arq:queue") == 0

    async def test_arguments_beyond_json_are_refused_at_once(self) -> None:
        with pytest.raises(SerializationError):
            await queue.pool.enqueue_job("greet", object())

    async def test_pickle_is_never_read(self, redis: RedisRoles, work: Work) -> None:
        """Reading pickles would let every client with write access to Redis run code in this process."""
        malicious = b"cos\nsystem\n(S'false'\ntR."
        job_id = await enqueue()
        await redis.queue.set(f"arq:job:{job_id}", malicious, keepttl=True)
        worker = await work()
        assert worker.jobs_failed == 1
        info = await ArqJob(job_id, queue.pool).result_info()
        assert info is not None
        assert not info.success


class TestArqJob:
    async def test_of_the_queue(self, work: Work) -> None:
        job_id = await enqueue()
        job = ArqJob(job_id, queue.pool)
        assert await job.status() is JobStatus.queued
        info = await job.info()
        assert info
        assert (info.function, list(info.args), info.kwargs) == ("greet", ["Ann"], {})
        await work()
        assert await job.status() is JobStatus.complete
        assert await job.result(timeout=5) == "Hello Ann!"

    async def test_not_there(self) -> None:
        job = ArqJob("nothing", queue.pool)
        assert await job.status() is JobStatus.not_found
        assert await job.info() is None


class TestJobs:
    async def test_session_of_the_context(self, work: Work, user: User, fetch: Fetch) -> None:
        async def rename(ctx: dict[str, Any], user_id: int, name: str) -> None:
            async with ctx["transaction"]() as db:
                await crud_users.update(db, {"name": name}, id=user_id)

        await queue.pool.enqueue_job("rename", user.id, name="By A Job")
        assert (await work(rename)).jobs_complete == 1
        assert await fetch('SELECT name FROM "user"') == [{"name": "By A Job"}]

    async def test_job_that_fails_leaves_nothing_written(self, work: Work, user: User, fetch: Fetch) -> None:
        async def rename(ctx: dict[str, Any], user_id: int) -> None:
            async with ctx["transaction"]() as db:
                await crud_users.update(db, {"name": "Half Done"}, id=user_id)
                raise RuntimeError

        await queue.pool.enqueue_job("rename", user.id)
        assert (await work(rename)).jobs_failed == 1
        assert await fetch('SELECT name FROM "user"') == [{"name": user.name}]

    async def test_function_that_the_worker_does_not_have(self, work: Work) -> None:
        job = await queue.pool.enqueue_job("from_a_newer_release")
        assert job
        worker = await work()
        assert worker.jobs_failed == 1
        info = await ArqJob(job.job_id, queue.pool).result_info()
        assert info
        assert "'from_a_newer_release' not found" in info.result


class TestOnCommit:
    """A job about a row starts after the commit of the row, and never after a rollback."""

    @pytest.fixture
    async def own(self) -> AsyncIterator[httpx.AsyncClient]:
        router = APIRouter()

        @router.post("/rename/{user_id}")
        async def rename(user_id: int, name: str, db: SessionDep) -> None:
            async def enqueue_greeting() -> None:
                await queue.pool.enqueue_job("greet", user_id)

            on_commit(db, enqueue_greeting)
            await crud_users.update(db, {"name": name}, id=user_id)
            assert await queue.pool.queued_jobs() == []
            if name == "nobody":
                raise NotFoundError

        async with open_client(build(router)) as client:
            yield client

    async def test_job_finds_what_was_committed(self, own: httpx.AsyncClient, user: User, work: Work) -> None:
        names = []

        async def greet(ctx: dict[str, Any], user_id: int) -> None:
            async with ctx["transaction"]() as db:
                names.append(await crud_users.get(db, ["name"], id=user_id))

        assert (await own.post(f"/rename/{user.id}?name=New")).status_code == 200
        assert [job.function for job in await queue.pool.queued_jobs()] == ["greet"]
        await work(greet)
        assert names == [{"name": "New"}]

    async def test_nothing_after_a_rollback(self, own: httpx.AsyncClient, user: User) -> None:
        assert (await own.post(f"/rename/{user.id}?name=nobody")).status_code == 404
        assert await queue.pool.queued_jobs() == []


class TestEnqueue:
    """Enqueuing takes one command instead of arq's four, with the same result in Redis."""

    @pytest.fixture
    def arq(self) -> ArqRedis:
        options: dict[str, Any] = {"job_serializer": queue.serialize, "job_deserializer": queue.deserialize}
        return ArqRedis(queue.pool.connection_pool, expires_extra_ms=JOB_LIFETIME * 1000, **options)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"_defer_by": 60},
            {"_defer_by": timedelta(minutes=2)},
            {"_defer_until": datetime(2100, 1, 1, tzinfo=UTC)},
            {"_expires": 90},
            {"_expires": timedelta(hours=1), "_defer_by": 1.5},
            {"_queue_name": "another"},
            {"_job_try": 3},
        ],
        ids=str,
    )
    async def test_leaves_what_arq_leaves(self, arq: ArqRedis, redis: RedisRoles, options: dict[str, Any]) -> None:
        found = []
        for pool in (arq, queue.pool):
            job = await pool.enqueue_job("work", 1, "grün", _job_id="id", name={"a": [None, True]}, **options)
            assert job is not None
            assert (job.job_id, job._queue_name) == ("id", options.get("_queue_name", "arq:queue"))
            now = time.time() * 1000
            assert await redis.queue.type("arq:job:id") == b"string"
            definition = json.loads(await redis.queue.get("arq:job:id") or b"")
            names = sorted(await redis.queue.keys())
            start = await redis.queue.zscore(options.get("_queue_name", "arq:queue"), "id")
            times = [definition.pop("et"), start, now + await redis.queue.pttl("arq:job:id")]
            found.append((definition, names, [(moment - now) / 1000 for moment in times]))
            await redis.queue.flushdb()
        (definition, names, times), ours = found
        assert (definition, names) == ours[:2]
        assert times == pytest.approx(ours[2], abs=1)

    async def test_id_that_is_taken(self, redis: RedisRoles) -> None:
        assert await queue.pool.enqueue_job("work", _job_id="id")
        before = await redis.queue.get("arq:job:id")
        assert await queue.pool.enqueue_job("other", _job_id="id") is None
        assert await redis.queue.get("arq:job:id") == before
        await redis.queue.delete("arq:job:id", "arq:queue")
        await redis.queue.set("arq:result:id", b"{}")
        assert await queue.pool.enqueue_job("work", _job_id="id") is None
        assert await redis.queue.keys() == [b"arq:result:id"]

    async def test_one_of_many_at_once(self) -> None:
        jobs = await asyncio.gather(*(queue.pool.enqueue_job("work", number, _job_id="id") for number in range(30)))
        assert len([job for job in jobs if job is not None]) == 1

    async def test_moment_and_delay(self) -> None:
        with pytest.raises(ValueError, match="not both"):
            await queue.pool.enqueue_job("work", _defer_by=1, _defer_until=datetime.now(UTC))

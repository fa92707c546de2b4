"""The rate limiter: the number of accepted requests, the clients that share a limit, and the headers of the answers."""

import asyncio
from collections.abc import Awaitable
from typing import cast

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI

from app.api.dependencies import rate_limiter
from app.core.config import RedisRateLimiterSettings, settings
from app.core.exceptions import NotFoundError
from app.core.models import sanitize_path
from app.core.redis import RedisServer
from app.models.user import User
from tests.factories import make_user
from tests.fixtures import HeadersFor, RedisRoles, RunServer, open_client
from tests.integration.limited import DEFAULT, JOB, JOB_PATH, fields, passes, post_job
from tests.integration.own_app import build, build_without, count_statuses
from tests.specimen.main import SPECIMEN
from tests.specimen.main import app as the_app

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


class TestAnswers:
    async def test_all_that_pass_and_the_first_that_does_not(self, client: httpx.AsyncClient) -> None:
        name, period = JOB_PATH, settings.DEFAULT_RATE_LIMIT_PERIOD
        for number in range(DEFAULT):
            response = await post_job(client)
            assert response.status_code == 201
            *policy, reset = fields(response)
            assert policy == [name, DEFAULT, period, DEFAULT - number - 1]
            assert period - 60 < reset <= period
            assert "Retry-After" not in response.headers
        refused = await post_job(client)
        assert refused.status_code == 429
        assert refused.json() == {"detail": "Rate limit exceeded: wait as long as the Retry-After header says"}
        *policy, reset = fields(refused)
        assert policy == [name, DEFAULT, period, 0]
        assert refused.headers["Retry-After"] == str(reset)
        assert period - 60 < reset <= period

    async def test_errors_of_a_limited_route_say_it_too(self, client: httpx.AsyncClient) -> None:
        router = APIRouter(dependencies=[Depends(rate_limiter)])

        @router.get("/missing")
        async def missing() -> None:
            raise NotFoundError

        @router.get("/broken")
        async def broken() -> None:
            raise RuntimeError

        async with open_client(build(router)) as own:
            for path, status in (("/missing", 404), ("/broken", 500)):
                response = await own.get(path)
                assert response.status_code == status
                assert fields(response)[:4] == (path[1:], DEFAULT, 3600, DEFAULT - 1)
        malformed = await client.post(JOB)
        assert malformed.status_code == 422
        assert fields(malformed)[3] == DEFAULT - 1

    async def test_routes_without_a_limit_say_nothing(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/api/v1/users")
        assert not {"ratelimit", "ratelimit-policy", "retry-after"} & set(response.headers)

    async def test_every_key_ends(self, client: httpx.AsyncClient, redis: RedisRoles) -> None:
        await post_job(client)
        (key,) = await redis.rate_limit.keys()
        assert key == b"rate_limit:api_v1_specimen_job:address:127.0.0.1"
        assert 3590 < await redis.rate_limit.ttl(key) <= 3600


class TestSharedLimits:
    async def test_each_user(self, client: httpx.AsyncClient, headers_for: HeadersFor) -> None:
        first, second = [await headers_for(await make_user()) for _ in range(2)]
        assert await passes(client, first) == DEFAULT
        assert await passes(client, second) == DEFAULT
        assert await passes(client) == DEFAULT

    async def test_a_user_from_everywhere(self, app: FastAPI, headers_for: HeadersFor, user: User) -> None:
        headers = await headers_for(user)
        async with (
            open_client(app, client=("192.0.2.1", 1)) as here,
            open_client(app, client=("192.0.2.2", 1)) as there,
        ):
            assert await passes(here, headers) == DEFAULT
            assert await passes(there, headers) == 0

    async def test_two_tokens_of_one_user(self, client: httpx.AsyncClient, headers_for: HeadersFor, user: User) -> None:
        assert await passes(client, await headers_for(user)) == DEFAULT
        assert await passes(client, await headers_for(user)) == 0

    @pytest.mark.parametrize(
        ("address", "same", "others"),
        [
            ("192.0.2.1", ["192.0.2.1", "::ffff:192.0.2.1"], ["192.0.2.2"]),
            ("2001:db8::1", ["2001:db8::2", "2001:db8:0:0:ffff::9", "2001:db8::1%eth0"], ["2001:db8:0:1::1"]),
            ("::1", ["::2"], ["127.0.0.1"]),
            ("a socket", ["another socket"], ["192.0.2.1"]),
        ],
    )
    async def test_addresses(self, app: FastAPI, address: str, same: list[str], others: list[str]) -> None:
        async with open_client(app, client=(address, 1)) as client:
            assert await passes(client) == DEFAULT
        for other in same:
            async with open_client(app, client=(other, 2)) as client:
                assert await passes(client) == 0
        for other in others:
            async with open_client(app, client=(other, 1)) as client:
                assert await passes(client) == DEFAULT

    async def test_values_in_the_path_make_no_difference(self, redis: RedisRoles) -> None:
        router = APIRouter(prefix="/shop")

        @router.get("/{name}/thing/{id}", dependencies=[Depends(rate_limiter)])
        async def thing(name: str, id: int) -> None: ...

        async with open_client(build(router)) as own:
            answers = [await own.get(f"/shop/user{number}/thing/{number}") for number in range(DEFAULT + 1)]
        assert [answer.status_code for answer in answers] == [200] * DEFAULT + [429]
        assert fields(answers[0])[0] == "shop_{name}_thing_{id}"
        assert await redis.rate_limit.keys() == [b"rate_limit:shop_{name}_thing_{id}:address:127.0.0.1"]

    async def test_each_route(self, client: httpx.AsyncClient) -> None:
        router = APIRouter(dependencies=[Depends(rate_limiter)])

        @router.get("/one")
        async def one() -> None: ...

        @router.get("/two")
        async def two() -> None: ...

        async with open_client(build(router)) as own:
            assert [(await own.get("/one")).status_code for _ in range(DEFAULT + 1)][-2:] == [200, 429]
            assert (await own.get("/two")).status_code == 200

    def test_sanitized_path(self) -> None:
        assert sanitize_path("/api/v1/specimen/job") == sanitize_path("api/v1/specimen/job/") == "api_v1_specimen_job"


class TestTokens:
    async def test_token_that_is_not_valid_is_refused_before_it_counts(
        self, client: httpx.AsyncClient, redis: RedisRoles
    ) -> None:
        response = await post_job(client, {"Authorization": "Bearer x"})
        assert response.status_code == 401
        assert await redis.rate_limit.keys() == []


class TestTime:
    @pytest.mark.parametrize("pause", [0.0, 0.5])
    async def test_never_more_than_the_limit_in_any_period(self, redis: RedisRoles, pause: float) -> None:
        """Use half the limit, pause, then send continuously over several windows; times are by the server's clock."""
        limit, period = 6, 1
        passed: list[tuple[float, float]] = []
        begin = await server_time(redis)
        while (before := await server_time(redis)) < begin + 2.25 * period or len(passed) <= 2 * limit:
            quota = await the_app.state.resources.limiter.hit("edge", limit, period)
            assert quota
            if quota.allowed:
                passed.append((before, await server_time(redis)))
            if len(passed) == limit / 2:
                await asyncio.sleep(pause)
        for (earlier, _), (_, later) in zip(passed, passed[limit:], strict=False):
            assert later - earlier >= period

    async def test_refused_requests_do_not_count(self) -> None:
        quotas = [await the_app.state.resources.limiter.hit("refused", 2, 60) for _ in range(50)]
        assert [quota.allowed for quota in quotas if quota] == [True] * 2 + [False] * 48

    async def test_reset_is_when_there_is_one_more(self, redis: RedisRoles) -> None:
        await the_app.state.resources.limiter.hit("reset", 2, 10)
        await the_app.state.resources.limiter.hit("reset", 2, 10)
        # Move both hits into the past: the log is newest first, in microseconds.
        now = await server_time(redis)
        for index, seconds in enumerate((3, 8)):
            await set_time(redis, index, now - seconds)
        quota = await the_app.state.resources.limiter.hit("reset", 2, 10)
        assert quota
        assert (quota.allowed, quota.remaining, quota.reset) == (False, 0, 2)
        await set_time(redis, 1, now - 10)
        quota = await the_app.state.resources.limiter.hit("reset", 2, 10)
        assert quota
        assert (quota.allowed, quota.remaining) == (True, 0)


async def server_time(redis: RedisRoles) -> float:
    seconds, rest = await redis.rate_limit.time()
    return float(seconds) + float(rest) / 1_000_000


async def set_time(redis: RedisRoles, index: int, seconds: float) -> None:
    await cast(Awaitable[str], redis.rate_limit.lset("rate_limit:reset", index, str(int(seconds * 1_000_000))))


# No request is refused because too many are in progress, however slow the machine is.
ALL_AT_ONCE = {"MAX_CONCURRENT_REQUESTS": "1000"}


async def test_time_until_a_connection_is_free_does_not_count_as_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands together take longer than the timeout, each of them much less."""
    monkeypatch.setattr(RedisServer, "MAX_CONNECTIONS", 1)
    server = RedisServer("rate limit")
    server.open(settings, "REDIS_RATE_LIMIT", timeout=2)

    async def wait() -> None:
        async with server.guard():
            await server.client.execute_command("BLPOP", "nothing", 0.25)  # type: ignore[no-untyped-call]

    try:
        await asyncio.gather(*(wait() for _ in range(12)))
        assert not server.is_away
    finally:
        await server.close()


class TestSeveralWorkers:
    async def test_exactly_the_limit_of_a_thousand_at_once(self, run_server: RunServer, redis: RedisRoles) -> None:
        environment = {**ALL_AT_ONCE, "DEFAULT_RATE_LIMIT_LIMIT": "100"}
        server = await run_server(app=SPECIMEN, workers=4, environment=environment)
        counts = await count_statuses(server.port, "POST", f"{JOB}?message=hello", times=1000)
        assert counts == {201: 100, 429: 900}
        assert await redis.queue.zcard("arq:queue") == 100

    async def test_overload_does_not_count_as_an_outage(
        self, run_server: RunServer, headers_for: HeadersFor, user: User
    ) -> None:
        """More requests than connections wait for each other, and all are counted."""
        environment = {**ALL_AT_ONCE, "DEFAULT_RATE_LIMIT_LIMIT": "1"}
        server = await run_server(app=SPECIMEN, environment=environment)
        counts = await count_statuses(server.port, "POST", f"{JOB}?message=hello", times=500)
        assert counts == {201: 1, 429: 499}
        assert "redis server away" not in server.output


async def test_limits_on_guessing_without_a_limiter_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    application = build_without(RedisRateLimiterSettings)
    async with application.router.lifespan_context(application):
        pass
    assert capsys.readouterr().err.count("AbuseLimitSettings without RedisRateLimiterSettings") == 1

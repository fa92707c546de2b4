"""The options of `@cache`, and their effects."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import APIKeyQuery
from pydantic import BaseModel
from redis.asyncio import Redis

from app.api.dependencies import CurrentUser, OptionalUser, SessionDep, get_current_user
from app.core.cache import CacheStore, cache, do_not_store
from app.core.cache.store import MAX_ANSWER_BYTES
from app.core.config import RedisCacheSettings, Settings, settings
from app.core.exceptions import (
    CacheIdentificationInferenceError,
    InvalidRequestError,
    NotFoundError,
    RedisUnavailableError,
)
from app.models.user import User
from scripts.servers import HOST, Valkey
from tests.fixtures import HeadersFor, LogRecords, RedisRoles, open_client
from tests.helper import wait_until
from tests.integration.own_app import build, build_with, build_without, sealed
from tests.specimen.factories import make_moth

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


class Thing(BaseModel):
    id: int
    name: str
    seen: datetime


class Runs:
    """A counter of an endpoint's runs."""

    count = 0

    def answer(self, **values: Any) -> dict[str, Any]:
        self.count += 1
        return {**values, "run": self.count}


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
async def own_store() -> AsyncIterator[CacheStore]:
    """An open cache store without endpoints."""
    async with opened(settings) as store:
        yield store


async def get(router: APIRouter, path: str) -> httpx.Response:
    async with open_client(build(router)) as client:
        return await client.get(path)


async def keys_of(redis: RedisRoles) -> set[str]:
    """Return the keys of cached answers, without the cache's internal keys."""
    return {key.decode() for key in await redis.cache.keys()} - {
        key.decode() for key in await redis.cache.keys("@cache:*")
    }


class TestGet:
    async def test_key_and_value(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache(key_prefix="sample_data", expiration=100, resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            return runs.answer(id=my_id, text="grün")

        response = await get(router, "/sample/7")
        assert response.json() == {"id": 7, "text": "grün", "run": 1}
        assert await keys_of(redis) == {"sample_data:7"}
        assert await redis.cache.get("sample_data:7") == sealed("sample_data:7", response.content)
        assert 90 < await redis.cache.ttl("sample_data:7") <= 100

    async def test_kept_for_an_hour_unless_told(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            return runs.answer()

        await get(router, "/sample/7")
        assert 3590 < await redis.cache.ttl("sample_data:7") <= 3600

    async def test_all_options_by_position(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{name}")
        @cache("sample_data", None, 50, str, None, None)
        async def sample(request: Request, name: str) -> dict[str, Any]:
            return runs.answer()

        await get(router, "/sample/a:b")
        assert await keys_of(redis) == {"sample_data:a:b"}
        assert 40 < await redis.cache.ttl("sample_data:a:b") <= 50

    async def test_prefix_is_filled_in(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/{name}/things")
        @cache("{name}_things:page_{page}:items_per_page:{items_per_page}", resource_id_name="name")
        async def things(request: Request, name: str, page: int = 1, items_per_page: int = 10) -> dict[str, Any]:
            return runs.answer(page=page)

        async with open_client(build(router)) as client:
            first = await client.get("/ann/things")
            second = await client.get("/ann/things?page=2")
            assert (await client.get("/ann/things")).content == first.content
        assert second.json() == {"page": 2, "run": 2}
        assert await keys_of(redis) == {
            "ann_things:page_1:items_per_page:10:ann",
            "ann_things:page_2:items_per_page:10:ann",
        }

    async def test_hit_serves_the_stored_bytes(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}", status_code=203)
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            return runs.answer()

        async with open_client(build(router)) as client:
            missed, hit = await client.get("/sample/7"), await client.get("/sample/7")
            await redis.cache.set("sample_data:7", sealed("sample_data:7", b'{"stored": 1}'), ex=60)
            changed = await client.get("/sample/7")
        assert runs.count == 1
        assert missed.content == hit.content
        assert changed.content == b'{"stored": 1}'
        for response in (missed, hit, changed):
            assert response.status_code == 203
            assert response.headers["content-type"] == "application/json"
            assert response.headers["content-length"] == str(len(response.content))

    @pytest.mark.parametrize("options", [{}, {"response_model": Thing}, {"response_model": None}])
    async def test_same_answer_as_without(self, options: dict[str, Any]) -> None:
        router = APIRouter()

        async def read(request: Request, thing_id: int) -> Any:
            return {"id": thing_id, "name": "né", "seen": datetime(2026, 1, 2, tzinfo=UTC), "secret": thing_id * 0.5}

        router.get("/plain/{thing_id}", **options)(read)
        router.get("/cached/{thing_id}", **options)(cache("thing", resource_id_name="thing_id")(read))
        async with open_client(build(router)) as client:
            plain, missed, hit = [await client.get(f"/{way}/7") for way in ("plain", "cached", "cached")]
        assert plain.status_code == 200
        assert missed.content == hit.content == plain.content
        assert ("secret" in plain.json()) is (options.get("response_model") is not Thing)

    async def test_answer_that_does_not_fit_its_model_is_an_error_each_time(self, redis: RedisRoles) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}", response_model=Thing)
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            return {"id": my_id}

        async with open_client(build(router)) as client:
            for _ in range(2):
                assert (await client.get("/sample/7")).status_code == 500
        assert await keys_of(redis) == set()

    async def test_error_is_not_kept(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            answer = runs.answer()
            if runs.count == 1:
                raise NotFoundError
            return answer

        async with open_client(build(router)) as client:
            assert (await client.get("/sample/7")).status_code == 404
            assert await keys_of(redis) == set()
            assert (await client.get("/sample/7")).json() == {"run": 2}

    async def test_ready_response_is_not_kept(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> Response:
            return Response(f"run {runs.answer()['run']}", media_type="text/plain")

        async with open_client(build(router)) as client:
            assert [(await client.get("/sample/7")).text for _ in range(2)] == ["run 1", "run 2"]
        assert await keys_of(redis) == set()

    async def test_answer_that_its_endpoint_does_not_store(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            do_not_store(request)
            return runs.answer()

        async with open_client(build(router)) as client:
            assert [(await client.get("/sample/7")).json() for _ in range(2)] == [{"run": 1}, {"run": 2}]
        assert await redis.cache.keys() == []

    async def test_head_shares_the_answer(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            return runs.answer()

        async with open_client(build(router)) as client:
            head, answer = await client.head("/sample/7"), await client.get("/sample/7")
        assert (head.content, head.headers["content-length"]) == (b"", str(len(answer.content)))
        assert runs.count == 1

    async def test_no_key_without_an_end(
        self, redis: RedisRoles, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        """Every key has an expiry at every moment: the checking script can run between any two other scripts."""
        endless = redis.cache.register_script("""
        local found = {}
        for _, key in ipairs(redis.call('KEYS', '*')) do
          if redis.call('PTTL', key) == -1 then found[#found + 1] = key end
        end
        return {redis.call('DBSIZE'), found}
        """)
        moths = [await make_moth(user) for _ in range(3)]
        paths = [f"{user.username}/{path}" for path in ("moths", "moths?page=2&items_per_page=1", "moths?page=9")]
        paths += [f"{user.username}/moth/{moth.id}" for moth in moths] + ["nobody/moths", f"nobody/moth/{moths[0].id}"]
        writes = [("PATCH", moths[0].id, {"title": "new"}), ("DELETE", moths[1].id, None)]
        most = 0
        for method, moth_id, body in writes * 3:
            write = client.request(method, f"/api/v1/{user.username}/moth/{moth_id}", json=body, headers=user_headers)
            storm = asyncio.gather(write, *(client.get(f"/api/v1/{path}") for path in paths * 3))
            while not storm.done():
                how_many, found = await endless()
                most = max(most, how_many)
                assert found == []
            await storm
        assert most > 5


class TestNoLeftovers:
    """An answer that is not stored leaves no lease and no index. Requests for unknown names cannot fill the server."""

    async def test_unknown_names(self, redis: RedisRoles, client: httpx.AsyncClient, user: User) -> None:
        for number in range(1, 20):
            for path in (f"/nobody{number}/moths", f"/nobody{number}/moth/1", f"/{user.username}/moth/{number}"):
                assert (await client.get(f"/api/v1{path}")).status_code == 404
        assert await redis.cache.keys() == []

    async def test_long_answers(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            return runs.answer(text="x" * (MAX_ANSWER_BYTES if my_id else 1))

        async with open_client(build(router)) as client:
            await client.get("/sample/0")
            before = await redis.cache.keys()
            assert [(await client.get("/sample/7")).json()["run"] for _ in range(2)] == [2, 3]
            assert sorted(await redis.cache.keys()) == sorted(before)
            assert (await client.get("/sample/0")).json()["run"] == 1
        assert await redis.cache.zrange("@cache:index:sample_data", 0, -1) == [b"sample_data:0"]

    async def test_expired_and_foreign_leases(self, redis: RedisRoles, own_store: CacheStore) -> None:
        assert await own_store.fetch("shelf:1", b"\x00first", 60) is None
        await redis.cache.delete("shelf:1")
        assert await own_store.fetch("shelf:1", b"\x00second", 60) is None
        await own_store.store("shelf:1", b"\x00first", b"", 60)
        assert await redis.cache.get("shelf:1") == b"\x00second"
        await own_store.store("shelf:1", b"\x00first", b"1", 60)
        await own_store.store("shelf:1", b"\x00second", b"2", 60)
        assert await own_store.fetch("shelf:1", b"\x00third", 60) == b"2"
        await redis.cache.delete("shelf:1")
        await own_store.store("shelf:1", b"\x00second", b"3", 60)
        assert await redis.cache.keys() == []


ANSWER = b'{"run":0}'
# Changes to the bytes that the service would have stored.
OTHER_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda stored: b"",
    "no seal": lambda stored: ANSWER,
    "only a seal": lambda stored: stored[len(ANSWER) :],
    "end cut off": lambda stored: stored[:-1],
    "beginning cut off": lambda stored: stored[1:],
    "longer": lambda stored: stored + b" ",
    "another number": lambda stored: stored.replace(b"0", b"3", 1),
    "of another key": lambda stored: sealed("sample_data:8", ANSWER),
    "of a service with another SECRET_KEY": lambda stored: sealed_elsewhere("sample_data:7", ANSWER),
    "like a lease": lambda stored: b"\x00",
    "like a lease, and sealed": lambda stored: sealed("sample_data:7", b"\x00"),
}


def sealed_elsewhere(key: str, answer: bytes) -> bytes:
    """Return the bytes that a service with another secret key stores."""
    store = CacheStore()
    store._seal_key = bytes(64)
    return answer + store.seal(key, answer)


class TestForeignValues:
    """A value that the service did not store under the key is a cache miss, and is replaced."""

    @pytest.fixture
    async def own(self, runs: Runs) -> AsyncIterator[httpx.AsyncClient]:
        router = APIRouter()

        @router.get("/sample/{my_id}")
        @cache("sample_data", resource_id_name="my_id")
        async def sample(request: Request, my_id: int) -> dict[str, Any]:
            return runs.answer()

        async with open_client(build(router)) as client:
            assert (await client.get("/sample/7")).json() == {"run": 1}
            yield client

    async def run(self, redis: RedisRoles, command: str) -> None:
        await redis.cache.register_script("return redis.call(unpack(ARGV))")(args=command.split())

    async def check(self, own: httpx.AsyncClient, logs: LogRecords) -> None:
        assert [(await own.get("/sample/7")).json() for _ in range(2)] == [{"run": 2}] * 2
        assert logs.records == []

    @pytest.mark.parametrize("which", OTHER_BYTES)
    async def test_other_bytes(self, own: httpx.AsyncClient, redis: RedisRoles, logs: LogRecords, which: str) -> None:
        stored = await redis.cache.get("sample_data:7")
        assert stored == sealed("sample_data:7", b'{"run":1}')
        await redis.cache.set("sample_data:7", OTHER_BYTES[which](sealed("sample_data:7", ANSWER)))
        await self.check(own, logs)
        assert await redis.cache.ttl("sample_data:7") > 0

    async def test_stored_answer_is_a_hit(self, own: httpx.AsyncClient, redis: RedisRoles, runs: Runs) -> None:
        await redis.cache.set("sample_data:7", sealed("sample_data:7", ANSWER))
        assert (await own.get("/sample/7")).json() == {"run": 0}

    @pytest.mark.parametrize("key", ["sample_data:7", "@cache:index:sample_data", "@cache:indexes"])
    @pytest.mark.parametrize("command", ["HSET {} field value", "RPUSH {} 1", "SADD {} 1", "XADD {} * field value"])
    async def test_other_types(
        self, own: httpx.AsyncClient, redis: RedisRoles, logs: LogRecords, key: str, command: str
    ) -> None:
        await redis.cache.delete(key)
        await self.run(redis, command.format(key))
        await self.check(own, logs)

    @pytest.mark.parametrize("key", ["sample_data:7", "@cache:index:sample_data", "@cache:indexes"])
    async def test_removal_meets_another_type(
        self, own: httpx.AsyncClient, own_store: CacheStore, redis: RedisRoles, logs: LogRecords, key: str
    ) -> None:
        await redis.cache.delete(key)
        await self.run(redis, f"RPUSH {key} 1")
        await own_store.remove(["sample_data:7"], ["sample_data:*"])
        await self.check(own, logs)

    async def test_many_readers_replace_it_once(self, own: httpx.AsyncClient, redis: RedisRoles, runs: Runs) -> None:
        await redis.cache.set("sample_data:7", b"damaged")
        answers = await asyncio.gather(*(own.get("/sample/7") for _ in range(50)))
        assert [answer.json() for answer in answers] == [{"run": 2}] * 50


class TestInference:
    @pytest.mark.parametrize("kind", [int, str])
    async def test_the_one_that_has_the_type(self, redis: RedisRoles, kind: type) -> None:
        router = APIRouter()

        @router.get("/{name}/{thing_id}")
        @cache("thing", resource_id_type=kind)
        async def thing(request: Request, name: str, thing_id: int, limit: int = 3) -> dict[str, Any]:
            return {}

        await get(router, "/ann/7")
        assert await keys_of(redis) == {"thing:7" if kind is int else "thing:ann"}

    def test_nothing_to_choose(self) -> None:
        async def endpoint(request: Request, name: str, width: int) -> None: ...

        with pytest.raises(CacheIdentificationInferenceError, match="endpoint: 0 parameters could be the int"):
            cache("thing")(endpoint)

    def test_more_than_one_to_choose(self) -> None:
        async def endpoint(request: Request, first: str, second: str) -> None: ...

        with pytest.raises(CacheIdentificationInferenceError, match="endpoint: 2 parameters could be the str"):
            cache("thing", resource_id_type=str)(endpoint)


async def _look_at_header(language: Annotated[str, Header()] = "en") -> str:
    return language


class TestRefused:
    @pytest.mark.parametrize(
        "extra", [{"to_invalidate_extra": {"a": "{id}"}}, {"pattern_to_invalidate_extra": ["a:*"]}]
    )
    def test_extras_on_get(self, extra: dict[str, Any]) -> None:
        router = APIRouter()

        @router.get("/sample/{id}")
        @cache("sample", **extra)
        async def sample(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="sample: to_invalidate_extra"):
            build(router)

    @pytest.mark.parametrize(
        ("options", "fault"),
        [
            ({"status_code": 204}, "an answer of status 204 has no body that could be stored"),
            ({"response_class": PlainTextResponse}, "@cache stores JSON, but the route answers with PlainTextResponse"),
        ],
    )
    def test_answers_that_are_no_json(self, options: dict[str, Any], fault: str) -> None:
        router = APIRouter()

        @router.get("/sample/{id}", **options)
        @cache("sample")
        async def sample(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match=f"sample: {fault}"):
            build(router)

    def test_answers_that_are_no_json_by_the_inclusion(self) -> None:
        router = APIRouter()

        @router.get("/sample/{id}")
        @cache("sample")
        async def sample(request: Request, id: int) -> None: ...

        def include(app: FastAPI, _: Settings) -> None:
            app.include_router(router, default_response_class=PlainTextResponse)

        with pytest.raises(
            InvalidRequestError, match="sample: @cache stores JSON, but the route answers with PlainText"
        ):
            build_with(include)

    def test_headers_that_would_be_lost(self) -> None:
        router = APIRouter()

        @router.get("/sample/{id}")
        @cache("sample")
        async def sample(request: Request, response: Response, id: int) -> None:
            response.headers["X-Sample"] = "lost"

        with pytest.raises(InvalidRequestError, match="sample: @cache does not store the headers"):
            build(router)

    def test_route_with_several_methods_counts_as_get(self) -> None:
        router = APIRouter()

        @router.api_route("/sample/{id}", methods=["PUT", "GET"])
        @cache("sample", pattern_to_invalidate_extra=["a:*"])
        async def sample(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="sample: to_invalidate_extra"):
            build(router)

    def test_cache_above_the_decorator_of_the_route(self) -> None:
        router = APIRouter()

        @cache("sample")
        @router.patch("/sample/{id}")
        async def sample(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="sample: @cache stands below the decorator of the route"):
            build(router)

    def test_plain_function(self) -> None:
        def endpoint(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="endpoint: @cache needs an `async def`"):
            cache("thing")(endpoint)  # type: ignore[arg-type]

    def test_without_brackets(self) -> None:
        async def endpoint(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="@cache takes the prefix of its keys"):
            cache(endpoint)  # type: ignore[arg-type]

    def test_text_in_place_of_patterns(self) -> None:
        async def endpoint(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="pattern_to_invalidate_extra is a list of patterns"):
            cache("thing", pattern_to_invalidate_extra="thing:*")(endpoint)

    async def test_route_that_is_added_after_the_build_stops_the_start(self) -> None:
        application = build()

        @application.get("/sample/{id}")
        @cache("sample", to_invalidate_extra={"other": "{id}"})
        async def sample(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="sample: to_invalidate_extra"):
            async with application.router.lifespan_context(application):
                pass

    async def test_extras_on_get_added_after_the_start(self) -> None:
        application = build()

        async with open_client(application) as client:

            @application.get("/sample/{id}")
            @cache("sample", pattern_to_invalidate_extra=["a:*"])
            async def sample(request: Request, id: int) -> None: ...

            assert (await client.get("/sample/7")).status_code == 500

    def test_endpoint_that_looks_at_the_caller(self) -> None:
        async def optional(request: Request, id: int, user: OptionalUser) -> None: ...
        async def required(request: Request, id: int, user: CurrentUser) -> None: ...
        async def header(request: Request, id: int, accept_language: Annotated[str, Header()] = "") -> None: ...
        async def cookie(request: Request, id: int, session: Annotated[str, Cookie()] = "") -> None: ...
        async def inner(request: Request, id: int, language: Annotated[str, Depends(_look_at_header)]) -> None: ...
        async def key(request: Request, id: int, key: Annotated[str, Depends(APIKeyQuery(name="key"))]) -> None: ...

        for endpoint in (optional, required, header, cookie, inner, key):
            router = APIRouter()
            router.get("/sample/{id}")(cache("sample", resource_id_name="id")(endpoint))
            with pytest.raises(InvalidRequestError, match=f"{endpoint.__name__}: its answer may depend on who asks"):
                build(router)

    async def test_guarded_route_may_be_cached(
        self, client: httpx.AsyncClient, headers_for: HeadersFor, user: User, runs: Runs
    ) -> None:
        router = APIRouter()

        @router.get("/sample/{id}", dependencies=[Depends(get_current_user)])
        @cache("sample")
        async def sample(request: Request, id: int) -> dict[str, Any]:
            return runs.answer()

        headers = await headers_for(user)
        async with open_client(build(router)) as own:
            assert (await own.get("/sample/7", headers=headers)).json() == {"run": 1}
            assert (await own.get("/sample/7")).status_code == 401
            assert (await own.get("/sample/7", headers=headers)).json() == {"run": 1}

    def test_without_the_request(self) -> None:
        async def endpoint(id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="endpoint: @cache needs the parameter `request: Request`"):
            cache("thing")(endpoint)

    @pytest.mark.parametrize(
        ("prefix", "extra"),
        [
            ("{nobody}_thing", {}),
            ("thing", {"to_invalidate_extra": {"{nobody}": "1"}}),
            ("thing", {"to_invalidate_extra": {"a": "{nobody}"}}),
            ("thing", {"pattern_to_invalidate_extra": ["{nobody}:*"]}),
            ("{id!r}_thing", {}),
            ("{id:03}_thing", {}),
        ],
    )
    def test_placeholder_that_is_no_parameter(self, prefix: str, extra: dict[str, Any]) -> None:
        async def endpoint(request: Request, id: int) -> None: ...

        with pytest.raises(InvalidRequestError, match="is no parameter"):
            cache(prefix, resource_id_name="id", **extra)(endpoint)


class TestInvalidation:
    """Answers of `GET /{name}/{kind}/{id}` are stored under `{name}_{kind}:{id}`."""

    @pytest.fixture
    def router(self, runs: Runs) -> APIRouter:
        router = APIRouter()

        @router.get("/{name}/{kind}/{id}")
        @cache("{name}_{kind}", resource_id_name="id")
        async def read(request: Request, name: str, kind: str, id: int) -> dict[str, Any]:
            return runs.answer()

        return router

    async def left(self, redis: RedisRoles, router: APIRouter, paths: list[str], **options: Any) -> set[str]:
        """Read the paths, run `POST /write/{name}/{id}` decorated with the options; return the remaining keys."""

        @router.post("/write/{name}/{id}")
        @cache("{name}_own", resource_id_name="id", **options)
        async def write(request: Request, name: str, id: int, db: SessionDep) -> dict[str, Any]:
            return {"written": id}

        async with open_client(build(router)) as client:
            for path in paths:
                assert (await client.get(path)).status_code == 200
            assert len(await keys_of(redis)) == len(paths)
            assert (await client.post("/write/ann/7")).json() == {"written": 7}
        return await keys_of(redis)

    async def test_own_key_only(self, redis: RedisRoles, router: APIRouter) -> None:
        left = await self.left(redis, router, ["/ann/own/7", "/ann/own/8", "/ann/own/70", "/bob/own/7"])
        assert left == {"ann_own:8", "ann_own:70", "bob_own:7"}

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    async def test_every_method_but_get(self, redis: RedisRoles, router: APIRouter, method: str) -> None:
        @router.api_route("/ann/own/{id}", methods=[method])
        @cache("ann_own")
        async def write(request: Request, id: int) -> dict[str, Any]:
            return {}

        async with open_client(build(router)) as client:
            await client.get("/ann/own/7")
            assert await keys_of(redis) == {"ann_own:7"}
            assert (await client.request(method, "/ann/own/7")).status_code == 200
        assert await keys_of(redis) == set()

    async def test_extra_keys(self, redis: RedisRoles, router: APIRouter) -> None:
        extra = {"{name}_list": "{id}", "all_list": "1"}
        paths = ["/ann/own/7", "/ann/list/7", "/all/list/1", "/ann/list/1", "/bob/list/7"]
        assert await self.left(redis, router, paths, to_invalidate_extra=extra) == {"ann_list:1", "bob_list:7"}

    async def test_pattern_matches_as_written(self, redis: RedisRoles, router: APIRouter) -> None:
        paths = ["/user_1/list/1", "/user_1/list/2", "/user_10/list/1", "/user_1/other/1", "/xuser_1/list/1"]
        left = await self.left(redis, router, paths, pattern_to_invalidate_extra=["user_1_list:*"])
        assert left == {"user_10_list:1", "user_1_other:1", "xuser_1_list:1"}

    @pytest.mark.parametrize(
        ("pattern", "left"),
        [
            ("*", set()),
            ("*_list:*", {"ann_other:1", "bob_other:12"}),
            ("{name}_*", {"bob_list:1", "bob_other:12"}),
            ("???_list:1", {"ann_other:1", "bob_other:12"}),
            ("[a-c]??_other:1", {"ann_list:1", "bob_list:1", "bob_other:12"}),
            ("bob_other:1?", {"ann_list:1", "bob_list:1", "ann_other:1"}),
            ("nobody*", {"ann_list:1", "bob_list:1", "ann_other:1", "bob_other:12"}),
        ],
    )
    async def test_general_patterns(self, redis: RedisRoles, router: APIRouter, pattern: str, left: set[str]) -> None:
        paths = ["/ann/list/1", "/bob/list/1", "/ann/other/1", "/bob/other/12"]
        assert await self.left(redis, router, paths, pattern_to_invalidate_extra=[pattern]) == left

    async def test_patterns_that_are_added_later(self, redis: RedisRoles, router: APIRouter) -> None:
        """The list is empty when the endpoint is decorated: the modules of other routes add their patterns."""
        patterns: list[str] = []

        @router.post("/write/{name}")
        @cache("{name}_own", resource_id_name="name", pattern_to_invalidate_extra=patterns)
        async def write(request: Request, name: str) -> None: ...

        patterns.append("{name}_list:*")
        async with open_client(build(router)) as client:
            for path in ("/ann/list/1", "/bob/list/1"):
                await client.get(path)
            assert (await client.post("/write/ann")).status_code == 200
        assert await keys_of(redis) == {"bob_list:1"}

    async def test_several_patterns(self, redis: RedisRoles, router: APIRouter) -> None:
        paths = ["/ann/list/1", "/ann/other/1", "/bob/list/1"]
        left = await self.left(redis, router, paths, pattern_to_invalidate_extra=["{name}_list:*", "{name}_other:*"])
        assert left == {"bob_list:1"}

    @pytest.mark.parametrize("name", ["a*b", "a?b", "a[x]b", "a\\b", "a]b", "*", "a\\", "a:b"])
    @pytest.mark.parametrize("pattern", ["{name}_list:*", "{name}*:1", "*{name}_list*"])
    async def test_values_are_not_patterns(self, redis: RedisRoles, router: APIRouter, name: str, pattern: str) -> None:
        @router.post("/write/{name}")
        @cache("{name}_own", resource_id_name="name", pattern_to_invalidate_extra=[pattern])
        async def write(request: Request, name: str) -> None: ...

        async with open_client(build(router)) as client:
            for other in (name, "axb", "ab", "aab"):
                await client.get(f"/{quote(other)}/list/1")
            assert len(await keys_of(redis)) == 4
            assert (await client.post(f"/write/{quote(name)}")).status_code == 200
        assert await keys_of(redis) == {"axb_list:1", "ab_list:1", "aab_list:1"}

    async def test_other_keys_of_the_same_server(self, redis: RedisRoles, router: APIRouter) -> None:
        others = ["ann_list:foreign", "ann_list", "session:1", "bob_list:1"]
        for key in others:
            await redis.cache.set(key, b"somebody else's", ex=60)

        @router.post("/write")
        @cache("ann_own", resource_id_name="name", pattern_to_invalidate_extra=["ann_list:*", "*"])
        async def write(request: Request, name: str = "x") -> None: ...

        async with open_client(build(router)) as client:
            await client.get("/ann/list/1")
            assert await keys_of(redis) == {*others, "ann_list:1"}
            await client.post("/write")
        assert await keys_of(redis) == set(others)

    async def test_foreign_value_under_a_key_of_ours_is_not_served(
        self, redis: RedisRoles, router: APIRouter, runs: Runs
    ) -> None:
        await redis.cache.set("ann_list:1", b'{"run": 0}', ex=60)
        async with open_client(build(router)) as client:
            assert (await client.get("/ann/list/1")).json() == {"run": 1}

    async def test_write_that_fails_removes_nothing(self, redis: RedisRoles, router: APIRouter) -> None:
        @router.post("/write/{id}")
        @cache("ann_own", pattern_to_invalidate_extra=["*"])
        async def write(request: Request, id: int, db: SessionDep) -> None:
            raise NotFoundError

        async with open_client(build(router)) as client:
            await client.get("/ann/own/7")
            assert (await client.post("/write/7")).status_code == 404
        assert await keys_of(redis) == {"ann_own:7"}

    @pytest.mark.parametrize("lost", ["@cache:indexes", "@cache:index:ann_list"])
    async def test_nothing_stale_after_a_full_server_dropped_an_index(
        self, redis: RedisRoles, router: APIRouter, runs: Runs, lost: str
    ) -> None:
        @router.post("/write")
        @cache("ann_own", resource_id_name="name", pattern_to_invalidate_extra=["*_list:*"])
        async def write(request: Request, name: str = "x") -> None: ...

        async with open_client(build(router)) as client:
            assert (await client.get("/ann/list/1")).json() == {"run": 1}
            assert await redis.cache.delete(lost) == 1
            await client.post("/write")
            assert (await client.get("/ann/list/2")).json() == {"run": 2}
            assert (await client.get("/ann/list/1")).json() == {"run": 3}
            assert (await client.get("/ann/list/1")).json() == {"run": 3}


class TestManyKeys:
    """The cost of an invalidation does not depend on the number of other keys. This test has its own server."""

    FILL = """
    for i = 1, 20000 do
      local index = '@cache:index:user' .. i .. '_moths'
      local key = 'user' .. i .. '_moths:page_1:items_per_page:10:user' .. i
      redis.call('SET', key, 'answer', 'EX', 60)
      redis.call('ZADD', index, 9999999999, key)
      redis.call('ZADD', '@cache:indexes', 9999999999, index)
      redis.call('SET', 'session:' .. i, 'somebody else\\'s')
    end
    """

    @pytest.fixture
    async def server(self, tmp_path: Path) -> AsyncIterator[Redis]:
        with Valkey(tmp_path) as valkey:
            async with Redis(host=HOST, port=valkey.port) as client:
                await client.register_script(self.FILL)()
                yield client

    @pytest.fixture
    async def store(self, server: Redis) -> AsyncIterator[CacheStore]:
        port = server.connection_pool.connection_kwargs["port"]
        indexes = await server.zrange("@cache:indexes", 0, -1, withscores=True)
        async with opened(settings.model_copy(update={"REDIS_CACHE_PORT": port, "REDIS_CACHE_DB": 0})) as store:
            await server.zadd("@cache:indexes", dict(indexes))  # the start of a process clears them
            yield store

    async def fill(self, store: CacheStore, name: str, pages: int) -> list[str]:
        keys = [f"{name}_moths:page_{page}:items_per_page:10:{name}" for page in range(pages)]
        for key in keys:
            assert await store.fetch(key, b"\x00lease", 60) is None
            await store.store(key, b"\x00lease", b"1", 60)
        return keys

    async def calls(self, server: Redis) -> dict[str, int]:
        statistics = await server.info("commandstats")
        return {name.removeprefix("cmdstat_"): values["calls"] for name, values in statistics.items()}

    @pytest.mark.parametrize("pages", [1, 100, 3000])
    async def test_one_user_s_lists(self, server: Redis, store: CacheStore, pages: int) -> None:
        keys = await self.fill(store, "ann", pages)
        before = await server.dbsize()
        await server.config_resetstat()
        await store.remove(["ann_moth_cache:1"], ["ann_moths:*"])
        calls = await self.calls(server)
        assert calls.keys() & {"scan", "keys", "zrange", "zrangebyscore"} == set()
        assert calls["evalsha"] + calls.get("eval", 0) <= 2 + pages // 500
        assert sum(calls.values()) <= 20 + pages // 100
        assert await server.exists(*keys, "@cache:index:ann_moths") == 0
        assert await server.dbsize() == before - pages - 1
        assert await server.zscore("@cache:indexes", "@cache:index:ann_moths") is None

    async def test_a_pattern_that_names_no_index(self, server: Redis, store: CacheStore) -> None:
        keys = await self.fill(store, "ann", 30)
        before = await server.dbsize()
        await server.config_resetstat()
        await store.remove([], ["a*moths:page_*"])
        assert (await self.calls(server)).keys() & {"scan", "keys"} == set()
        assert await server.exists(*keys) == 0
        assert await server.dbsize() == before - 31


class TestWithoutTheCacheGroup:
    async def test_passes_through(self, redis: RedisRoles, runs: Runs) -> None:
        router = APIRouter()

        @router.get("/sample/{id}")
        @cache("sample")
        async def sample(request: Request, id: int) -> dict[str, Any]:
            return runs.answer()

        @router.post("/sample/{id}")
        @cache("sample", to_invalidate_extra={"a": "1"}, pattern_to_invalidate_extra=["*"])
        async def write(request: Request, id: int, db: SessionDep) -> dict[str, Any]:
            return runs.answer()

        async with open_client(build_without(RedisCacheSettings, router)) as client:
            assert [(await client.get("/sample/7")).json()["run"] for _ in range(2)] == [1, 2]
            assert (await client.post("/sample/7")).json() == {"run": 3}
        assert await redis.cache.keys() == []

    async def test_removal_by_hand(self, redis: RedisRoles) -> None:
        await CacheStore().remove(["sample:7"], ["*"])
        assert await redis.cache.keys() == []


async def test_a_process_that_starts_trusts_nothing_older() -> None:
    """An earlier process may have been killed between a commit and the removal of the stored answers."""
    async with opened(settings) as old:
        assert await old.fetch("shelf:1", b"\x00lease", 60) is None
        await old.store("shelf:1", b"\x00lease", b"1", 60)
        assert await old.fetch("shelf:1", b"\x00other", 60) == b"1"
    async with opened(settings) as new:
        assert await new.fetch("shelf:1", b"\x00other", 60) is None


@asynccontextmanager
async def opened(own_settings: RedisCacheSettings) -> AsyncIterator[CacheStore]:
    """Open a cache store without endpoints, and wait until it is usable."""
    store = CacheStore()
    store.open(own_settings, settings.secret_key, settings.POSTGRES_STATEMENT_TIMEOUT)
    try:
        await wait_until(lambda: _is_usable(store))
        yield store
    finally:
        await store.close()


async def _is_usable(store: CacheStore) -> bool:
    try:
        await store.fetch("probe:1", b"\x00probe", 1)
        await store.store("probe:1", b"\x00probe", b"", 1)
    except RedisUnavailableError:
        return False
    return True


async def test_a_write_in_a_process_that_starts_removes_before_it_answers() -> None:
    """Other processes serve from the cache while a new one clears it."""
    async with opened(settings) as other:
        assert await other.fetch("shelf:1", b"\x00lease", 60) is None
        await other.store("shelf:1", b"\x00lease", b"1", 60)
        new = CacheStore()
        new.open(settings, settings.secret_key, settings.POSTGRES_STATEMENT_TIMEOUT)
        try:
            await new.remove(["shelf:1"], [])
            assert await other.fetch("shelf:1", b"\x00other", 60) is None
        finally:
            await new.close()

"""Caching by browsers and proxies: allowed for successful answers to requests without credentials only."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import StreamingResponse

from app.models.user import User
from tests.factories import PASSWORD
from tests.fixtures import HeadersFor, open_client
from tests.helper import sign_in
from tests.integration.own_app import build
from tests.specimen.factories import make_moth

API = "/api/v1"
PUBLIC = "public, max-age=60"
PRIVATE = "private, no-store"


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


def check(response: httpx.Response, status: int, cache_control: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers.get_list("cache-control") == [cache_control]
    assert "authorization" in [name.strip().lower() for name in response.headers["vary"].split(",")]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
class TestKept:
    async def test_public_answers(self, client: httpx.AsyncClient, user: User, method: str) -> None:
        moth = await make_moth(user)
        name = user.username
        for path in ("users", f"user/{name}", f"{name}/moths", f"{name}/moth/{moth.id}"):
            check(await client.request(method, f"{API}/{path}"), 200, PUBLIC)

    async def test_hit_of_the_server_cache(self, client: httpx.AsyncClient, user: User, method: str) -> None:
        for _ in range(2):
            check(await client.request(method, f"{API}/{user.username}/moths"), 200, PUBLIC)


class TestNotKept:
    async def test_answers_to_a_token(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        await make_moth(user)
        for path in ("users", f"user/{user.username}", "user/me", "user/me/", f"{user.username}/moths"):
            check(await client.get(f"{API}/{path}", headers=user_headers), 200, PRIVATE)

    @pytest.mark.parametrize(
        "headers", [{"Authorization": "Basic eDp5"}, {"Authorization": ""}, {"Cookie": "session=1"}]
    )
    async def test_answers_to_other_credentials(
        self, client: httpx.AsyncClient, user: User, headers: dict[str, str]
    ) -> None:
        check(await client.get(f"{API}/{user.username}/moths", headers=headers), 200, PRIVATE)

    async def test_signing_in(self, client: httpx.AsyncClient, user: User) -> None:
        data = {"username": user.username, "password": PASSWORD}
        check(await client.post(f"{API}/login", data=data), 200, PRIVATE)

    async def test_writes(self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]) -> None:
        body = {"title": "A title", "text": "text"}
        check(await client.post(f"{API}/{user.username}/moth", json=body, headers=user_headers), 201, PRIVATE)
        path = f"{API}/{user.username}/moth/1"
        check(await client.patch(path, json={"title": "Other"}, headers=user_headers), 200, PRIVATE)
        check(await client.delete(path, headers=user_headers), 200, PRIVATE)
        check(await client.post(f"{API}/specimen/job", params={"message": "x"}), 201, PRIVATE)

    async def test_errors(self, client: httpx.AsyncClient, headers_for: HeadersFor, user: User) -> None:
        headers = await headers_for(user)
        check(await client.get(f"{API}/user/nobody"), 404, PRIVATE)
        check(await client.get("/nowhere"), 404, PRIVATE)
        check(await client.get(f"{API}/user/me"), 401, PRIVATE)
        check(await client.get(f"{API}/drawers", headers=headers), 403, PRIVATE)
        check(await client.put(f"{API}/users"), 405, PRIVATE)
        check(await client.get(f"{API}/users?page=0"), 422, PRIVATE)
        check(await client.head(f"{API}/user/nobody"), 404, PRIVATE)
        check(await client.post(f"{API}/user", content=b"x" * 1024 * 1025), 413, PRIVATE)
        for status in [201] * 10 + [429]:
            check(await client.post(f"{API}/specimen/job", params={"message": "x"}), status, PRIVATE)

    async def test_error_that_nobody_foresaw(self, client: httpx.AsyncClient) -> None:
        router = APIRouter()

        @router.get("/broken")
        async def broken() -> None:
            raise RuntimeError

        async with open_client(build(router)) as own:
            check(await own.get("/broken"), 500, PRIVATE)

    async def test_health(self, client: httpx.AsyncClient) -> None:
        for path in ("/health", "/health/ready"):
            check(await client.get(path), 200, PRIVATE)


async def test_endpoint_has_the_last_word(client: httpx.AsyncClient) -> None:
    router = APIRouter()

    @router.get("/own")
    async def own(response: Response) -> None:
        response.headers["Cache-Control"] = "public, max-age=5"
        response.headers["Vary"] = "Accept"

    async with open_client(build(router)) as own_client:
        answer = await own_client.get("/own")
    check(answer, 200, "public, max-age=5")
    assert answer.headers.get_list("vary") == ["Accept", "Authorization"]
    assert "etag" not in answer.headers


class TestEntityTag:
    async def get(self, client: httpx.AsyncClient, path: str, known: str, method: str = "GET") -> httpx.Response:
        return await client.request(method, path, headers={"If-None-Match": known})

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_known_answer_is_not_sent_again(self, client: httpx.AsyncClient, user: User, method: str) -> None:
        for path in (f"{API}/users", f"{API}/{user.username}/moths", f"{API}/{user.username}/moths"):
            first = await client.get(path)
            tag = first.headers["etag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}', f'"a,b",W/"x" , W/{tag}', "*", " * "):
                answer = await self.get(client, path, known, method)
                check(answer, 304, PUBLIC)
                assert (answer.content, answer.headers["etag"]) == (b"", tag)
                assert "content-length" not in answer.headers
                assert "x-request-id" in answer.headers

    async def test_other_tags(self, client: httpx.AsyncClient) -> None:
        tag = (await client.get(f"{API}/users")).headers["etag"]
        for known in ('"other"', tag.strip('"'), tag[:-1], f'"{tag}"x', "", '"', "W/*", "*, *"):
            check(await self.get(client, f"{API}/users", known), 200, PUBLIC)

    async def test_two_header_lines(self, client: httpx.AsyncClient) -> None:
        tag = (await client.get(f"{API}/users")).headers["etag"]
        answer = await client.get(f"{API}/users", headers=[("If-None-Match", '"a"'), ("If-None-Match", tag)])
        assert answer.status_code == 304

    async def test_head_has_the_headers_of_get(self, client: httpx.AsyncClient, user: User) -> None:
        get, head = [await client.request(method, f"{API}/users") for method in ("GET", "HEAD")]
        assert head.content == b""
        assert int(head.headers["content-length"]) == len(get.content)
        for name in ("etag", "content-length", "content-type", "cache-control", "vary"):
            assert head.headers[name] == get.headers[name]

    async def test_changes_with_the_answer(self, client: httpx.AsyncClient, user: User) -> None:
        path = f"{API}/user/{user.username}"
        tag = (await client.get(path)).headers["etag"]
        headers = await sign_in(client, user)
        assert (await client.patch(path, json={"name": "Other Name"}, headers=headers)).status_code == 200
        answer = await self.get(client, path, tag)
        check(answer, 200, PUBLIC)
        assert answer.json()["name"] == "Other Name"
        assert answer.headers["etag"] != tag

    async def test_not_on_answers_that_are_not_kept(
        self, client: httpx.AsyncClient, user: User, user_headers: dict[str, str]
    ) -> None:
        for path, headers in (
            (f"{API}/users", user_headers),
            (f"{API}/user/me", user_headers),
            (f"{API}/user/nobody", {}),
            ("/health", {}),
        ):
            answer = await client.get(path, headers={**headers, "If-None-Match": "*"})
            assert answer.status_code in {200, 404}
            assert "etag" not in answer.headers

    async def test_streams_pass_as_they_come(self, client: httpx.AsyncClient) -> None:
        router = APIRouter()

        @router.get("/stream")
        async def stream() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                for part in (b"one ", b"two"):
                    yield part

            return StreamingResponse(parts())

        @router.get("/nothing", status_code=204)
        async def nothing() -> None:
            return None

        async with open_client(build(router)) as own:
            for path, status, content in (("/stream", 200, b"one two"), ("/nothing", 204, b"")):
                answer = await self.get(own, path, "*")
                check(answer, status, PUBLIC)
                assert answer.content == content
                assert "etag" not in answer.headers

    async def test_files_keep_their_own(self, client: httpx.AsyncClient) -> None:
        path = "/docs/assets/swagger-ui.css"
        first = await client.get(path)
        check(first, 200, PUBLIC)
        check(await self.get(client, path, first.headers["etag"]), 304, PUBLIC)

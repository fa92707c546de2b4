"""Attacks on the whole API, and constructs that the code must not have; `docs/security.md` names these tests."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.models.user import User
from tests.environment import SRC
from tests.factories import PASSWORD, make_password_reset
from tests.fixtures import Fetch, LogRecords, RedisRoles
from tests.helper import assert_unauthorized
from tests.repository import TOP
from tests.specimen.factories import make_moth

SIGN_UP = {"name": "Jane", "username": "jane", "email": "jane@example.com", "password": PASSWORD}
# Content types that a page of another origin can send without a preflight request.
SIMPLE = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
SECRET_COLUMNS = {"hashed_password", "refresh_hash", "spent_hash", "token_hash", "uuid"}


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


class TestAnswers:
    async def test_every_body_says_what_it_is(self, client: httpx.AsyncClient, app: FastAPI) -> None:
        for method, path, _ in operations(app):
            answer = await client.request(method, path.replace("{", "").replace("}", ""))
            assert not answer.content or answer.headers["content-type"] == "application/json", (method, path)
        for path in ("/docs", "/redoc"):
            assert (await client.get(path)).headers["content-type"] == "text/html; charset=utf-8"

    @pytest.mark.parametrize("name", ["</script><img src=x>", '"}],"is_superuser":true', "\u2028\u2029\u202e\r\n"])
    async def test_markup_stays_text(self, client: httpx.AsyncClient, name: str) -> None:
        assert (await client.post("/api/v1/user", json={**SIGN_UP, "name": name})).status_code == 201
        answer = await client.get("/api/v1/user/jane")
        assert answer.json()["name"] == name
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_none_has_a_secret(self, app: FastAPI) -> None:
        schemas = app.openapi()["components"]["schemas"]

        def properties(schema: Any) -> set[str]:
            if isinstance(schema, list):
                return set(chain.from_iterable(map(properties, schema)))
            if not isinstance(schema, dict):
                return set()
            if "$ref" in schema:
                return properties(schemas[schema["$ref"].rpartition("/")[2]])
            return {*schema.get("properties", ())}.union(*map(properties, schema.values()))

        for method, path, operation in operations(app):
            found = properties(operation["responses"])
            assert not found & {*SECRET_COLUMNS, "password"}, (method, path)


class TestRequestsOfAnotherSite:
    @pytest.mark.parametrize("kind", SIMPLE)
    async def test_json_under_another_name_does_nothing(
        self, client: httpx.AsyncClient, user: User, fetch: Fetch, kind: str
    ) -> None:
        await make_password_reset(user, "token")
        users, resets = 'SELECT * FROM "user"', "SELECT * FROM password_reset"
        before = [await fetch(users), await fetch(resets)]
        bodies = (
            ("user", {**SIGN_UP, "username": "other"}, 201),
            ("password/forgot", {"email": user.email}, 202),
            ("password/reset", {"token": "token", "new_password": "N3w&better"}, 200),
        )
        for path, body, _ in bodies:
            content = json.dumps(body)
            answer = await client.post(f"/api/v1/{path}", content=content, headers={"Content-Type": kind})
            assert answer.status_code == 422, path
        assert [await fetch(users), await fetch(resets)] == before
        for path, body, status in bodies:
            assert (await client.post(f"/api/v1/{path}", json=body)).status_code == status


class TestAddresses:
    @pytest.mark.parametrize("name", ["access_token", "token", "authorization"])
    async def test_token_in_the_query_is_none(
        self, client: httpx.AsyncClient, user_headers: dict[str, str], name: str
    ) -> None:
        client.cookies.clear()
        token = user_headers["Authorization"].removeprefix("Bearer ")
        assert_unauthorized(await client.get("/api/v1/user/me", params={name: token}))
        assert_unauthorized(await client.post("/api/v1/refresh", params={name: token, "refresh_token": token}))

    def test_none_takes_a_secret(self, app: FastAPI) -> None:
        for method, path, operation in operations(app):
            names = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] != "cookie"}
            assert not [name for name in names if re.search("password|secret|(?<!in_)token$", name)], (method, path)

    @pytest.mark.parametrize(
        "path", ["/.git/HEAD", "/.env", "/src/.env", "/docs/assets/", "/docs/assets/%2e%2e/%2e%2e/METADATA"]
    )
    async def test_no_file_but_those_of_the_docs(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await client.get(path)).status_code == 404


class TestCode:
    """The code has no constructs that make input dangerous; `ruff` checks these and more at each commit."""

    TREES = tuple((file, ast.parse(file.read_text())) for file in sorted((SRC / "app").rglob("*.py")))

    def found(self, kind: type[ast.AST]) -> Iterator[tuple[str, Any]]:
        for file, tree in self.TREES:
            for node in ast.walk(tree):
                if isinstance(node, kind):
                    yield file.name, node

    def test_runs_no_program_and_evaluates_no_text(self) -> None:
        names = {node.func.id for _, node in self.found(ast.Call) if isinstance(node.func, ast.Name)}
        assert "isinstance" in names
        assert not names & {"eval", "exec", "compile", "__import__"}
        attributes = {ast.unparse(node) for _, node in self.found(ast.Attribute)}
        assert "os.environ" in attributes
        assert not {name for name in attributes if re.match(r"os\.(system|popen|exec|spawn|posix_spawn)", name)}
        assert not self.imported() & {"subprocess", "pty", "ctypes", "runpy"}

    def test_reads_no_format_that_makes_objects(self) -> None:
        assert "json" in self.imported()
        assert not self.imported() & {"pickle", "marshal", "shelve", "yaml", "xml", "lxml", "dill"}

    def test_opens_no_address(self) -> None:
        """A new client for other services must be added here and, with its addresses, in `docs/security.md`."""
        assert "aiosmtplib" in self.imported()
        assert not self.imported() & {"aiohttp", "http", "httpx", "httpx2", "requests", "socket", "urllib", "urllib3"}

    def test_hashes_are_strong_and_secrets_are_no_pseudo_random_numbers(self) -> None:
        attributes = [node for _, node in self.found(ast.Attribute) if isinstance(node.value, ast.Name)]
        assert {node.attr for node in attributes if node.value.id == "hashlib"} == {"blake2b", "sha256"}
        imports = {(file, name.name) for file, node in self.found(ast.Import) for name in node.names}
        assert ("tokens.py", "secrets") in imports
        assert ("tokens.py", "random") not in imports

    def imported(self) -> set[str]:
        modules = {name.name for _, node in self.found(ast.Import) for name in node.names}
        modules |= {node.module for _, node in self.found(ast.ImportFrom) if node.module}
        return {module.partition(".")[0] for module in modules}


def test_the_image_has_no_history() -> None:
    """The builder gets no `.git` and no `.env`, and the production image copies `src` only."""
    patterns = [line for line in (TOP / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    assert not {"!.git", "!.git/", "!.*", "!**"} & {*patterns}
    assert "**/.env*" in patterns
    production = (TOP / "Dockerfile").read_text().rpartition(" AS production")[2]
    assert re.findall(r"^COPY (?!--from)(.*)$", production, re.MULTILINE) == ["src src"]


@pytest.mark.parametrize("path", ["refresh", "logout", "user", "password/forgot"])
async def test_body_of_very_many_fields_costs_one_error(client: httpx.AsyncClient, path: str) -> None:
    body = {str(number): 1 for number in range(100_000)}
    response = await client.post(f"/api/v1/{path}", json=body)
    assert response.status_code == 422
    assert [error["type"] for error in response.json()["detail"]] == ["too_many_fields"]


async def test_very_long_answers_are_not_stored(client: httpx.AsyncClient, user: User, redis: RedisRoles) -> None:
    """Every client may request pages of any size; stored long pages could fill the cache's server."""
    for _ in range(5):
        await make_moth(user, text="x" * 63206)
    page = f"/api/v1/{user.username}/moths"
    for size, stored in ((5, 0), (1, 1)):
        await redis.cache.flushdb()
        for _ in range(2):
            response = await client.get(page, params={"items_per_page": size})
            assert len(response.json()["data"]) == size
        assert await redis.cache.exists(f"{user.username}_moths:page_1:items_per_page:{size}:{user.username}") == stored


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("user", SIGN_UP, "write_user"),
        ("refresh", {"refresh_token": "a" * 75}, "refresh_access_token"),
        ("password/reset", {"token": "wrong", "new_password": "Str1ngst!"}, "reset_password"),
    ],
)
async def test_requests_without_a_token_leave_an_event_too(
    client: httpx.AsyncClient, logs: LogRecords, path: str, body: dict[str, str], name: str
) -> None:
    response = await client.post(f"/api/v1/{path}", json=body)
    [event] = logs.named(name)
    assert vars(event)["status"] == response.status_code
    assert vars(event)["who"] == response.json().get("id")

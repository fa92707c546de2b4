"""The OpenAPI document, and whether the application complies with it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from app.main import app as the_app
from tests.environment import SRC, connected
from tests.fixtures import RunProgram, RunServer
from tests.helper import get_token
from tests.operations import operations as by_name

# For other examples: CONTRACT_SEED=2 make test
SEED = os.environ.get("CONTRACT_SEED", "1")
METHODS = {"get", "post", "put", "patch", "delete"}

# The document says that a Decimal is a number or any string: valid by the document, "" is refused.
WITH_DECIMALS = """
[[operations]]
include-operation-id = "{}"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422"]
"""


def with_decimals() -> list[str]:
    """Return the names of the operations that take a Decimal, by the schema that Pydantic writes for it."""

    def is_in(schema: Any, seen: frozenset[str] = frozenset()) -> bool:
        if isinstance(schema, list):
            return any(is_in(each, seen) for each in schema)
        if not isinstance(schema, dict):
            return False
        if name := schema.get("$ref", "").rpartition("/")[2]:
            return name not in seen and is_in(the_app.openapi()["components"]["schemas"][name], seen | {name})
        alternatives = schema.get("anyOf", ())
        kinds = {each.get("type") for each in alternatives if "pattern" not in each and "format" not in each}
        return {"number", "string"} <= kinds or any(is_in(each, seen) for each in schema.values())

    return [
        name
        for name, operation in by_name().items()
        if is_in(operation.description.get("parameters")) or is_in(operation.description.get("requestBody"))
    ]


@pytest.fixture
def operations(app: FastAPI) -> dict[str, dict[str, Any]]:
    """The operations of the document by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


class TestDocument:
    def test_openapi_json_is_current(self) -> None:
        command = [sys.executable, "-m", "scripts.openapi", "--check"]
        done = subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=False)  # noqa: S603 (fixed words)
        assert done.returncode == 0, done.stderr

    def test_operation_ids_are_the_names_of_the_functions(self, app: FastAPI, operations: dict[str, Any]) -> None:
        functions = {
            f"{method} {context.path}": context.original_route.endpoint.__name__
            for context in iter_route_contexts(app.routes)
            if isinstance(context.original_route, APIRoute) and context.original_route.include_in_schema
            for method in context.methods or ()
        }
        ids = {name: operation["operationId"] for name, operation in operations.items()}
        assert len(set(ids.values())) == len(ids)
        assert set(functions.values()) <= set(ids.values())
        for name, function in functions.items():  # the second function of a name has its path added
            assert ids[name] == function or ids[name].startswith(f"{function}_"), name

    def test_every_operation_says_what_it_does_and_what_it_answers(self, operations: dict[str, Any]) -> None:
        for name, operation in operations.items():
            function = f"{operation['operationId']}() in app/api"
            assert operation.get("description"), f"{name}: give {function} a docstring"
            assert operation.get("tags"), f"{name}: give the router of {function} tags=[…]"
            for status, answer in operation["responses"].items():
                assert answer["description"], (name, status)
                if status not in {"204", "304"}:
                    assert answer["content"], (name, status)
                    for content in answer["content"].values():
                        assert content["schema"], f"{name}: give the route of {function} a response_model"

    def test_every_operation_of_the_api_documents_what_any_of_them_may_answer(self, operations: dict[str, Any]) -> None:
        for name, operation in operations.items():
            statuses = operation["responses"].keys()
            if "/api/v1/" in name:
                assert {"400", "413", "503"} <= statuses, f"{name}: include its router in app/api/v1/__init__.py"
            if "security" in operation:
                assert "401" in statuses, f"{name}: give its route responses=responses(UnauthorizedError)"
            if operation.get("parameters") or "requestBody" in operation:
                assert "422" in statuses, name

    def test_patterns_exclude_the_same_for_pydantic_and_for_clients(self) -> None:
        r"""JavaScript's `\s` has fewer characters than Pydantic's, so `[^\s]` allows a client what Pydantic refuses."""
        patterns = set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(the_app.openapi())))
        for pattern in map(json.loads, patterns):
            assert not re.search(r"\\[SWD]|\[\^[^\]]*\\[swd]", pattern), f"spell the characters out in {pattern}"

    def test_errors_have_one_form(self, operations: dict[str, Any]) -> None:
        for name, operation in operations.items():
            for status, answer in operation["responses"].items():
                if status >= "400" and name != "GET /health/ready":
                    schema = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                    assert schema == ("HTTPValidationError" if status == "422" else "ErrorMessage"), (name, status)


@pytest.mark.parametrize("identity", ["anonymous", "user", "superuser"])
async def test_schemathesis_finds_nothing(
    identity: str, database: str, run_server: RunServer, run_program: RunProgram, tmp_path: Path
) -> None:
    """Run all checks of schemathesis on a server; fuzz as the superuser only, because others mostly get 401 and 403."""
    # Limits that schemathesis never reaches.
    limits = ("DEFAULT_RATE_LIMIT_LIMIT", "LOGIN_LIMIT_PER_ADDRESS", "PASSWORD_RESET_LIMIT", "SIGN_UP_LIMIT")
    environment = {"POSTGRES_DB": database, **dict.fromkeys(limits, "1000000")}
    server = await run_server(environment=environment)
    credentials = {"AUTHORIZATION": "", "AUTHORIZATION_TO_END": ""}
    if identity != "anonymous":
        await _sign_up(server.client, database, is_superuser=identity == "superuser")
        for name in credentials:
            credentials[name] = f"Bearer {await get_token('someuser', 'Str1ngst!', server.client)}"
    phases = ["examples", "coverage", "stateful", *(["fuzzing"] if identity == "superuser" else [])]
    checks = ["--phases", ",".join(phases), "--max-examples", "3", "--seed", SEED]
    options = [*checks, "--generation-database", "none", f"{server.url}/openapi.json"]
    config = tmp_path / "schemathesis.toml"
    config.write_text("\n".join([(SRC / "schemathesis.toml").read_text(), *map(WITH_DECIMALS.format, with_decimals())]))
    program = await run_program(
        "schemathesis.cli", "--config-file", str(config), "run", *options, environment=credentials, cwd=tmp_path
    )
    assert await program.wait(300) == 0, program.output
    for phase in phases:
        assert f"✅ {phase.capitalize()}" in program.output, program.output
    refused = program.output.partition("Authentication failed")[2].partition("SUMMARY")[0]
    assert identity == "anonymous" or "GET /api/v1/user/me\n" not in refused, "the caller's session was ended"


async def _sign_up(client: httpx.AsyncClient, database: str, *, is_superuser: bool) -> None:
    body = {"name": "Some User", "username": "someuser", "email": "some@example.com", "password": "Str1ngst!"}
    response = await client.post("/api/v1/user", json=body)
    assert response.status_code == 201
    async with connected(database) as connection:
        await connection.execute('UPDATE "user" SET is_superuser = $1', is_superuser)

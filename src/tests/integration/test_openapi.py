"""The OpenAPI document, and whether the application complies with it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from tests.environment import SRC, connected
from tests.fixtures import RunProgram, RunServer
from tests.helper import _get_token

METHODS = {"get", "post", "put", "patch", "delete"}


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
            assert operation.get("description"), name
            assert operation["tags"], name
            for status, answer in operation["responses"].items():
                assert answer["description"], (name, status)
                if status != "204":
                    assert answer["content"]["application/json"]["schema"], (name, status)

    def test_every_operation_of_the_api_documents_what_any_of_them_may_answer(self, operations: dict[str, Any]) -> None:
        for name, operation in operations.items():
            statuses = operation["responses"].keys()
            if "/api/v1/" in name:
                assert {"400", "413", "503"} <= statuses, name
            if "security" in operation:
                assert "401" in statuses, name
            if operation.get("parameters") or "requestBody" in operation:
                assert "422" in statuses, name

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
    # A limit that schemathesis never reaches.
    environment = {"POSTGRES_DB": database, "DEFAULT_RATE_LIMIT_LIMIT": "1000000"}
    server = await run_server(environment=environment)
    credentials = []
    if identity != "anonymous":
        token = await _sign_up(server.client, database, is_superuser=identity == "superuser")
        credentials = ["--header", f"Authorization: Bearer {token}"]
    phases = ["examples", "coverage", "stateful", *(["fuzzing"] if identity == "superuser" else [])]
    checks = ["--checks", "all", "--phases", ",".join(phases), "--max-examples", "3", "--seed", "1"]
    options = [*checks, "--generation-database", "none", *credentials, f"{server.url}/openapi.json"]
    config = str(SRC / "schemathesis.toml")
    program = await run_program("schemathesis.cli", "--config-file", config, "run", *options, cwd=tmp_path)
    assert await program.wait(120) == 0, program.output
    for phase in phases:
        assert f"✅ {phase.capitalize()}" in program.output, program.output


async def _sign_up(client: httpx.AsyncClient, database: str, *, is_superuser: bool) -> str:
    body = {"name": "Some User", "username": "someuser", "email": "some@example.com", "password": "Str1ngst!"}
    response = await client.post("/api/v1/user", json=body)
    assert response.status_code == 201
    async with connected(database) as connection:
        await connection.execute('UPDATE "user" SET is_superuser = $1', is_superuser)
    return await _get_token("someuser", "Str1ngst!", client)

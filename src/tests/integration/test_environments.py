"""The environments local, staging and production as real processes: access to the docs, and a working service."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import httpx

from app.models.user import User
from scripts.servers import HOST, free_port
from tests.environment import SRC
from tests.factories import ADMIN_PASSWORD, PASSWORD, make_superuser
from tests.fixtures import RunningServer, RunProgram, RunServer
from tests.helper import sign_in

DOCS = ("/docs", "/redoc", "/openapi.json")
Auth = dict[str, Any]


async def check_service(server: RunningServer, user: User) -> None:
    """Check that signing in, writing and reading work."""
    client = server.client
    headers = await sign_in(client, user)
    path = f"/api/v1/user/{user.username}"
    assert (await client.patch(path, json={"name": "New Name"}, headers=headers)).status_code == 200
    assert (await client.get(path)).json()["name"] == "New Name"
    assert (await client.get("/api/v1/users")).json()["total_count"] >= 1
    assert (await client.get("/health/ready")).json()["status"] == "ready"


class Links(HTMLParser):
    """The resources that a page makes the browser load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all += [value or "" for name, value in attrs if name in {"src", "href"}]


async def check_pages(client: httpx.AsyncClient, auth: Auth) -> None:
    """Check that the pages load existing resources from this server only."""
    document = (await client.get("/openapi.json", **auth)).json()
    assert document["openapi"].startswith("3.")
    assert "/api/v1/login" in document["paths"]
    for page in ("/docs", "/redoc"):
        response = await client.get(page, **auth)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/html")
        assert "/openapi.json" in response.text
        scripts = [link for link in Links(response.text).all if not link.startswith("data:")]
        assert any(link.endswith(".js") for link in scripts)
        for link in scripts:
            assert link.startswith("/docs/assets/")
            asset = await client.get(link, **auth)
            assert asset.status_code == 200
            assert len(asset.content) > 10_000
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", response.text)


async def test_local(run_server: RunServer, user: User) -> None:
    """The service also works without a SECRET_KEY, and warns about the consequences."""
    server = await run_server(environment={"SECRET_KEY": ""})
    await check_pages(server.client, {})
    await check_service(server, user)
    await server.stop()
    assert server.output.count("SECRET_KEY is not set: tokens are valid in this process only") == 1
    assert "Application shutdown complete" in server.output
    assert "Pool" not in server.output


class TestStaging:
    async def test_docs_are_for_superusers(self, run_server: RunServer, user: User, superuser: User) -> None:
        server = await run_server(environment={"ENVIRONMENT": "staging"})
        await check_service(server, user)
        client = server.client
        tokens = {name: await sign_in(client, who) for name, who in (("user", user), ("superuser", superuser))}
        refused: list[tuple[Auth, int]] = [
            ({}, 401),
            ({"headers": {"Authorization": "Bearer forged"}}, 401),
            ({"auth": (superuser.username, "wrong")}, 401),
            ({"auth": ("nobody", ADMIN_PASSWORD)}, 401),
            ({"headers": {"Authorization": "Basic !!!"}}, 401),
            ({"headers": tokens["user"]}, 403),
            ({"auth": (user.username, PASSWORD)}, 403),
        ]
        for path in DOCS:
            for auth, status in refused:
                response = await client.get(path, **auth)
                assert response.status_code == status, (path, auth)
                assert response.json().keys() == {"detail"}
                assert ("WWW-Authenticate" in response.headers) is (status == 401)
                assert response.headers["Cache-Control"] == "private, no-store"
            # The Basic challenge makes a browser prompt for name and password.
            assert (await client.get(path)).headers["WWW-Authenticate"].startswith('Basic realm="docs"')
        for auth in (
            {"headers": tokens["superuser"]},
            {"auth": (superuser.username, ADMIN_PASSWORD)},
            {"auth": (superuser.email, ADMIN_PASSWORD)},
        ):
            await check_pages(client, auth)
        other = await make_superuser(username="other")
        response = await client.delete(f"/api/v1/user/{other.username}", headers=tokens["superuser"])
        assert response.status_code == 200
        assert (await client.get("/docs", auth=(other.username, ADMIN_PASSWORD))).status_code == 401


class TestProduction:
    async def test_no_docs_but_the_service(self, run_server: RunServer, user: User, superuser: User) -> None:
        server = await run_server(workers=2, environment={"ENVIRONMENT": "production"})
        await check_service(server, user)
        headers = await sign_in(server.client, superuser)
        paths = [*DOCS, "/docs/", "/docs/oauth2-redirect", "/docs/assets/swagger-ui.css", "/api/v1/openapi.json"]
        for path in paths:
            for auth in ({}, {"headers": headers}, {"auth": (superuser.username, ADMIN_PASSWORD)}):
                response = await server.client.get(path, **auth)
                assert (response.status_code, response.json()) == (404, {"detail": "Not Found"}), path


async def test_settings_that_are_refused(run_program: RunProgram) -> None:
    """One line names the setting without its value. `tests/unit/test_config.py` tests all refused settings."""
    refused = [
        ({"ENVIRONMENT": "production", "SECRET_KEY": ""}, "SECRET_KEY"),
        ({"ENVIRONMENT": "staging", "SECRET_KEY": "only-31-bytes-of-a-key-you-see-"}, "SECRET_KEY"),
        ({"ENVIRONMENT": "production", "SECRET_KEY": "x" * 64}, "SECRET_KEY"),
        ({"ENVIRONMENT": "prod"}, "ENVIRONMENT"),
    ]
    programs = [
        await run_program("uvicorn", "app.main:app", "--port", "1", environment=environment)
        for environment, _ in refused
    ]
    for program, (environment, name) in zip(programs, refused, strict=True):
        assert await program.wait() != 0
        assert name in program.output
        assert "Traceback" not in program.output
        assert environment.get("SECRET_KEY", "") not in program.output or not environment.get("SECRET_KEY")


def test_gunicorn_does_not_go_on_with_settings_that_are_refused() -> None:
    command = [sys.executable, "-m", "gunicorn", "app.main:app", "-k", "uvicorn.workers.UvicornWorker"]
    command += ["-w", "2", "-b", f"{HOST}:{free_port()}", "--no-control-socket"]
    environment = {**os.environ, "ENVIRONMENT": "production", "SECRET_KEY": "short"}
    done = subprocess.run(  # noqa: S603 (fixed words)
        command, cwd=SRC, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "SECRET_KEY is shorter than 32 bytes" in done.stderr

"""Run the README's instructions in a copy: every command, the first walk, and the Extending chapter."""

import ast
import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from app.core.config import PostgresSettings, RedisCacheSettings
from scripts.servers import HOST, Process, free_port
from tests.environment import SRC, connected
from tests.fixtures import Program, RedisRoles, RunningServer, RunServer, RunWorker
from tests.repository import TOP, Block, blocks_of, clone_to, section_of

README = (TOP / "README.md").read_text()
BLOCKS = blocks_of(README)

SESSIONS = 'signed_in=$(curl -s "$api/login?refresh_in_body=true" \\'
POSTS = """curl -s $api/$ADMIN_USERNAME/post -H "Authorization: Bearer $token" -H 'Content-Type: application/json' \\"""
TASK = 'task=$(curl -s -X POST "$api/tasks/task?message=hello" -H "Authorization: Bearer $token" | field id)'
TIERS = """admin() { curl -s "$@" -H "Authorization: Bearer $token" -H 'Content-Type: application/json'; }"""
LIMIT = "jane=$(curl -s $api/login -d username=jane --data-urlencode 'password=Pr1de&Prejudice' | field access_token)"

# The check of each block of shell commands, by the block's first line. Add each new block here.
SHELL = {
    "make run": "TestFirstWalk",
    "make test": "TestMake",
    "make soak": "TestMake",
    "make bench": "TestMake",
    ". src/.env": "TestFirstWalk",
    "cp .env.example src/.env": "TestFromScratch",
    "make install": "TestMake",
    "pip install poetry": "TestPoetry",
    "set -a; . ../.local/servers.env; set +a": "TestFirstWalk",
    POSTS: "TestFirstWalk",
    TASK: "TestFirstWalk",
    SESSIONS: "TestFirstWalk",
    "docker compose up": "TestDocker",
    "docker run -d -p 5432:5432 --name postgres -e POSTGRES_USER=postgres -e POSTGRES_PASSWORD=postgres postgres": (
        "TestDocker"
    ),
    "uvicorn app.main:app --reload": "TestFromScratch",
    "arq app.worker.WorkerSettings": "TestFromScratch",
    "python -m scripts.create_first_superuser": "TestFromScratch",
    "docker compose run --rm create_superuser": "TestDocker",
    'alembic revision --autogenerate -m "what changes"': "TestFromScratch",
    'alembic revision --autogenerate -m "add books"': "TestExtending",
    TIERS: "TestFirstWalk",
    LIMIT: "TestFirstWalk",
    "gunicorn app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:8000": "TestFromScratch",
    "python -m pytest": "TestMake",
    "docker compose run --rm pytest": "TestDocker",
    "python -m pytest tests/test_books.py": "TestExtending",
}

# A replacement for a missing curl, with the options that the README uses.
CURL = """\
import argparse, sys, urllib.error, urllib.parse, urllib.request
parser = argparse.ArgumentParser(prefix_chars="-", allow_abbrev=False)
parser.add_argument("url")
parser.add_argument("-s", action="store_true")
parser.add_argument("-X")
parser.add_argument("-H", action="append", default=[])
parser.add_argument("-d", action="append", default=[])
parser.add_argument("--data-urlencode", action="append", default=[])
parser.add_argument("-o")
parser.add_argument("-w", default="")
options = parser.parse_args()
pairs = [text.split("=", 1) for text in options.data_urlencode]
data = "&".join([*options.d, *(f"{name}={urllib.parse.quote(value)}" for name, value in pairs)])
request = urllib.request.Request(options.url, data.encode() or None, method=options.X)
for header in options.H:
    request.add_header(*header.split(": ", 1))
try:
    response = urllib.request.urlopen(request)
except urllib.error.HTTPError as error:
    response = error
with open(options.o or sys.stdout.fileno(), "wb", closefd=bool(options.o)) as output:
    output.write(response.read())
print(options.w.replace("%{http_code}", str(response.status)).replace("\\\\n", "\\n"), end="")
"""

# Notes its arguments; three of the checks fail.
PYTHON_THAT_FAILS = """\
#!/bin/sh
echo "$@" >> calls
case "$*" in *'ruff check'*|*'-m mypy'*|*'-m pytest'*) exit 1 ;; esac
"""


def shell(first_line: str) -> str:
    """Return the block of shell commands with this first line."""
    assert first_line in SHELL
    return next(block.text for block in BLOCKS if block.language == "sh" and block.first_line == first_line)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return clone_to(tmp_path / "clone")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH, with a replacement for curl if curl is missing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    if shutil.which("curl") is None:
        (folder / "curl.py").write_text(CURL)
        (folder / "curl").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {folder}/curl.py "$@"\n')
        (folder / "curl").chmod(0o755)
    return folder


@dataclass
class Shell:
    """A reader's shell, which finds the tests' servers only through `environment`."""

    programs: Path
    environment: dict[str, str]

    def __call__(self, script: str, cwd: Path) -> str:
        """Run a script to its end; return what it printed."""
        folders = [str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        env = {"PATH": os.pathsep.join(folders), "HOME": str(self.programs), "LANG": "C.UTF-8", **self.environment}
        command = ["/bin/sh", "-eu", "-c", script]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)  # noqa: S603 (README's)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def reader(programs: Path) -> Shell:
    return Shell(programs, {})


def servers(database: str) -> dict[str, str]:
    """Return the variables with the tests' servers and this database."""
    names = ("POSTGRES_", "REDIS_", "SECRET_KEY", "BCRYPT_COST", "ENV_FILE")
    return {key: value for key, value in os.environ.items() if key.startswith(names)} | {"POSTGRES_DB": database}


def test_every_shell_block_is_checked() -> None:
    assert {block.first_line for block in BLOCKS if block.language == "sh"} == SHELL.keys()
    assert set(SHELL.values()) <= globals().keys()


class TestFirstWalk:
    async def test_make_run_and_the_walk_by_curl(self, clone: Path, reader: Shell, tmp_path: Path) -> None:
        port = free_port()
        log = tmp_path / "run.log"
        # Skip the installation, which has already happened.
        command = [*shlex.split(shell("make run")), f"PORT={port}", "--old-file=.venv/installed"]
        with log.open("wb") as output:
            make = Process(
                [shutil.which(command[0]) or "make", *command[1:]],
                cwd=clone,
                env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
                output=output,
            )
        try:
            await asyncio.to_thread(self._wait_until_ready, make, log, port)
            await asyncio.to_thread(self._walk, clone, reader, port)
            leads_to_the_servers = shell("set -a; . ../.local/servers.env; set +a")
            assert "(head)" in reader(f"{leads_to_the_servers}\nalembic current", clone / "src")
        finally:
            await asyncio.to_thread(make.stop)
        assert "password" in log.read_text()

    def _wait_until_ready(self, make: Process, log: Path, port: int) -> None:
        deadline = time.monotonic() + 60
        while f"http://{HOST}:{port}/docs" not in log.read_text(errors="replace"):
            assert make.returncode is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.05)

    def _walk(self, clone: Path, reader: Shell, port: int) -> None:
        blocks = [shell(first_line) for first_line, test in SHELL.items() if test == "TestFirstWalk"]
        typed = [block for block in blocks if "curl" in block]
        script = "".join(f"{block}\necho {END}\n" for block in typed).replace(f"{HOST}:8000", f"{HOST}:{port}")
        printed = reader(script, clone).split(END)
        answers = {block.partition("\n")[0]: read_answers(text) for block, text in zip(typed, printed, strict=False)}
        assert answers.keys() == WALK.keys()
        for first_line, check in WALK.items():
            check(*answers[first_line])


END = "=== end of block ==="


def check_sign_in(me: Any) -> None:
    assert me["is_superuser"] is True


def check_posts(post: Any, page: Any) -> None:
    assert (post["title"], post["text"]) == ("Hello", "My first post")
    assert page["data"] == [post]


def check_task(result: Any) -> None:
    assert result == "Task hello is complete!"
    assert "prints `Task hello is complete!`" in README


def check_sessions(sessions: Any, signed_out: Any) -> None:
    assert [session["is_current"] for session in sessions["data"]] == [False, True]
    assert signed_out == 401


def check_tiers(tier: Any, limit: Any, limits: Any, jane: Any, promoted: Any) -> None:
    assert tier["name"] == "pro"
    assert limit["path"] == "api_v1_tasks_task"
    assert limit["name"] == "api_v1_tasks_task:5:3600"
    assert limits["data"] == [limit]
    assert promoted == {**jane, "tier_id": tier["id"]}


def check_limit(*statuses: Any) -> None:
    assert [*statuses] == [201] * 5 + [429]


# The check of each block of the walk, by the block's first line.
WALK: dict[str, Callable[..., None]] = {
    ". src/.env": check_sign_in,
    POSTS: check_posts,
    TASK: check_task,
    SESSIONS: check_sessions,
    TIERS: check_tiers,
    LIMIT: check_limit,
}


def read_answers(text: str) -> list[Any]:
    """Return the JSON values and the line about the task in a shell's output."""
    found: list[Any] = []
    while text := text.lstrip():
        if text.startswith("Task"):
            line, _, text = text.partition("\n")
            found.append(line)
        else:
            value, end = json.JSONDecoder().raw_decode(text)
            found.append(value)
            text = text[end:]
    return found


class TestMake:
    def test_targets(self, clone: Path, reader: Shell) -> None:
        def commands(target: str, *options: str) -> str:
            return reader(shlex.join(["make", "--dry-run", target, *options]), clone)

        (clone / ".venv").unlink()
        installing, activating = shell("make install").splitlines()
        assert "pip install --quiet --require-hashes" in commands(installing.removeprefix("make "))
        (clone / ".venv").symlink_to(sys.prefix)
        assert Path(reader(f"{activating}\nprintf %s $VIRTUAL_ENV", clone)).samefile(sys.prefix)
        assert shell("python -m pytest").removeprefix("python ").strip() in commands("test", "-o.venv/installed")
        assert "-m soak 60" in commands(shell("make soak").split()[1], "SECONDS=60", "-o.venv/installed")
        assert "-m bench --rounds 3 me" in commands(
            shell("make bench").split()[1], "ARGS=--rounds 3 me", "-o.venv/installed"
        )
        assert "-m scripts.canary lowest" in commands("canary", "ARGS=lowest", "-o.venv/installed")
        assert re.search(r"scripts\.dev --port 8001\b", commands("run", "PORT=8001", "-o.venv/installed"))
        (clone / ".venv").unlink()
        assert "python3.13 -m venv" in commands("run", "PYTHON=python3.13")

    def test_check_goes_on_after_a_failure_and_lists_all_at_the_end(self, clone: Path) -> None:
        (clone / ".venv").unlink()
        python = clone / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON_THAT_FAILS)
        python.chmod(0o755)
        (clone / ".venv" / "installed").touch()
        done = subprocess.run(["make", "check"], cwd=clone, capture_output=True, text=True, check=False)  # noqa: S607
        assert done.returncode == 2, done.stderr
        assert "make check failed in: style types test\n" in done.stderr
        calls = (clone / "src" / "calls").read_text()
        assert re.findall(r"^-m (?:ruff )?(\w+)", calls, re.MULTILINE) == [
            *("format", "check", "mypy", "uv", "uv", "scripts", "scripts", "scripts", "pytest", "soak")
        ]

    def test_help_lists_the_targets_of_the_readme(self, clone: Path, reader: Shell) -> None:
        printed = reader("make help", clone)
        for target in set(re.findall(r"`make ([a-z]+)", README)):
            assert f"make {target}" in printed


class TestPoetry:
    def test_poetry_2_can_install_the_project(self) -> None:
        assert shell("pip install poetry").splitlines() == ["pip install poetry", "poetry install"]
        project = tomllib.loads((SRC / "pyproject.toml").read_text())
        assert project["tool"]["poetry"] == {"package-mode": False}
        assert {"name", "version", "requires-python", "dependencies"} <= project["project"].keys()
        assert "dev" in project["dependency-groups"]


class TestDocker:
    def test_compose_commands_name_services(self) -> None:
        compose = yaml.safe_load((TOP / "docker-compose.yml").read_text())
        commands = re.findall(r"^docker compose (.*)$", README, re.MULTILINE)
        assert commands
        for command in commands:
            if command != "up":
                service = command.removeprefix("run --rm ")
                assert compose["services"][service]["profiles"], command
        started = {name for name, service in compose["services"].items() if not service.get("profiles")}
        assert started == {"web", "worker", "db", "redis"}

    def test_containers_of_servers_match_the_settings(self) -> None:
        postgres, redis = map(
            shlex.split, shell(next(line for line in SHELL if line.startswith("docker run"))).splitlines()
        )
        fields = PostgresSettings.model_fields
        assert f"{fields['POSTGRES_PORT'].default}:5432" in postgres
        assert f"POSTGRES_USER={fields['POSTGRES_USER'].default}" in postgres
        assert f"POSTGRES_PASSWORD={fields['POSTGRES_PASSWORD'].default.get_secret_value()}" in postgres
        assert postgres[-1] == "postgres"
        assert f"{RedisCacheSettings.model_fields['REDIS_CACHE_PORT'].default}:6379" in redis
        assert redis[-1] == "redis:alpine"


class TestFromScratch:
    async def test_scripts_migrations_and_processes(
        self,
        clone: Path,
        programs: Path,
        empty_database: str,
        run_server: RunServer,
        run_worker: RunWorker,
    ) -> None:
        src = clone / "src"
        environment = servers(empty_database)
        del environment["ENV_FILE"]
        reader = Shell(programs, environment)
        reader(shell("cp .env.example src/.env"), clone)
        scripts = shell("python -m scripts.create_first_superuser")
        created = await asyncio.to_thread(reader, scripts, src)
        assert created.splitlines() == ["Superuser admin created.", "Tier free created."]

        migrations = shell('alembic revision --autogenerate -m "what changes"')
        await asyncio.to_thread(reader, migrations, src)
        assert [*(src / "migrations" / "versions").glob("*_what_changes.py")]

        await run_worker(shell("arq app.worker.WorkerSettings").split()[1], cwd=src, environment=environment)
        development = [*shell("uvicorn app.main:app --reload").split(), "--port", "{port}"]
        await self._sign_in(await run_server(development, cwd=src, environment=environment))
        gunicorn = shell("gunicorn app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:8000").split()
        gunicorn[-1] = gunicorn[-1].replace("8000", "{port}")
        await self._sign_in(await run_server(gunicorn, cwd=src, environment=environment))

    async def _sign_in(self, server: RunningServer) -> None:
        assert (await server.client.get("/health/ready")).json()["status"] == "ready"
        form = {"username": "admin", "password": "!Ch4ng3Th1sP4ssW0rd!"}
        assert (await server.client.post("/api/v1/login", data=form)).status_code == 200


class TestExtending:
    async def test_a_new_entity(
        self,
        clone: Path,
        programs: Path,
        database: str,
        redis: RedisRoles,
        run_server: RunServer,
        run_worker: RunWorker,
    ) -> None:
        src = clone / "src"
        environment = servers(database)
        reader = Shell(programs, environment)
        chapter = [block for block in blocks_of(section_of(README, "## 5. Extending")) if block.language == "python"]
        cached = next(n for n, block in enumerate(chapter) if "app.core.cache" in block.text)

        for block in filter(has_file, chapter[:cached]):
            type_in(block, clone)
        reserve_usernames(src)
        revision, upgrade = shell('alembic revision --autogenerate -m "add books"').splitlines()
        await asyncio.to_thread(reader, revision, src)
        (migration,) = (src / "migrations" / "versions").glob("*_add_books.py")
        count_in(migration, next(block for block in chapter if "keep_row_count" in block.text))
        await asyncio.to_thread(reader, upgrade, src)
        server = await run_server(cwd=src, environment=environment)
        headers = await self._sign_up_as_superuser(server.client, database)
        await self._use_routes(server.client, headers)
        await server.stop()

        for block in filter(has_file, chapter[cached:]):
            type_in(block, clone)
        server = await run_server(cwd=src, environment=environment)
        worker = await run_worker(cwd=src, environment=environment)
        await self._use_cache(server.client, headers, redis)
        await self._use_queue(server.client, worker, redis)

        for block in filter(has_file, blocks_of(section_of(README, "## 7. Testing"))):
            type_in(block, clone)
        typed = {str(block.file).removeprefix("src/") for block in BLOCKS if has_file(block)}
        (tour,) = [block for block in chapter if "async def tour" in block.text]
        (src / "tour.py").write_text(f"{tour.text}\n\nasyncio.run(tour())\n".replace("from", "import asyncio\nfrom", 1))
        last = f"""
            python tour.py
            alembic check
            ruff check --quiet --no-cache --ignore F401,I {" ".join(sorted(typed))}
            ruff format --quiet --no-cache --check {" ".join(sorted(typed))}
            {shell("python -m pytest tests/test_books.py").strip()} -p no:cacheprovider
        """
        await asyncio.to_thread(reader, last, src)

    async def _sign_up_as_superuser(self, client: httpx.AsyncClient, database: str) -> dict[str, str]:
        body = {"name": "Emma", "username": "emma", "email": "emma@example.com", "password": "Sense&Sensibility"}
        await client.post("/api/v1/user", json=body)
        async with connected(database) as connection:
            await connection.execute('UPDATE "user" SET is_superuser = true')
        response = await client.post("/api/v1/login", data=body)
        return {"Authorization": f"Bearer {response.json()['access_token']}"}

    async def _use_routes(self, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
        emma = {"title": "Emma", "pages": 474}
        assert (await client.post("/api/v1/book", json=emma)).status_code == 401
        created = await client.post("/api/v1/book", json=emma, headers=headers)
        assert created.status_code == 201
        book = created.json()
        assert book == {"id": 1, **emma, "summary": None, "created_at": book["created_at"]}
        duplicate = await client.post("/api/v1/book", json=emma, headers=headers)
        assert (duplicate.status_code, duplicate.json()) == (409, {"detail": "Title already taken"})
        assert (await client.get("/api/v1/book/1")).json() == book
        assert (await client.get("/api/v1/book/2")).json() == {"detail": "Book not found"}
        (example,) = [block for block in BLOCKS if block.language == "json"]
        page = (await client.get("/api/v1/books")).json()
        assert page["data"] == [book]
        printed = json.loads(example.text)
        printed["data"][0]["created_at"] = book["created_at"]
        assert {**printed, "next_cursor": None} == page
        patched = await client.patch("/api/v1/book/1", json={"summary": "A match is made."}, headers=headers)
        assert patched.json() == {**book, "summary": "A match is made."}
        for wrong in ({"pages": None}, {"colour": "red"}):
            assert (await client.patch("/api/v1/book/1", json=wrong, headers=headers)).status_code == 422
        second = {"title": "Sanditon", "pages": 80}
        await client.post("/api/v1/book", json=second, headers=headers)
        first = (await client.get("/api/v1/books?items_per_page=1")).json()
        assert (first["total_count"], first["has_more"]) == (2, True)
        cursor = first["next_cursor"]
        following = (await client.get(f"/api/v1/books?cursor={cursor}")).json()["data"]
        assert [book["title"] for book in following] == ["Sanditon"]
        await client.delete(f"/api/v1/book/{following[0]['id']}", headers=headers)
        deleted = await client.delete("/api/v1/book/1", headers=headers)
        assert deleted.json() == {"message": "Book deleted"}
        assert (await client.get("/api/v1/books")).json()["total_count"] == 0

    async def _use_cache(self, client: httpx.AsyncClient, headers: dict[str, str], redis: RedisRoles) -> None:
        async def stored() -> set[bytes]:
            return {key for key in await redis.cache.keys() if not key.startswith(b"@")}

        book = (await client.post("/api/v1/book", json={"title": "Persuasion", "pages": 249}, headers=headers)).json()
        url, key = f"/api/v1/book/{book['id']}", f"book:{book['id']}"
        for _ in range(2):
            assert (await client.get(url)).json() == book
            assert (await client.get("/api/v1/books")).json()["data"] == [book]
        assert await stored() == {key.encode(), b"books:page_1:10"}
        assert json.loads(await redis.cache.get(key) or b"") == book
        assert 590 < await redis.cache.ttl(key) <= 600
        await client.patch(url, json={"pages": 250}, headers=headers)
        assert await stored() == set()
        assert (await client.get(url)).json()["pages"] == 250
        assert (await client.get("/api/v1/books")).json()["data"][0]["pages"] == 250
        await client.post("/api/v1/book", json={"title": "Lady Susan", "pages": 80}, headers=headers)
        assert await stored() == {key.encode()}
        assert (await client.get("/api/v1/books")).json()["total_count"] == 2
        await redis.cache.set(f"book_cover:{book['id']}", "…")
        await client.delete(url, headers=headers)
        assert await stored() == set()

    async def _use_queue(self, client: httpx.AsyncClient, worker: Program, redis: RedisRoles) -> None:
        queued = await client.post("/api/v1/books/count")
        assert queued.status_code == 201
        assert queued.headers["RateLimit"].startswith('"api_v1_books_count";r=9;')
        key = f"arq:result:{queued.json()['id']}"

        async def is_complete() -> bool:
            return bool(await redis.queue.exists(key))

        await worker.wait_until(is_complete, "the job was not run")
        assert json.loads(await redis.queue.get(key) or b"")["r"] == 1


def has_file(block: Block) -> bool:
    return block.file is not None


def reserve_usernames(src: Path) -> None:
    """Make the change that section 5.7 describes in words."""
    file = src / "app" / "schemas" / "user.py"
    words = re.search(r"may be called `(\w+)` or `(\w+)`", README)
    assert words
    text = file.read_text()
    assert text.count("frozenset({") == 1
    file.write_text(text.replace("frozenset({", f'frozenset({{\n    "{words[1]}", "{words[2]}",'))


def count_in(migration: Path, block: Block) -> None:
    """Make the change that section 5.7.2 describes: a line at the end of `upgrade`, one at the start of `downgrade`."""
    keep, forget = block.text.splitlines()
    upgrade, downgrade = "# ### end Alembic commands ###", "def downgrade() -> None:\n"
    text = migration.read_text().replace(upgrade, f"{upgrade}\n    {keep}", 1)
    migration.write_text(text.replace(downgrade, f"{downgrade}    {forget}\n", 1))


def type_in(block: Block, clone: Path) -> None:
    """Apply a block as a reader would: make the file, or insert each part of the block at its place."""
    assert block.file
    file = clone / block.file
    if not file.exists():
        file.write_text(block.text)
        return
    for statement in ast.parse(block.text).body:
        file.write_text(_with(file.read_text(), block.text, statement))


def _with(text: str, block: str, statement: ast.stmt) -> str:
    there = ast.parse(text).body
    functions = [node for node in there if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    new = _lines_of(block, statement)
    match statement:
        case ast.Import() | ast.ImportFrom():
            at = next(node for node in there if isinstance(node, ast.Import | ast.ImportFrom))
            return _replace(text, at.lineno, at.lineno - 1, new)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            for function in functions:
                if function.name == statement.name:
                    return _replace(text, _start(function), function.end_lineno, new)
            end = functions[-1].end_lineno or 0
            return _replace(text, end + 1, end, ["", "", *new])
        case ast.ClassDef():
            (old,) = [node for node in there if isinstance(node, ast.ClassDef) and node.name == statement.name]
            if [*map(ast.dump, statement.bases)] != [*map(ast.dump, old.bases)]:
                return _replace(text, old.lineno, old.end_lineno, new)
            for assignment in statement.body:
                for node in old.body:
                    if ast.dump(_target(node)) == ast.dump(_target(assignment)):
                        text = _replace(text, node.lineno, node.end_lineno, _lines_of(block, assignment))
            return text
        case _:  # the router goes above the last line
            end = there[-1].end_lineno or 0
            return _replace(text, end + 1, end, ["", "", *new])


def _target(node: ast.stmt) -> ast.AST:
    return node.targets[0] if isinstance(node, ast.Assign) else node


def _start(node: ast.stmt) -> int:
    nodes: list[ast.expr | ast.stmt] = [*getattr(node, "decorator_list", []), node]
    return min(first.lineno for first in nodes)


def _lines_of(text: str, node: ast.stmt) -> list[str]:
    return text.splitlines()[_start(node) - 1 : node.end_lineno]


def _replace(text: str, start: int, end: int | None, new: list[str]) -> str:
    lines = text.splitlines()
    return "\n".join([*lines[: start - 1], *new, *lines[end:], ""])

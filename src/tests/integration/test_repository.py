"""Consistency between the files of the repository."""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml  # type: ignore[import-untyped]
from dotenv import dotenv_values
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.core import exceptions
from app.core.config import DEFAULT_ADMIN_PASSWORD, Settings
from app.core.database import Base
from app.schemas.user import RESERVED_USERNAMES
from tests.environment import PEOPLE, SETTINGS, SRC
from tests.repository import TOP, project_files, section_of

README = (TOP / "README.md").read_text()
EXAMPLE = (TOP / ".env.example").read_text()
FIELDS = {
    str(alias)
    for name, field in Settings.model_fields.items()
    for alias in getattr(field.validation_alias, "choices", None) or [name]
}
# The variables of the original project. All other settings were added here.
DOCUMENTED = {
    *("APP_NAME", "APP_DESCRIPTION", "APP_VERSION", "CONTACT_NAME", "CONTACT_EMAIL", "LICENSE_NAME"),
    *("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_SERVER", "POSTGRES_PORT", "POSTGRES_DB", "SECRET_KEY"),
    *("ALGORITHM", "ACCESS_TOKEN_EXPIRE_MINUTES", "ADMIN_NAME", "ADMIN_EMAIL", "ADMIN_USERNAME"),
    *("ADMIN_PASSWORD", "REDIS_CACHE_HOST", "REDIS_CACHE_PORT", "CLIENT_CACHE_MAX_AGE", "REDIS_QUEUE_HOST"),
    *("REDIS_QUEUE_PORT", "TIER_NAME", "REDIS_RATE_LIMIT_HOST", "REDIS_RATE_LIMIT_PORT"),
    *("DEFAULT_RATE_LIMIT_LIMIT", "DEFAULT_RATE_LIMIT_PERIOD", "TEST_NAME", "TEST_EMAIL", "TEST_USERNAME"),
    *("TEST_PASSWORD", "ENVIRONMENT"),
}
# The scripts that run once, by the service of Docker Compose.
SCRIPTS = {file.stem.replace("first_", ""): file.stem for file in sorted((SRC / "scripts").glob("create_first_*.py"))}


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((TOP / "docker-compose.yml").read_text())
    return loaded


class TestFiles:
    # Written so that the pattern does not match this file.
    INDEX = re.compile(r"(pypi|pythonhosted)[.](org|python)|--(extra-)?index-url|--find-links", re.IGNORECASE)
    HOME = re.compile(r"(?<![\w/.~-])/(root|home|Users)/\w")

    def test_none_names_a_package_index_or_a_place_on_some_machine(self) -> None:
        here = str(TOP) if len(TOP.parts) > 2 else "no path"  # /code, for example, may be in a container
        found = []
        for file in project_files():
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
                if (self.INDEX.search(line) or self.HOME.search(line) or here in line) and file != Path(__file__):
                    found.append(f"{file.relative_to(TOP)}:{number}: {line.strip()[:120]}")
        assert found == []

    @pytest.mark.parametrize(
        "name",
        [
            *(".env.example", ".ci/run", ".github/workflows/ci.yml", ".pre-commit-config.yaml", "CHANGELOG.md"),
            ".github/workflows/canary.yml",
            *("CONTRIBUTING.md", "Dockerfile", "LICENSE.md", "Makefile", "README.md", "docker-compose.yml"),
            *("src/alembic.ini", "src/openapi.json", "src/pyproject.toml", "src/tests/test_user.py"),
            *("src/requirements.lock", "src/requirements-dev.lock"),
        ],
    )
    def test_promised_files_exist(self, name: str) -> None:
        assert (TOP / name).is_file()
        assert os.access(TOP / name, os.X_OK) == (name == ".ci/run")

    def test_structure_in_the_readme_is_the_real_one(self) -> None:
        tree = section_of(README, "### 5.1 Project structure")
        folders: list[str] = []
        for line in re.findall(r"^[│├└─ ]*[├└]── .*$", tree, re.MULTILINE):
            depth, rest = line.index("── ") // 4, line.split("── ")[1]
            folders[depth:] = [rest.partition("#")[0].strip()]
            path = TOP.joinpath(*folders)
            where = f"README.md:{README[: README.index(line)].count(chr(10)) + 1}"
            assert path.exists(), f"{path.relative_to(TOP)} is gone: remove {where}"

    def test_tables_in_the_readme_are_the_real_ones(self) -> None:
        above, sketch = README.split("\n### 5.2 Database model\n")[0], section_of(README, "### 5.2 Database model")
        drawing = sketch.partition("```text\n")[2].partition("```")[0]
        where = f"README.md:{(above + sketch.partition('```text')[0]).count(chr(10)) + 3}"
        missing = Base.metadata.tables.keys() - set(re.findall(r"\w+", sketch))
        added = "".join(f"    {name}\n" for name in sorted(missing))
        assert not missing, f"draw these tables, too, at {where}\n{added}"
        drawn = set(re.findall(r"(?:^|[<─] ?)([a-z_]+)(?= |$)", drawing, re.MULTILINE))
        gone = drawn - Base.metadata.tables.keys()
        assert not gone, f"remove from the sketch at {where}: {', '.join(sorted(gone))}"

    def test_errors_in_their_list_are_the_real_ones(self) -> None:
        """The list at the beginning of `app/core/exceptions.py` has each class of the module, below its base."""
        bases: list[str] = []
        listed = {}
        for line in (exceptions.__doc__ or "").splitlines():
            if found := re.match(r"([│├└─ ]*)(\w+Error)\b", line):
                depth = len(found[1]) // 4
                bases[depth:] = [found[2]]
                listed[found[2]] = bases[depth - 1] if depth else None
        classes = {
            name: each.__mro__[1].__name__ if each.__mro__[1].__module__ == exceptions.__name__ else None
            for name, each in vars(exceptions).items()
            if isinstance(each, type) and each.__module__ == exceptions.__name__
        }
        for name in classes.keys() | listed.keys():
            assert name in classes, f"{name} is gone: remove it from the list at src/app/core/exceptions.py:3"
            place = f"below {classes[name]} in" if classes[name] else "to"
            assert listed.get(name, "") == classes[name], f"add {name} {place} the list at src/app/core/exceptions.py:3"


class TestLocks:
    @pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
    def test_every_package_is_pinned_and_hashed(self, name: str) -> None:
        for entry in requirements(name):
            assert re.match(r"[a-z0-9.-]+(\[[a-z,]+\])?==[^\s;\\]+", entry), entry
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry

    def test_they_have_all_packages_of_the_project(self) -> None:
        project = tomllib.loads((SRC / "pyproject.toml").read_text())
        groups = project["dependency-groups"]
        runtime, servers = names(project["project"]["dependencies"]), names(groups["servers"])
        development = names([entry for entry in groups["dev"] if isinstance(entry, str)])
        locked, locked_dev = names(requirements("requirements.lock")), names(requirements("requirements-dev.lock"))
        assert runtime <= locked
        assert runtime | servers | development <= locked_dev
        assert locked <= locked_dev
        assert not locked & servers, "the embedded servers are no part of production"
        assert "passlib" not in locked_dev, "libpass has the same import name"

    def test_both_lock_the_same_versions(self) -> None:
        runtime, development = (
            dict(re.findall(r"^([a-z0-9.-]+)(?:\[.*?\])?==(\S+)", (SRC / name).read_text(), re.MULTILINE))
            for name in ("requirements.lock", "requirements-dev.lock")
        )
        assert runtime.items() <= development.items()


def requirements(lock: str) -> list[str]:
    """Return the entries of a lock file with their hashes."""
    text = re.sub(r"^ *#.*\n", "", (SRC / lock).read_text(), flags=re.MULTILINE)
    return re.split(r"(?<!\\)\n(?=\S)", text.strip())


def names(entries: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", entry)[0].lower().replace("_", "-") for entry in entries}


class TestWorkflows:
    FILES = tuple(sorted((TOP / ".github" / "workflows").glob("*.yml")))

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
    def test_they_have_read_access_and_pinned_actions_only(self, file: Path) -> None:
        workflow = yaml.safe_load(file.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert "permissions" not in job
            for step in job["steps"]:
                assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + "0" * 40))

    def test_canary_runs_each_week_on_the_oldest_and_the_newest_python(self) -> None:
        ci, canary = (
            yaml.safe_load((TOP / ".github" / "workflows" / name).read_text()) for name in ("ci.yml", "canary.yml")
        )
        pythons = ci["jobs"]["check"]["strategy"]["matrix"]["python"]
        assert canary["jobs"]["canary"]["strategy"]["matrix"]["python"] == [pythons[0], pythons[-1]]
        assert canary["jobs"]["canary"]["steps"][-1]["run"] == "make canary"
        assert canary[True].keys() == {"schedule", "workflow_dispatch"}  # YAML parses `on` as a boolean

    def test_image_has_the_newest_python_of_ci(self) -> None:
        ci = yaml.safe_load((TOP / ".github" / "workflows" / "ci.yml").read_text())
        newest = ci["jobs"]["check"]["strategy"]["matrix"]["python"][-1]
        images = re.findall(r"^FROM (python:\S+)", (TOP / "Dockerfile").read_text(), re.MULTILINE)
        assert set(images) == {f"python:{newest}-slim"}


class TestCompose:
    def test_services_and_profiles(self, compose: dict[str, Any]) -> None:
        services = compose["services"]
        assert services.keys() == {"web", "worker", "db", "redis", "pytest", *SCRIPTS}
        behind_a_profile = {name for name, service in services.items() if service.get("profiles")}
        assert behind_a_profile == {"pytest", *SCRIPTS}

    @pytest.mark.parametrize(
        ("service", "command"),
        [
            ("web", "uvicorn app.main:app --host 0.0.0.0 --port 8000 --reload"),
            ("worker", "arq app.worker.WorkerSettings"),
            *((name, f"python -m src.scripts.{module}") for name, module in SCRIPTS.items()),
            ("pytest", "python -m pytest"),
        ],
    )
    def test_commands(self, compose: dict[str, Any], service: str, command: str) -> None:
        assert compose["services"][service]["command"] == command

    def test_the_production_command_stands_beside_as_a_comment(self) -> None:
        command = "gunicorn app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:8000"
        assert f"# command: {command}\n" in (TOP / "docker-compose.yml").read_text()
        assert json.dumps(command.split()) in (TOP / "Dockerfile").read_text()

    @pytest.mark.parametrize("service", ["web", "worker", "db", *SCRIPTS])
    def test_src_env_is_read_where_it_exists(self, compose: dict[str, Any], service: str) -> None:
        files = compose["services"][service]["env_file"]
        assert {"path": "./src/.env", "required": False} in files
        assert all((TOP / file["path"]).is_file() for file in files if file["required"])

    @pytest.mark.parametrize("service", ["web", "worker", *SCRIPTS])
    def test_addresses_of_servers_are_those_of_the_services(self, compose: dict[str, Any], service: str) -> None:
        environment = compose["services"][service]["environment"]
        assert environment["POSTGRES_SERVER"] == "db"
        assert {environment[f"REDIS_{role}_HOST"] for role in ("CACHE", "QUEUE", "RATE_LIMIT")} == {"redis"}
        waits_for = compose["services"][service]["depends_on"]
        assert {waits_for[server]["condition"] for server in ("db", "redis")} == {"service_healthy"}
        assert environment.keys() <= FIELDS | {"ENV_FILE"}

    def test_only_the_api_is_published(self, compose: dict[str, Any]) -> None:
        published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
        assert published == {"web": ["8000:8000"]}

    def test_volumes_are_declared(self, compose: dict[str, Any]) -> None:
        used = {
            volume.partition(":")[0]
            for service in compose["services"].values()
            for volume in service.get("volumes", ())
            if not volume.startswith((".", "/"))
        }
        assert used == compose["volumes"].keys()

    def test_images_of_services_are_built_from_stages_that_exist(self, compose: dict[str, Any]) -> None:
        stages = set(re.findall(r"^FROM \S+ AS (\w[\w-]*)$", (TOP / "Dockerfile").read_text(), re.MULTILINE))
        for service in compose["services"].values():
            assert service.get("build", {}).get("target", "production") in stages


class TestDockerfile:
    TEXT = (TOP / "Dockerfile").read_text()

    def test_production_is_the_last_stage_and_installs_the_hashed_runtime_lock(self) -> None:
        stages = re.findall(r"^FROM (\S+) AS (\S+)$", self.TEXT, re.MULTILINE)
        assert stages[-1][1] == "production"
        assert re.search(r"--require-hashes -r \S*requirements\.lock", self.TEXT)

    def test_no_process_runs_as_root(self) -> None:
        for stage in self.TEXT.split("\nFROM ")[1:]:
            if "\nCMD " in stage:
                user = re.findall(r"^USER (\S+)$", stage, re.MULTILINE)
                assert user, stage
                assert user[-1] not in ("root", "0")

    def test_health_is_asked_without_a_program_that_the_image_lacks(self) -> None:
        health_check = re.search(r"HEALTHCHECK.*?\n +CMD (\[.*\])", self.TEXT)
        assert health_check
        assert json.loads(health_check[1])[0] == "python"
        assert "/health" in health_check[1]


class TestSettings:
    def test_example_has_every_documented_variable(self) -> None:
        assert len(DOCUMENTED) == 33
        assert DOCUMENTED <= FIELDS
        active = set(re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE))
        # `make run` and Docker Compose set the servers themselves unless these lines are active.
        servers = {"POSTGRES_SERVER", "REDIS_CACHE_HOST", "REDIS_QUEUE_HOST", "REDIS_RATE_LIMIT_HOST"}
        assert active == DOCUMENTED - servers

    def test_example_and_readme_have_every_setting(self) -> None:
        in_example = set(re.findall(r"^(?:# )?([A-Z_]+)=", EXAMPLE, re.MULTILINE))
        in_readme = set(re.findall(r"`([A-Z_]+)`", section_of(README, "### 3.1 Environment variables (.env)")))
        other_names = {"LICENSE"}
        assert in_example == FIELDS - other_names
        assert FIELDS - other_names <= in_readme

    def test_tests_know_every_setting(self) -> None:
        """A setting in the caller's environment or in `.env` must not affect the tests."""
        assert [name for name in FIELDS if not name.startswith((*SETTINGS, *PEOPLE))] == []

    def test_commented_settings_are_the_defaults(self) -> None:
        commented = re.findall(r"^# ([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE)
        assert commented
        for name, printed in commented:
            default = Settings.model_fields[name].default
            assert printed.strip("\"'").lower() == str("" if default is None else default).lower(), name

    def test_defaults_in_the_readme_are_the_settings_own(self) -> None:
        rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (.*?) \| ", README, re.MULTILINE)
        documented: dict[str, str | None] = {}
        for variables, defaults in rows:
            printed = re.findall(r"`([^`]*)`|(none)", defaults)
            values = [value or None for value, _ in printed]
            named = re.findall(r"[A-Z_]+", variables)
            documented |= dict(zip(named, values * (len(named) if len(values) == 1 else 1), strict=True))
        assert documented.keys() == FIELDS - {"LICENSE"}
        for name, printed_value in documented.items():
            default = Settings.model_fields[name].default
            if hasattr(default, "get_secret_value"):
                default = default.get_secret_value()
            assert (printed_value or "none").lower() == ("none" if default in (None, "") else str(default).lower()), (
                name
            )

    def test_dollar_in_the_password_survives(self) -> None:
        values = dotenv_values(TOP / ".env.example")
        assert values["TEST_PASSWORD"] == "Str1ng$t"
        assert "TEST_PASSWORD='Str1ng$t'\n" in EXAMPLE  # Docker Compose expands variables unless the quotes are single

    @pytest.mark.usefixtures("no_settings")
    def test_example_is_accepted_as_it_is(self) -> None:
        settings = Settings(_env_file=TOP / ".env.example")
        assert settings.APP_NAME == "FastAPI app"
        assert settings.ADMIN_PASSWORD.get_secret_value() == DEFAULT_ADMIN_PASSWORD


class TestPages:
    PAGES = tuple(file for file in project_files() if file.suffix.lower() == ".md")

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
    def test_every_link_leads_somewhere(self, page: Path) -> None:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()]", "", code[0]), text)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                assert re.match(r"https?://[\w.-]+\.\w+(/|$)", link), link
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link

    def test_contents_are_the_headings_in_their_order(self) -> None:
        contents = re.findall(r"\(#(\S+)\)$", section_of(README, "## 2. Contents"), re.MULTILINE)
        text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
        assert contents == [anchor_of(heading) for heading in re.findall(r"^##+ (.*)$", text, re.MULTILINE)]

    def test_every_decision_is_listed(self) -> None:
        folder = TOP / "docs" / "decisions"
        pages = sorted(file.name for file in folder.glob("0*.md"))
        assert [name[:4] for name in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
        assert re.findall(r"\]\((0\S+)\)", (folder / "README.md").read_text()) == pages
        for name in pages:
            headings = re.findall(r"^## (.*)$", (folder / name).read_text(), re.MULTILINE)
            assert headings == ["Context", "Decision", "Consequences", "What enforces it"], name

    def test_files_that_decisions_name_exist(self) -> None:
        for page in (TOP / "docs" / "decisions").glob("*.md"):
            for path in re.findall(r"`((?:src|docs|\.github)/[\w/.-]+)`", page.read_text()):
                assert (TOP / path).exists(), f"{page.name}: {path}"


def anchors(page: str) -> set[str]:
    return {anchor_of(heading) for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub generates for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class TestUsernames:
    def test_no_username_hides_a_route(self, app: FastAPI) -> None:
        paths = [str(context.path) for context in iter_route_contexts(app.routes)]
        first = {path.removeprefix("/api/v1").split("/")[1] for path in paths}
        words = {word.partition(".")[0] for word in first if not word.startswith("{")} | {"me"}
        assert {"user", "docs", "health"} <= words
        possible = {word for word in words if re.fullmatch(r"[a-z0-9]{2,20}", word)}
        missing = ", ".join(f'"{word}"' for word in sorted(possible - RESERVED_USERNAMES))
        lines = (SRC / "app" / "schemas" / "user.py").read_text().splitlines()
        line = next(number for number, text in enumerate(lines, 1) if text.startswith("RESERVED_USERNAMES"))
        assert not missing, (
            f"a user with this name would hide a route: add at src/app/schemas/user.py:{line + 1}\n    {missing},\n"
        )

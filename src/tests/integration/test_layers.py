"""The optional packages `app/domain` and `app/services`, made in a copy: import-linter allows what the README says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import SRC

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
ALLOWED = {
    "domain/shelf.py": "import app.core.exceptions",
    "models/shelf.py": "import app.domain.shelf",
    "schemas/shelf.py": "import app.domain.shelf",
    "crud/crud_shelves.py": "import app.domain.shelf, app.models.shelf",
    "services/shelves.py": "import app.core.database, app.crud.crud_shelves, app.domain.shelf, app.schemas.shelf",
    "api/v1/shelves.py": "import app.crud.crud_shelves, app.domain.shelf, app.services.shelves",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(SRC / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__", "logs"))
    shutil.copy(SRC / "pyproject.toml", tmp_path)
    for package in ("domain", "services"):
        folder = tmp_path / "app" / package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    for name, text in ALLOWED.items():
        (tmp_path / "app" / name).write_text(f"{text}\n")
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", LINT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 (fixed words)
    return done.returncode, done.stdout + done.stderr


def test_both_have_their_place(copy: Path) -> None:
    status, output = lint(copy)
    assert status == 0, output
    assert "0 broken" in output


def test_no_lower_one_imports_a_higher_one(copy: Path) -> None:
    refused = [
        ("domain/shelf.py", "app.models.shelf"),
        ("domain/notes.py", "app.schemas.shelf"),
        ("models/notes.py", "app.services.shelves"),
        ("crud/crud_notes.py", "app.services.shelves"),
        ("services/notes.py", "app.api.v1.shelves"),
    ]
    for name in ALLOWED:  # no cycles
        (copy / "app" / name).write_text("")
    for name, imported in refused:
        (copy / "app" / name).write_text(f"import {imported}\n")
    status, output = lint(copy)
    assert status == 1, output
    for name, imported in refused:
        importer = "app." + name.removesuffix(".py").replace("/", ".")
        assert f"{importer} -> {imported}" in output

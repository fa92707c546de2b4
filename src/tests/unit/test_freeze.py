"""`make freeze` and the check of frozen migrations, on a copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import SRC


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SRC / "scripts" / "freeze.py", tmp_path / "scripts")
    shutil.copytree(SRC / "migrations", tmp_path / "migrations")
    return tmp_path


def run(src: Path, *arguments: str) -> list[str]:
    """Run the script; return the lines that it prints, each of which is a fault."""
    command = [sys.executable, str(src / "scripts" / "freeze.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (fixed words)
    assert done.stdout == ""
    assert done.returncode == bool(done.stderr)
    return done.stderr.splitlines()


def migration(src: Path) -> Path:
    return min((src / "migrations" / "versions").glob("*.py"))


def test_migrations_of_the_project_are_frozen(src: Path) -> None:
    assert run(src, "--check") == []


def test_new_migration_is_frozen_by_the_command_that_the_check_names(src: Path) -> None:
    (src / "migrations" / "versions" / "new.py").write_text("revision = 'new'\n")
    assert run(src, "--check") == ["src/migrations/versions/new.py is new: make freeze"]
    assert run(src) == []
    assert run(src, "--check") == []


@pytest.mark.parametrize("kind", ["migration", "sql"])
def test_frozen_migration_cannot_change(src: Path, kind: str) -> None:
    file = migration(src) if kind == "migration" else src / "migrations" / "row_count.sql"
    file.write_text(file.read_text() + "\n")
    for arguments in ([], ["--check"]):
        (fault,) = run(src, *arguments)
        assert fault.startswith(f"src/migrations/{file.relative_to(src / 'migrations')} is frozen, but was changed: ")


def test_frozen_migration_cannot_be_removed(src: Path) -> None:
    file = migration(src)
    file.unlink()
    (fault,) = run(src, "--check")
    assert f"{file.name} is frozen, but was removed: " in fault


def test_line_deleted_by_hand_lets_a_migration_change(src: Path) -> None:
    """The deletion shows in a review, where `make freeze` alone would not."""
    file, frozen = migration(src), src / "migrations" / "frozen.sha256"
    file.write_text(file.read_text() + "\n")
    frozen.write_text("".join(line for line in frozen.read_text().splitlines(keepends=True) if file.name not in line))
    assert run(src) == []
    assert run(src, "--check") == []

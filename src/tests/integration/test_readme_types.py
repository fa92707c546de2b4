"""Every Python block of the README passes mypy strict as it stands, at each stage of the Extending chapter."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.environment import SRC
from tests.integration.test_readme import has_file, type_in
from tests.repository import TOP, blocks_of

README = (TOP / "README.md").read_text()
# The names that statements in the text take for granted. Add those of a new one here.
NAMES = """
import arq
from functools import partial
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import queue
from app.core.cache import store_of
from app.core.database import on_commit
from app.core.queue import ArqJob
from app.models.book import Book


async def line(request: Request, db: AsyncSession, row: Book, author: Book, task_id: str) -> None:
    """


def statements_in_the_text() -> list[str]:
    """Return the code between backticks that is a whole statement."""
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    found = []
    for code in re.findall(r"`((?:on_commit\(|await |raise )[^`]+)`", text):
        statement = " ".join(code.split())
        if "…" not in statement:
            ast.parse(f"async def f():\n    {statement}")
            found.append(statement)
    return found


def type_in_all(clone: Path) -> list[str]:
    """Type in each block; keep each stage of a file that several blocks change. Return the files to check."""
    files = []
    for number, block in enumerate(block for block in blocks_of(README) if block.language == "python"):
        if has_file(block):
            type_in(block, clone)
            file = clone / str(block.file)
            files.append(file)
            if file.stem != "__init__":
                files.append(Path(shutil.copy(file, file.with_stem(f"{file.stem}_{number}"))))
        else:
            files.append(clone / "src" / f"block_{number}.py")
            before = "from alembic import op\n\n" if block.text.startswith("op.") else ""
            files[-1].write_text(before + block.text)
    return sorted({str(file.relative_to(clone / "src")) for file in files})


def test_all(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "logs")
    shutil.copytree(SRC / "app", tmp_path / "src" / "app", ignore=ignored)
    (tmp_path / "src" / "tests").mkdir()
    shutil.copy(SRC / "pyproject.toml", tmp_path / "src")
    files = type_in_all(tmp_path)
    lines = statements_in_the_text()
    assert any(line.startswith("on_commit(") for line in lines)
    for number, line in enumerate(lines):
        files.append(f"line_{number}.py")
        (tmp_path / "src" / files[-1]).write_text(f"{NAMES.rstrip()}\n    {line}\n")
    # The cache of `make types` has the libraries.
    cache = SRC / ".mypy_cache"
    if cache.exists():
        shutil.copytree(cache, tmp_path / "cache")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), *files]
    done = subprocess.run(command, cwd=tmp_path / "src", capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no issues found in {len(files)} source files" in done.stdout

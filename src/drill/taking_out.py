"""Take posts, tiers and tasks out of copies of the clone, as docs/taking-out.md says; `make check` must be green there.

`TAKE_OUT=posts,tiers` in the environment takes these out together, and nothing else.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.repository import TOP, blocks_of, project_files, section_of

PAGE = TOP / "docs" / "taking-out.md"
SECTIONS = {"posts": "## Posts", "tiers": "## Tiers and rate limits", "tasks": "## Tasks"}
AFTERWARDS = "## Afterwards"


class TakingOutError(Exception):
    pass


def main() -> None:
    chosen = os.environ.get("TAKE_OUT")
    for names in [chosen.split(",")] if chosen else [*([name] for name in SECTIONS), [*SECTIONS]]:
        with tempfile.TemporaryDirectory(prefix="taking-out-") as folder:
            top = Path(folder) / "clone"
            copy(top)
            print(f"taking out {', '.join(names)}", flush=True)
            take_out(top, names)
            run(top, "make check")


def copy(top: Path) -> None:
    """Copy the repository as git would clone it, with this interpreter's packages in its `.venv`."""
    for file in project_files():
        target = top / file.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    (top / ".venv").symlink_to(sys.prefix)


def take_out(top: Path, names: Sequence[str]) -> None:
    """Do what the page says, block by block."""
    page = PAGE.read_text()
    for heading in [*(SECTIONS[name] for name in names), AFTERWARDS]:
        for block in blocks_of(section_of(page, heading)):
            if block.language == "sh":
                run(top, block.text)
            else:
                file, _, change = block.text.partition("\n")
                edit(top / file.removeprefix("# "), change)


def run(top: Path, script: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(["/bin/sh", "-eu", "-c", script], cwd=top, env=environment, check=True)


def edit(file: Path, change: str) -> None:
    """Change each hunk of a diff; `@@` stands between two. Its old lines must be in the file once."""
    text = file.read_text()
    for hunk in re.split(r"^@@.*\n", change, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
        new = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
        if (found := f"\n{text}".count(f"\n{old}")) != 1:
            raise TakingOutError(f"{file}: {found} places for\n{hunk}")
        text = f"\n{text}".replace(f"\n{old}", f"\n{new}", 1)[1:]
    file.write_text(text)

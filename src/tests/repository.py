"""The repository as files, and the parts of its pages."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.environment import SRC

TOP = SRC.parent
_NOT_OURS = re.compile(r"\.git|\.hypothesis|\.local|\.venv(-.*)?|__pycache__|logs|.*_cache")


def project_files() -> list[Path]:
    """Return the files that git tracks or would add; without git, all files except known generated ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=TOP, capture_output=True, check=True, text=True)  # noqa: S603 (fixed words)
        files = [TOP / name for name in listed.stdout.split("\0") if name]
    except (FileNotFoundError, subprocess.CalledProcessError):
        files = [
            file
            for file in TOP.rglob("*")
            if not any(map(_NOT_OURS.fullmatch, file.relative_to(TOP).parts))
            and (file.name != ".env" and not file.name.endswith(".pyc"))
        ]
    return sorted(file for file in files if file.is_file())


def clone_to(top: Path) -> Path:
    """Copy the repository as git would clone it, with this interpreter's packages in its `.venv`."""
    for file in project_files():
        target = top / file.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    (top / ".venv").symlink_to(sys.prefix)
    return top


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; its first line may be a comment with the path of its file."""

    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def file(self) -> str | None:
        named = re.fullmatch(r"# (src/\S+)", self.first_line)
        return named[1] if named else None


def blocks_of(page: str) -> list[Block]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in fences]


def section_of(page: str, heading: str) -> str:
    """Return the part of a page below a heading, up to the next heading of the same level."""
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^{level} |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]

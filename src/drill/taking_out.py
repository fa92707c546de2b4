"""Take posts, tiers and tasks out of copies of the clone, as docs/taking-out.md says.

Each by itself must leave the checks of the code and the migrations green, all together `make check`. `TAKE_OUT=posts`
or `TAKE_OUT=posts,tiers` in the environment takes these out, and runs `make check` there.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.repository import TOP, blocks_of, clone_to, section_of

PAGE = TOP / "docs" / "taking-out.md"
QUICK_CHECKS = "make format-check style imports types openapi-check freeze-check migrations"
SECTIONS = {"posts": "## Posts", "tiers": "## Tiers and rate limits", "tasks": "## Tasks"}


class TakingOutError(Exception):
    pass


def main() -> None:
    chosen = os.environ.get("TAKE_OUT")
    for names in [chosen.split(",")] if chosen else [*([name] for name in SECTIONS), [*SECTIONS]]:
        with tempfile.TemporaryDirectory(prefix="taking-out-") as folder:
            top = clone_to(Path(folder) / "clone")
            print(f"taking out {', '.join(names)}", flush=True)
            take_out(top, names)
            run(top, "make check" if chosen or len(names) > 1 else QUICK_CHECKS)


def take_out(top: Path, names: Sequence[str]) -> None:
    """Follow the page, block by block; a change that two chapters name in the same words is made once."""
    page, done = PAGE.read_text(), set[tuple[str, str]]()
    for name in names:
        for block in blocks_of(section_of(page, SECTIONS[name])):
            if block.language == "sh":
                run(top, block.text)
                continue
            first_line, _, changes = block.text.partition("\n")
            [file] = top.glob(first_line.removeprefix("# "))
            for change in re.split(r"^@@.*\n", changes, flags=re.MULTILINE):
                if (first_line, change) not in done:
                    edit(file, change)
                    done.add((first_line, change))


def run(top: Path, script: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(["/bin/sh", "-eu", "-c", script], cwd=top, env=environment, check=True)


def edit(file: Path, change: str) -> None:
    """Replace the old lines of a diff, which must be in the file once, by the new ones; `-…` is any number of lines."""
    text, lines = file.read_text(), change.splitlines(keepends=True)
    old = ["(?:.*\n)*?" if line == "-…\n" else re.escape(line[1:] or "\n") for line in lines if line[0] != "+"]
    new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
    pattern = re.compile(f"^{''.join(old)}", re.MULTILINE)
    if (places := len(pattern.findall(text))) != 1:
        raise TakingOutError(f"{PAGE.name} names lines that are in {places} places of {file}:\n{change}")
    file.write_text(pattern.sub(lambda _: new, text))

"""What the README says or shows passes the linter, and so do public names that begin with an underscore."""

import ast
import re
import subprocess
import sys

from tests.environment import SRC

RUFF = [sys.executable, "-m", "ruff"]


def ruff(*options: str, file: str, text: str) -> str:
    """Give ruff a text as the content of a file of the project; return its output, empty without a finding."""
    command = [*RUFF, *options, "--no-cache", "--stdin-filename", file, "-"]
    done = subprocess.run(command, cwd=SRC, input=text, capture_output=True, text=True, check=False)  # noqa: S603
    return "" if done.returncode == 0 else done.stdout + done.stderr


def check(file: str, text: str) -> str:
    return ruff("check", "--quiet", file=file, text=text) + ruff("format", "--check", "--quiet", file=file, text=text)


def test_reserved_usernames_take_more_words() -> None:
    file = "app/schemas/user.py"
    text = (SRC / file).read_text()
    assert check(file, text) == ""
    words = re.search(r"RESERVED_USERNAMES = frozenset\(\{\n(.*?)\}\)", text, re.DOTALL)
    assert words
    for place in re.finditer(r' "', words[0]):
        added = words[0][: place.start()] + ' "book", "books",' + words[0][place.start() :]
        assert check(file, text.replace(words[0], added)) == "", added


def test_names_that_sqlalchemy_documents_for_rows() -> None:
    source = "from typing import Any\n\nfrom sqlalchemy import Row\n\n\ndef f(row: Row[Any]) -> Any:\n    return {}\n"
    allowed = "row._mapping, row._asdict(), row._fields, row._tuple(), row._t"
    assert check("app/crud/rows.py", source.format(allowed)) == ""
    assert "SLF001" in check("app/crud/rows.py", source.format("row._data"))


def test_example_to_copy_imports_nothing_private() -> None:
    tree = ast.parse((SRC / "tests" / "test_user.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    assert "get_token" in names
    assert [name for name in names if name.startswith("_")] == []

"""`docs/security.md` covers every requirement and names existing tests only."""

import ast
import re

import pytest

from tests.environment import SRC
from tests.repository import TOP, section_of

PAGE = (TOP / "docs" / "security.md").read_text()
# The number of level 1 requirements in each section of ASVS 5.0.0, where they come first. V5 and V10 are omitted.
LEVEL_1 = {
    "V1.2": 5, "V1.3": 2, "V1.5": 1, "V2.1": 1, "V2.2": 2, "V2.3": 1, "V3.2": 2, "V3.3": 1, "V3.4": 2, "V3.5": 3,
    "V4.1": 1, "V4.4": 1, "V6.1": 1, "V6.2": 8, "V6.3": 2, "V6.4": 2, "V7.2": 4, "V7.4": 2, "V8.1": 1, "V8.2": 2,
    "V8.3": 1, "V9.1": 3, "V9.2": 1, "V11.3": 2, "V11.4": 1, "V12.1": 1, "V12.2": 2, "V13.4": 1, "V14.2": 1,
    "V14.3": 1, "V15.1": 1, "V15.2": 1, "V15.3": 1,
}  # fmt: skip
NO_TEST = {"does not apply": "Does not apply", "yours": "Yours"}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without the table's head."""
    lines = re.findall(r"^\| (.*) \|$", section_of(PAGE, heading), re.MULTILINE)
    return [line.split(" | ") for line in lines[2:]]


TABLES = {"API": rows("## OWASP API Security Top 10 (2023)"), "ASVS": rows("## ASVS 5.0.0, level 1")}
NAMED = sorted(set(re.findall(r"`([^`]+\.py::[^`]+)`", PAGE)))


def test_every_item_has_a_row() -> None:
    required = [f"{section}.{number}" for section, count in LEVEL_1.items() for number in range(1, count + 1)]
    assert [row[0].split()[0] for row in TABLES["API"]] == [f"API{number}" for number in range(1, 11)]
    assert [row[0].split()[0] for row in TABLES["ASVS"]] == required


@pytest.mark.parametrize("row", [*TABLES["API"], *TABLES["ASVS"]], ids=lambda row: row[0].split()[0])
def test_every_row_has_a_test_or_says_why_not(row: list[str]) -> None:
    _, what, shown = row
    assert (shown in NO_TEST and what.startswith(NO_TEST[shown])) or re.fullmatch(r"(`[\w/]+\.py(::\w+)+` ?)+", shown)


# Parse at import, because ast.parse fails deep in the call stack before Python 3.11.4.
TREES = {file: ast.parse((SRC / "tests" / file).read_text()) for file in {name.split("::")[0] for name in NAMED}}


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    file, *path = name.split("::")
    body = TREES[file].body
    for part in path:
        kind = ast.ClassDef if part.startswith("Test") else ast.FunctionDef | ast.AsyncFunctionDef
        (found,) = [node for node in body if isinstance(node, kind) and node.name == part]
        body = found.body
    assert path[-1].startswith("test_")

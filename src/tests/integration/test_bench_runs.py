"""`make bench`: short runs of all parts, with all resources that it compares."""

import asyncio
import json
import sys
from typing import Any

import pytest

from bench.endpoints import NAMES
from bench.overload import FACTORS
from bench.report import COLUMNS, table
from bench.services import APPS
from tests.environment import SRC

pytestmark = pytest.mark.drill


async def run_bench(*options: str) -> Any:
    command = (sys.executable, "-m", "bench", "--json", *options)
    process = await asyncio.create_subprocess_exec(*command, cwd=SRC, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(300):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


async def test_a_short_run_has_every_endpoint() -> None:
    result = await run_bench("--rounds", "1", "--seconds", "0.05")
    assert {*result["endpoints"]} == {*NAMES}
    for services in result["endpoints"].values():
        assert {*services} == {*APPS}
        for row in services.values():
            assert row["per_second"]["median"] > 0
            assert row["p50_ms"]["median"] <= row["p99_ms"]["median"]
        assert services["floor"]["to_floor"]["median"] == 1
    asked = {name: (rows["ours"]["statements"], rows["ours"]["commands"]) for name, rows in result["endpoints"].items()}
    assert asked["constant"] == (0, 0)
    assert asked["user"] == (1, 0)
    assert asked["cached"] == (0, 1)
    lines = table(result["endpoints"], {name: name for name in NAMES}).splitlines()
    assert len(lines) == 2 + len(NAMES) * len(APPS)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}


async def test_a_short_overload() -> None:
    # With a limit of one, two concurrent requests are an overload, so the burst ends long before the greatest load.
    options = ("--rounds", "1", "--seconds", "0.8", "--connections", "100", "--limit", "1", "--max-lag", "10000")
    result = await run_bench("overload", *options)
    limited, unlimited = result["overload"]["1"], result["overload"]["none"]
    assert {*limited} == {*unlimited} == {str(factor) for factor in FACTORS}
    assert limited["3.0"]["shed_per_second"] > 0
    for point in (*limited.values(), *unlimited.values()):
        assert point["share_of_best"] > 0
        assert point["p50_ms"] <= point["p99_ms"]


async def test_a_short_growth() -> None:
    result = await run_bench("growth", "--users", "2000", "--requests", "20")
    assert result["users"] == 2000
    for row in result["growth"].values():
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert {title for title, row in result["growth"].items() if row["few_rows_p50_ms"] is None} == {
        "removal of a user's lists",
        "PATCH post, 2,000 other keys in Valkey",
        "removal of a user's lists, 2,000 other keys in Valkey",
    }

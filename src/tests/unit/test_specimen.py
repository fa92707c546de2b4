"""The tests of the machinery use the specimen, so that they stay when a shipped resource is taken out."""

import re

from tests.environment import SRC

SHIPPED = re.compile(
    r"\bcrud_(posts|tiers?|rate_limits?)\b|\bapp\.(models|schemas)\.(post|tier|rate_limit)\b"
    r"|\bmake_(post|tier|rate_limit)\b|/(posts?|tiers?|rate_limits?|tasks)\b"
)
# The tests of a resource, and those of the whole service: docs/taking-out.md says what to do with each.
OWN = {
    "test_posts.py", "test_posts_cached.py", "test_tiers.py", "test_rate_limits.py", "test_first_tier.py",
    "test_tasks.py", "test_bench.py", "test_bench_runs.py", "test_readme.py", "test_seed.py",
}  # fmt: skip


def test_no_other_test_needs_a_shipped_resource() -> None:
    found = [
        f"{file.name}:{number}: {line.strip()}"
        for file in sorted((SRC / "tests").rglob("test_*.py"))
        if file.name not in OWN and file.name != "test_specimen.py"
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if SHIPPED.search(line)
    ]
    assert found == []

"""The resources of the service that the bench compares; the other files write their rows and their floor by hand."""

import json
from pathlib import Path

OPENAPI = Path(__file__).parents[1] / "openapi.json"
NEEDED = {
    "/api/v1/user/{username}": "users",
    "/api/v1/{username}/post/{id}": "posts",
    "/api/v1/tier/{tier_name}/rate_limits": "tiers and rate limits",
    "/api/v1/tasks/task": "tasks",
}


def missing(contract: Path = OPENAPI) -> str:
    """Say in one line what the bench needs and the service does not have; an empty text if nothing is missing."""
    paths = json.loads(contract.read_text())["paths"]
    names = ", ".join(name for path, name in NEEDED.items() if path not in paths)
    return f"the bench compares the shipped resources, and needs {names}: see bench/resources.py" if names else ""

"""The resources of the service that are under load, named in this place only.

Without one of them the load leaves out its requests. Name a resource of yours in its place: see `left_out`.
"""

from collections.abc import Collection

POSTS, POST = "/api/v1/{username}/posts", "/api/v1/{username}/post"
TASK = "/api/v1/tasks/task"
NEEDS = {
    POSTS: "a list of what users own, cached, with `title` and `text`",
    TASK: "a route under `rate_limiter` that queues `sample_background_task`",
}


def left_out(paths: Collection[str]) -> list[str]:
    """Say in one line for each resource that is gone what the load needs in its place."""
    return [
        f"without {path} the load leaves this out; it needs {need}: name it in soak/resources.py"
        for path, need in NEEDS.items()
        if path not in paths
    ]

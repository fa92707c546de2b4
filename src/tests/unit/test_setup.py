from typing import Any

import pytest
from starlette.routing import Match, Mount

from app.core.setup import DOCS_ASSETS, FlatRoute
from app.main import app


def test_routes_lie_flat_in_the_application() -> None:
    """FastAPI looks included routers through again for each request, at every level."""
    assert {type(route) for route in app.routes} == {FlatRoute, Mount}
    paths = {route.path for route in app.routes if isinstance(route, FlatRoute | Mount)}
    assert {"/health", "/api/v1/users", "/api/v1/tier/{tier_name}/rate_limit/{id}", "/docs", DOCS_ASSETS} <= paths


@pytest.mark.parametrize(
    ("path", "root_path", "match"),
    [
        ("/user/jane/tier", "", Match.FULL),
        ("/user/jane/tier", "/prefix", Match.FULL),
        ("/prefix/user/jane/tier", "/prefix", Match.FULL),
        ("/user/jane", "", Match.NONE),
        ("/users/jane/tier", "", Match.NONE),
        ("/USER/jane/tier", "", Match.NONE),
        ("", "", Match.NONE),
    ],
)
def test_look_at_the_beginning_changes_nothing(path: str, root_path: str, match: Match) -> None:
    async def endpoint() -> None: ...

    route = FlatRoute("/user/{username}/tier", endpoint, methods=["GET"])
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "root_path": root_path}
    assert route.matches(scope)[0] is match
    if match is Match.FULL:
        assert route.matches({**scope, "method": "PUT"})[0] is Match.PARTIAL

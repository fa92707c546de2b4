from fastapi.routing import APIRoute
from starlette.routing import Mount

from app.core.setup import DOCS_ASSETS
from app.main import app


def test_routes_lie_flat_in_the_application() -> None:
    """FastAPI looks included routers through again for each request, at every level."""
    assert {type(route) for route in app.routes} == {APIRoute, Mount}
    paths = {route.path for route in app.routes if isinstance(route, APIRoute | Mount)}
    assert {"/health", "/api/v1/users", "/api/v1/tier/{tier_name}/rate_limit/{id}", "/docs", DOCS_ASSETS} <= paths

"""The clone of a test module, and a client of its server."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.extending.clone import Clone, open_clone
from tests.fixtures import RunningServer


@pytest.fixture(scope="module")
async def clone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clone]:
    """A copy of the clone with the routes `ROUTES` of the test module."""
    async with open_clone(tmp_path_factory.mktemp("clone")) as clone:
        clone.write({"app/api/v1/own.py": request.module.ROUTES})
        yield clone


@pytest.fixture
def client(server: RunningServer) -> httpx.AsyncClient:
    """A client of the fixture `server` of the test module."""
    return server.client

from fastapi import FastAPI

from app.api import v1
from app.api.health import router as health_router
from app.core.config import Settings


def include_routers(app: FastAPI, settings: Settings) -> None:
    """Add every endpoint that these settings need."""
    app.include_router(health_router)
    v1.include_routers(app, settings)


router = include_routers
"""The same function under the name of the parameter: `create_application(router=router, settings=settings)`."""

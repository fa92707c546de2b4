"""The application of the specimen: `uvicorn tests.specimen.main:app`."""

from fastapi import FastAPI

from app import api
from app.api.dependencies import guard_docs
from app.api.exceptions import exception_handlers
from app.core.config import RedisQueueSettings, Settings, settings
from app.core.setup import create_application
from tests.specimen.api import jobs, routers

SPECIMEN = "tests.specimen.main:app"


def include_routers(app: FastAPI, settings: Settings) -> None:
    """Include the specimen's routes, then those of the service."""
    for router in [*routers, *([jobs] if isinstance(settings, RedisQueueSettings) else [])]:
        app.include_router(router, prefix="/api/v1")
    api.include_routers(app, settings)


app = create_application(settings, include_routers, exception_handlers=exception_handlers, docs_guard=guard_docs)

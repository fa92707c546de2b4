import asyncio

from fastapi import APIRouter, Request, Response
from sqlalchemy import text

from app.api.dependencies import ReaderDep
from app.core.cache import store_of
from app.core.database import Reader, engines_of
from app.core.exceptions import DatabaseUnavailableError
from app.core.models import HealthCheck, Readiness
from app.core.queue import queue_of
from app.core.rate_limit import limiter_of

router = APIRouter(tags=["health"])
_HAS_TABLES = text("SELECT EXISTS (SELECT FROM alembic_version)")


@router.get("/health")
async def read_health(response: Response) -> HealthCheck:
    """Tell whether the process is alive, without asking any server."""
    response.headers["Cache-Control"] = "private, no-store"
    return HealthCheck(status="ok")


@router.get(
    "/health/ready",
    responses={
        503: {"model": Readiness, "description": "PostgreSQL is away or has no tables, or no connection is free"}
    },
)
async def read_readiness(request: Request, response: Response, db: ReaderDep) -> Readiness:
    """Tell whether the service can answer: 503 without PostgreSQL or connections, `degraded` while a Redis is away."""
    response.headers["Cache-Control"] = "private, no-store"
    roles = (store_of(request).server, queue_of(request).server, limiter_of(request).server)
    checks = {"postgresql": _database_is_up(db), **{server.role: server.is_up() for server in roles if server.is_open}}
    dependencies = dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
    if engines_of(request).is_drained:
        dependencies["connection pool"] = False
    status = "ready" if all(dependencies.values()) else "degraded"
    if not dependencies["postgresql"] or "connection pool" in dependencies:
        status, response.status_code = "not ready", 503
    return Readiness(status=status, dependencies={name: "up" if up else "down" for name, up in dependencies.items()})


async def _database_is_up(db: Reader) -> bool:
    """Tell whether the database answers and has its tables."""
    try:
        rows = await db.fetch_all(_HAS_TABLES, {})
    except DatabaseUnavailableError:
        return False
    return bool(rows[0][0])

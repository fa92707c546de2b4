from app.api.health import router as health_router
from app.api.v1 import router as v1_router
from app.core.routing import APIRouter

router = APIRouter()
router.include_router(health_router)
router.include_router(v1_router, prefix="/api")

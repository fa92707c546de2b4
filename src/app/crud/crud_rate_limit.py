from app.crud.crud_base import CRUDBase
from app.models.rate_limit import RateLimit
from app.schemas.rate_limit import RateLimitCreate, RateLimitUpdate

crud_rate_limits = CRUDBase[RateLimit, RateLimitCreate, RateLimitUpdate](RateLimit)

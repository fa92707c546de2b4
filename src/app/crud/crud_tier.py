from app.crud.crud_base import CRUDBase
from app.models.tier import Tier
from app.schemas.tier import TierCreate, TierUpdate

crud_tiers = CRUDBase[Tier, TierCreate, TierUpdate](Tier)

from app.crud.crud_base import CRUDBase
from app.models.tier import Tier
from app.schemas.tier import TierCreateInternal, TierUpdate

CRUDTier = CRUDBase[Tier, TierCreateInternal, TierUpdate]
crud_tiers = CRUDTier(Tier)

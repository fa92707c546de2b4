from app.crud.crud_base import CRUDBase
from app.crud.statements import Lookup
from app.models.tier import Tier
from app.schemas.tier import TierCreate, TierUpdate


class CRUDTier(CRUDBase[Tier, TierCreate, TierUpdate]):
    def id_of(self, name: str) -> Lookup:
        """The id of the tier with this name, as a value in queries of other tables."""
        return Lookup(Tier, "id", {"name": name})


crud_tiers = CRUDTier(Tier)

from app.crud.crud_base import CRUDBase
from app.crud.statements import Lookup
from tests.specimen.models import Drawer, Moth, Slip
from tests.specimen.schemas import DrawerCreate, DrawerUpdate, MothCreate, MothUpdate, SlipCreate, SlipUpdate


class CRUDDrawer(CRUDBase[Drawer, DrawerCreate, DrawerUpdate]):
    def id_of(self, name: str) -> Lookup:
        """Return a lookup: the statement that reads finds the id of the drawer with this name."""
        return Lookup(Drawer, "id", {"name": name})


crud_drawers = CRUDDrawer(Drawer)
crud_moths = CRUDBase[Moth, MothCreate, MothUpdate](Moth)
crud_slips = CRUDBase[Slip, SlipCreate, SlipUpdate](Slip)

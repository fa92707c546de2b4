"""Factories for the rows of the specimen, as in `tests/factories.py`."""

from itertools import count
from typing import Any

from app.core.database import transaction
from app.models.user import User
from tests.specimen.crud import crud_drawers, crud_moths, crud_slips
from tests.specimen.models import Drawer, Moth, Slip
from tests.specimen.schemas import DrawerCreate, MothCreate, SlipCreate

_numbers = count(1)


async def make_moth(user: User, **values: Any) -> Moth:
    values = {"title": "A title", "text": "Some text.", **values}
    async with transaction() as db:
        return await crud_moths.create(db, MothCreate(**values), created_by_user_id=user.id)


async def make_drawer(name: str | None = None) -> Drawer:
    async with transaction() as db:
        return await crud_drawers.create(db, DrawerCreate(name=name or f"drawer{next(_numbers)}"))


async def make_slip(drawer: Drawer, **values: Any) -> Slip:
    values = {"path": "some_path", "limit": 5, "period": 60, "name": f"slip{next(_numbers)}", **values}
    async with transaction() as db:
        return await crud_slips.create(db, SlipCreate(**values), drawer_id=drawer.id)

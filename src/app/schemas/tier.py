from datetime import datetime
from typing import Annotated

from pydantic import MISSING, Field, StringConstraints

from app.core.models import InputSchema, ReadSchema, WholeRow

# A tier is addressed by its name in a path: letters, digits, spaces and `_.-` only.
TierName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=50, pattern=r"^[A-Za-z0-9]([A-Za-z0-9 _.-]*[A-Za-z0-9])?$"),
    Field(examples=["free"]),
]


class TierRead(ReadSchema):
    id: int
    name: str
    created_at: datetime


class Tier(TierRead, WholeRow): ...


class TierCreate(InputSchema):
    name: TierName


class TierUpdate(InputSchema):
    name: TierName | MISSING = MISSING

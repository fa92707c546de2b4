from datetime import datetime
from typing import Annotated, Self

from pydantic import MISSING, Field, model_validator

from app.core.models import InputSchema, ReadSchema, RowId, Text, WebUrl

Title = Annotated[Text, Field(min_length=2, max_length=30, examples=["This is my moth"])]
MothText = Annotated[Text, Field(min_length=1, max_length=63206, examples=["This is its content."])]
DrawerName = Annotated[Text, Field(min_length=1, max_length=50, examples=["home"])]
Limit = Annotated[int, Field(ge=0, le=2**31 - 1, examples=[5])]
Period = Annotated[int, Field(ge=1, le=2**31 - 1, examples=[60])]


class MothRead(ReadSchema):
    id: int
    title: str
    text: str
    media_url: str | None
    created_by_user_id: int
    created_at: datetime


class MothCreate(InputSchema):
    title: Title
    text: MothText
    media_url: WebUrl | None = None
    drawer_id: RowId | None = None


class MothUpdate(InputSchema):
    title: Title | MISSING = MISSING
    text: MothText | MISSING = MISSING
    media_url: WebUrl | MISSING | None = MISSING


class DrawerRead(ReadSchema):
    id: int
    name: str
    created_at: datetime


class DrawerCreate(InputSchema):
    name: DrawerName


class DrawerUpdate(InputSchema):
    name: DrawerName | MISSING = MISSING


class SlipRead(ReadSchema):
    id: int
    drawer_id: int
    name: str
    path: str
    limit: int
    period: int


class SlipCreate(InputSchema):
    path: Text
    limit: Limit
    period: Period
    name: Text | None = None

    @model_validator(mode="after")
    def _default_name(self) -> Self:
        self.name = self.name or f"{self.path}:{self.limit}:{self.period}"
        return self


class SlipUpdate(InputSchema):
    path: Text | MISSING = MISSING
    limit: Limit | MISSING = MISSING
    period: Period | MISSING = MISSING
    name: Text | MISSING = MISSING

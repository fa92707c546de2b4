from datetime import datetime
from typing import Annotated

from pydantic import MISSING, Field

from app.core.models import DeletableRow, InputSchema, ReadSchema, Text, WebUrl

Title = Annotated[Text, Field(min_length=2, max_length=30, examples=["This is my post"])]
PostText = Annotated[Text, Field(min_length=1, max_length=63206, examples=["This is the content of my post."])]
MediaUrl = Annotated[WebUrl, Field(examples=["https://www.example.com/post.png"])]


class PostRead(ReadSchema):
    id: int
    title: str
    text: str
    media_url: str | None
    created_by_user_id: int
    created_at: datetime


class Post(PostRead, DeletableRow): ...


class PostCreate(InputSchema):
    title: Title
    text: PostText
    media_url: MediaUrl | None = None


class PostUpdate(InputSchema):
    title: Title | MISSING = MISSING
    text: PostText | MISSING = MISSING
    media_url: MediaUrl | MISSING | None = MISSING

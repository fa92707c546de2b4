from app.crud.crud_base import CRUDBase
from app.models.post import Post
from app.schemas.post import PostCreate, PostUpdate

crud_posts = CRUDBase[Post, PostCreate, PostUpdate](Post)

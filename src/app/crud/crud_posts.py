from app.crud.crud_base import CRUDBase
from app.models.post import Post
from app.schemas.post import PostCreateInternal, PostUpdate

CRUDPost = CRUDBase[Post, PostCreateInternal, PostUpdate]
crud_posts = CRUDPost(Post)

"""The routes of `/api/v1`, one module per resource; `app.api` includes them."""

from fastapi import APIRouter

router = APIRouter()
"""A router of your own may be added here: `router.include_router(books_router)`."""

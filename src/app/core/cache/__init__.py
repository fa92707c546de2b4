"""The server cache: `decorator` (`@cache`) with `options`, `routes` (checks at start), `middleware` (serves stored
answers before routing), and `store` with `scripts` (the keys on the Redis server).
"""

from app.core.cache.decorator import cache, do_not_store
from app.core.cache.middleware import StoredAnswers
from app.core.cache.routes import prepare_cached_routes
from app.core.cache.store import CacheStore, store_of

__all__ = ["CacheStore", "StoredAnswers", "cache", "do_not_store", "prepare_cached_routes", "store_of"]

"""The server cache: `decorator` (`@cache`) with `options`, `route` (serves stored answers early), and `store` with
`scripts` (what is on the Redis server).
"""

from app.core.cache.decorator import cache, do_not_store
from app.core.cache.route import CachedRoute, prepare_cached_routes
from app.core.cache.store import CacheStore, store_of

__all__ = ["CacheStore", "CachedRoute", "cache", "do_not_store", "prepare_cached_routes", "store_of"]

"""The server cache: `decorator` has `@cache`, `options` its arguments. `middleware` serves stored answers before
routing; `store` and `scripts` keep them on the Redis server.
"""

from app.core.cache.decorator import cache, do_not_store, prepare_cached_routes
from app.core.cache.middleware import StoredAnswers
from app.core.cache.store import CacheStore, store_of

__all__ = ["CacheStore", "StoredAnswers", "cache", "do_not_store", "prepare_cached_routes", "store_of"]

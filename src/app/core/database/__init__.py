"""The database. Models: `base`. Connections: `engines` over `pool` and `server`. SQLSTATE to exception: `errors`.

Reads without a transaction: `reader`. Units of work, and the dependencies behind `SessionDep`: `session`.
"""

from app.core.database.base import Base
from app.core.database.engines import Engines, database_url, default_engines, engines_of
from app.core.database.reader import BUILT_ONCE, Database, Reader, fetch_all
from app.core.database.session import async_get_db, get_reader, on_commit, session_of, transaction

__all__ = [
    "BUILT_ONCE", "Base", "Database", "Engines", "Reader", "async_get_db", "database_url", "default_engines",
    "engines_of", "fetch_all", "get_reader", "on_commit", "session_of", "transaction",
]  # fmt: skip

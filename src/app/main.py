"""The web process: `uvicorn app.main:app`."""

import gc

if gc.isenabled():
    gc.disable()  # without collections, the imports take an eighth less time

from app.api import include_routers
from app.api.dependencies import guard_docs
from app.core.config import settings
from app.core.setup import create_application

app = create_application(router=include_routers, settings=settings, docs_guard=guard_docs)

# Leave the imported modules out of collections: a full one then stops the requests for 1 ms rather than 50. A few
# concurrent requests hold more than 700 objects, the default threshold.
gc.freeze()
gc.set_threshold(20_000)
gc.enable()

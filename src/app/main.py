"""The web process: `uvicorn app.main:app`."""

import gc

if gc.isenabled():
    gc.disable()  # until all is imported, which takes an eighth less time so

from app.api import router
from app.api.dependencies import get_docs_reader
from app.core.config import settings
from app.core.setup import create_application

app = create_application(router=router, settings=settings, docs_guard=get_docs_reader)

# The imported modules stay: without them a full collection holds requests up for 1 ms rather than 50. The default
# threshold of 700 new objects is less than a few concurrent requests hold.
gc.freeze()
gc.set_threshold(20_000)
gc.enable()

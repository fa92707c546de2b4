"""The web process: `uvicorn app.main:app`."""

import gc

gc.disable()  # next to nothing that is imported is garbage, and looking for it takes a tenth of the start

from app.api import router
from app.api.dependencies import get_docs_reader
from app.api.exceptions import exception_handlers
from app.core.config import settings
from app.core.setup import create_application

app = create_application(router, settings, exception_handlers=exception_handlers, docs_guard=get_docs_reader)
gc.freeze()  # what is there by now stays: looking through it again and again would hold requests up for 50 ms each time
gc.enable()

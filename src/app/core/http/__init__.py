"""HTTP around the endpoints, as pure ASGI middleware, one class per duty; `core/setup.py` has their order.

`context` (request id, response headers, the application's objects), `audit`, `head`, `load_shedding`, `hosts`,
`limits` (body size, time), `errors` and `client_cache`; `client_address` tells clients apart.
"""

from app.core.http.client_address import client_address
from app.core.http.context import add_response_headers, passwords_of, route_template, settings_of, tokens_of
from app.core.http.limits import max_body_bytes, request_timeout

__all__ = [
    "add_response_headers", "client_address", "max_body_bytes", "passwords_of", "request_timeout", "route_template",
    "settings_of", "tokens_of",
]  # fmt: skip

"""Jobs and results as JSON. Pickle would run code from anybody who can write to Redis."""

import json
from typing import Any

deserialize = json.loads


def serialize(value: Any) -> bytes:
    """Encode a job or a result; an exception becomes its class and message."""
    return json.dumps(value, default=_encode).encode()


def _encode(value: Any) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"{type(value).__name__} cannot be sent through the queue: it must be JSON")

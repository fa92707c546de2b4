"""Logging to the console and, where it can be written, to `app/logs/app.log`; values stand apart from the event."""

import fcntl
import json
import logging
import logging.config
from contextvars import ContextVar
from pathlib import Path

LOG_FILE = Path(__file__).resolve().parents[1] / "logs" / "app.log"
MAX_BYTES = 10 * 1024 * 1024
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
request_id: ContextVar[str] = ContextVar("request_id", default="-")
RECORD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}
"""Fields that a log record has without `extra`."""


class KeyValueFormatter(logging.Formatter):
    """`time level logger event key=value …`; values are JSON, so that no value can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        values = {key: value for key, value in vars(record).items() if key not in RECORD_FIELDS}
        if (current := request_id.get()) != "-":
            values["request_id"] = current
        pairs = "".join(f" {key}={json.dumps(value, default=str)}" for key, value in values.items())
        first, *rest = super().format(record).split("\n")
        return "\n".join([first + pairs, *rest])


def _log_file() -> str | None:
    """The file to append to, or None. A large file is renamed here, at start-up.

    A handler that rotates while several processes write loses lines; one that follows the name does not.
    """
    try:
        LOG_FILE.parent.mkdir(exist_ok=True)
        with LOG_FILE.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several processes that start together, one renames it
            if LOG_FILE.stat().st_size > MAX_BYTES:
                LOG_FILE.replace(LOG_FILE.with_suffix(".log.1"))
                LOG_FILE.touch()
    except OSError:
        return None
    return str(LOG_FILE)


def _without_query(record: logging.LogRecord) -> bool:
    """Remove the query string from a line of uvicorn's access log: it may hold a secret."""
    if isinstance(record.args, tuple):
        record.args = tuple(part.partition("?")[0] if isinstance(part, str) else part for part in record.args)
    return True


def setup_logging() -> None:
    """Configure the loggers of the application and of arq; uvicorn and gunicorn keep their own."""
    logging.getLogger("uvicorn.access").addFilter(_without_query)
    handlers: dict[str, dict[str, str]] = {"console": {"class": "logging.StreamHandler", "formatter": "key_value"}}
    if path := _log_file():
        handlers["file"] = {
            "class": "logging.handlers.WatchedFileHandler",
            "filename": path,
            "encoding": "utf-8",
            "formatter": "key_value",
        }
    logger = {"handlers": [*handlers], "level": "INFO", "propagate": False}
    pool = {"level": "WARNING"}  # SQLAlchemy logs each disposal of ours at INFO
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"key_value": {"()": KeyValueFormatter, "format": FORMAT}},
            "handlers": handlers,
            "loggers": {"app": logger, "arq": logger, "app.core.database.pool": pool},
        }
    )

"""Structured logs: one JSON object per line for every request, without prompts.

{"time": "...", "level": "info", "event": "request", "id": "...", "path": "...", "status": 200}
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

SERVE_LOGGER = logging.getLogger("calumma.serve")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def log_event(event: str, **fields: Any) -> None:
    """Log an event with its fields."""
    SERVE_LOGGER.info(event, extra={"fields": fields})


def log_internal_error(error: BaseException, **fields: Any) -> None:
    """Log an unexpected exception with its traceback."""
    exc_info = (type(error), error, error.__traceback__)
    SERVE_LOGGER.error("internal_error", exc_info=exc_info, extra={"fields": fields})


@contextmanager
def log_to(stream: TextIO) -> Iterator[None]:
    """Write the server's log, and the warnings of uvicorn, to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    levels = {"calumma.serve": logging.INFO, "uvicorn": logging.WARNING}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for name in levels:
            logging.getLogger(name).removeHandler(handler)

"""Logs as lines of JSON: what was asked of which endpoint, and how it went; no prompts.

{"time": "...", "level": "info", "event": "request", "id": "...", "path": "...", "status": 200}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

LOGGER = logging.getLogger("calumma.serve")


class JsonFormatter(logging.Formatter):
    """One object a line, whatever a message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def log_event(event: str, **fields: Any) -> None:
    """Log that something happened."""
    LOGGER.info(event, extra={"fields": fields})


def log_internal_error(error: BaseException, **fields: Any) -> None:
    """Log a mistake of ours with its traceback."""
    told = (type(error), error, error.__traceback__)
    LOGGER.error("mistake", exc_info=told, extra={"fields": fields})


@contextmanager
def log_to(stream: TextIO) -> Iterator[None]:
    """Lines go to a stream meanwhile, those of uvicorn as well."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    loggers = {"calumma.serve": logging.INFO, "uvicorn": logging.WARNING}
    for name, level in loggers.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).propagate = True

"""What the service did: one JSON object a line, to stderr and to a bounded file."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

LARGEST_LOG = 10_000_000
OLD_LOGS = 3

Level = Literal["info", "warning", "error"]
Emit = Callable[..., None]
"""``emit(event, level="info", **facts)`` writes one line."""


class _Lines(logging.Formatter):
    """Records as JSON; an event's facts stand beside its name."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, Any] = getattr(record, "facts", {})
        head = {"time": f"{when}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        return json.dumps({**head, "event": record.getMessage(), **facts}, default=str)


@contextmanager
def open_log(path: Path) -> Generator[Emit]:
    """A function that writes events to stderr and to a file, which is rotated at 10 MB."""
    logger = logging.Logger(f"fedpeft-server {path}")
    file = RotatingFileHandler(path, maxBytes=LARGEST_LOG, backupCount=OLD_LOGS, delay=True)
    for handler in (logging.StreamHandler(sys.stderr), file):
        handler.setFormatter(_Lines())
        logger.addHandler(handler)

    def emit(event: str, level: Level = "info", **facts: Any) -> None:
        logger.log(getattr(logging, level.upper()), event, extra={"facts": facts})

    try:
        yield emit
    finally:
        file.close()

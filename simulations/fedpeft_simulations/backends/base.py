"""What every backend takes."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[dict[str, Any]], None]
"""Receives each event of ``metrics.jsonl`` as it is written."""

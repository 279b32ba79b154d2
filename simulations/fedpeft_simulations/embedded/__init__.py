"""The embedded base and the embedded federation: everything a first run needs, carried by the package."""

from __future__ import annotations

from pathlib import Path


def base_path() -> Path:
    """Return the folder of the embedded base, which transformers loads as model and tokenizer."""
    return Path(__file__).parent / "assets" / "base"

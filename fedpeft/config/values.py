"""What a person writes as a setting's value, as the setting takes it."""

from __future__ import annotations

import types
import typing
from typing import Any

LARGEST = 3.4e38
"""About the largest number that float32 holds."""
_NUMBERS = (int, float)


def as_taken(annotation: Any, value: Any) -> Any:
    """The value as its setting takes it: one item stands for a list of one, commas part several names.

    Args:
        annotation: type of the setting.
        value: of any type.

    Raises:
        ValueError: true or false for a number, a number that is not finite in float32, an empty item.
    """
    kinds = set(typing.get_args(annotation) or (annotation,))
    if typing.get_origin(annotation) is tuple:
        is_text = any(isinstance(kind, types.UnionType) for kind in kinds)  # and may hold commas itself
        if isinstance(value, str) and not is_text:
            value = tuple(part.strip() for part in value.split(","))
        elif isinstance(value, str | int | float):
            value = (value,)
        kinds |= {part for kind in kinds for part in typing.get_args(kind)}  # of rounds: numbers and a word
    items = value if isinstance(value, list | tuple) else [value]
    if kinds & set(_NUMBERS) and any(isinstance(item, bool) for item in items):
        raise ValueError("true and false are no numbers")
    if float in kinds and any(isinstance(item, _NUMBERS) and not abs(item) <= LARGEST for item in items):
        raise ValueError(f"it must be finite, and at most {LARGEST:g}")
    if typing.get_origin(annotation) is tuple and any(item == "" for item in items):
        raise ValueError("an empty text names nothing; leave the setting out, or write []")
    return value

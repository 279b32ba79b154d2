"""Whose privacy a record is: the units that a private step draws and clips."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedpeft.data import Example
from fedpeft.errors import DataError, PrivacyError
from fedpeft.privacy.plan import PrivacyPlan


def units_of(examples: Sequence[Example], plan: PrivacyPlan) -> list[list[int]]:
    """Indices of the examples of each unit: of one record, or of a person's first ``records_per_unit``.

    Which of a person's records are used is decided by hashes of these records alone: adding or removing
    another person changes nothing about it.

    Raises:
        DataError: the unit is a person, and a record names none.
        PrivacyError: the unit is not one that a node draws.
    """
    if plan.unit == "record":
        return [[index] for index in range(len(examples))]
    if plan.unit != "person":
        raise PrivacyError(f"DP-SGD in the node draws records or persons, not unit {plan.unit!r}")
    owned: dict[str, list[tuple[bytes, int]]] = {}
    for index, example in enumerate(examples):
        if example.person is None:
            raise DataError(
                "privacy.unit is 'person', but a record names none; set data.person to its column"
            )
        owned.setdefault(example.person, []).append((_digest(example), index))
    return [[index for _, index in sorted(records)[: plan.records_per_unit]] for records in owned.values()]


def _digest(example: Example) -> bytes:
    digest = hashlib.sha256(b"fedpeft-record-1\0")
    digest.update(len(example.ids).to_bytes(8, "little") + example.ids.tobytes())
    digest.update(example.weights.tobytes() + str(example.label_index).encode())
    return digest.digest()

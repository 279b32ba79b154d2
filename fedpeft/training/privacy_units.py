"""Whose privacy a record is: the units that a private step draws and clips."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Example
from fedpeft.errors import DataError, PrivacyError
from fedpeft.privacy.csprng import Randomness
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.sampling import poisson

Units = list[list[int]]
"""Indices of the examples of each unit."""


def units_of(examples: Sequence[Example], plan: PrivacyPlan) -> Units:
    """All records of each unit: of one record, or of a person.

    Raises:
        DataError: the unit is a person, and a record names none.
        PrivacyError: the unit is not one that a node draws.
    """
    if plan.unit == "record":
        return [[index] for index in range(len(examples))]
    if plan.unit != "person":
        raise PrivacyError(f"DP-SGD in the node draws records or persons, not unit {plan.unit!r}")
    owned: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if example.person is None:
            raise DataError(
                "privacy.unit is 'person', but a record names none; set data.person to its column"
            )
        owned.setdefault(example.person, []).append(index)
    return list(owned.values())


def draw(units: Units, plan: PrivacyPlan, source: Randomness) -> Units:
    """What one step clips one by one: drawn units, of a person ``records_per_unit`` records at most.

    Which of a person's records are eligible is drawn anew in each step, by words that are spent on this
    person alone: adding or removing another one changes nothing about it. Where ``plan.drawn`` is ``record``
    the eligible records of all are then drawn, each by itself, and each is clipped by itself.

    Args:
        units: as `units_of`.
        plan: rate, cap and what is drawn.
        source: of the words; anything but the operating system's guarantees no privacy.
    """
    if plan.drawn == "record":
        eligible = [index for unit in units for index in _capped(unit, plan.records_per_unit, source)]
        return [[eligible[place]] for place in poisson(len(eligible), plan.sampling_probability, source)]
    drawn = poisson(len(units), plan.step_rate, source)
    return [_capped(units[place], plan.records_per_unit, source) for place in drawn]


def _capped(unit: list[int], most: int, source: Randomness) -> list[int]:
    """``most`` records of a unit, any set of them as likely as another, in the order of the data."""
    if len(unit) <= most:
        return unit
    chosen: NDArray[np.intp] = np.argsort(source(len(unit)))[:most]
    return [unit[place] for place in np.sort(chosen)]


def identities(examples: Sequence[Example], units: Sequence[Sequence[int]], plan: PrivacyPlan) -> list[bytes]:
    """What each unit is, whatever other units there are: a record its content, a person its name."""
    first = [examples[unit[0]] for unit in units]
    if plan.unit == "person":
        return [(example.person or "").encode() for example in first]
    return [_digest(example) for example in first]


def _digest(example: Example) -> bytes:
    digest = hashlib.sha256(b"fedpeft-record-1\0")
    digest.update(len(example.ids).to_bytes(8, "little") + example.ids.tobytes())
    digest.update(example.weights.tobytes() + str(example.label_index).encode())
    return digest.digest()

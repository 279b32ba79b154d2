"""Accountant events as canonical JSON; what this version does not know is refused, never skipped."""

from __future__ import annotations

import math
from typing import Any, cast

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import Event, GridSteps, MixtureSteps, Pure, Skellam, Steps
from fedpeft.privacy.mixture import MOST_RECORDS

KINDS: dict[str, type[Event]] = {
    "steps": Steps,
    "grid_steps": GridSteps,
    "mixture_steps": MixtureSteps,
    "skellam": Skellam,
    "pure": Pure,
}
"""Names in JSON of the events that can be accounted for."""

ALLOWED = {
    "repeats": "a whole number, at least 1",
    "sampling_probability": "a number in (0, 1]",
    "failure": "a number in [0, 1)",
    "records": f"a whole number from 1 to {MOST_RECORDS}",
    "grid_steps.l2": "a number, finite and above 0",
}


def event_to_json(event: Event) -> dict[str, Any]:
    """An event as a flat JSON object: ``kind`` and the event's own fields.

    Raises:
        PrivacyError: it is no known event, or its parameters are those of no mechanism.
    """
    for kind, known in KINDS.items():
        if type(event) is known:
            body = {"kind": kind, **event._asdict()}
            event_from_json(body)
            return body
    raise PrivacyError(f"an event of type {type(event).__name__} cannot be recorded; use one of {_kinds()}")


def event_from_json(body: object) -> Event:
    """The event that a JSON object states; a noise of 0 is allowed and means: not private.

    Raises:
        PrivacyError: an unknown kind, a missing or extra field, or a value out of range.
    """
    if not isinstance(body, dict):
        raise PrivacyError(f"a privacy event must be a JSON object, got {type(body).__name__}")
    fields = cast(dict[str, Any], body)
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise PrivacyError(f"privacy event {kind!r} is unknown to this version; it knows {_kinds()}")
    known = KINDS[kind]
    if set(fields) != {"kind", *known._fields}:
        raise PrivacyError(f"a {kind} event has the fields {', '.join(known._fields)}, got {sorted(fields)}")
    for name in known._fields:
        _require(kind, name, fields[name])
    return known(*(fields[name] for name in known._fields))


def _require(kind: str, name: str, value: object) -> None:
    """Refuse a value that no mechanism has."""
    if not _sound(kind, name, value):
        usual = ALLOWED.get(name, "a number, finite and at least 0")
        allowed = ALLOWED.get(f"{kind}.{name}", usual)
        raise PrivacyError(f"{kind} event: {name} = {value!r} must be {allowed}")


def _sound(kind: str, name: str, value: object) -> bool:
    if name == "repeats":
        return type(value) is int and value >= 1
    if name == "records":
        return type(value) is int and 1 <= value <= MOST_RECORDS
    if type(value) not in (int, float):
        return False
    number = cast(float, value)
    if (kind, name) == ("grid_steps", "l2"):
        return 0 < number < math.inf
    if name == "sampling_probability":
        return 0 < number <= 1
    return 0 <= number < (1 if name == "failure" else math.inf)


def _kinds() -> str:
    return ", ".join(KINDS)

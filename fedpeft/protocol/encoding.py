"""How a message is packed: one blob and one table of facts, and how both are read back believing nothing.

Facts are checked for presence, type and range by the fields of the dataclass that they must fill
(`fedpeft.protocol.messages`); an unexpected record is an error.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpeft.epsilons import is_epsilon
from fedpeft.errors import FederationError
from fedpeft.protocol.enrolment import valid_name

STYPE = "fedpeft.blob.v1"
SMALL = 2**18
"""Up to so many bytes a blob travels among the facts: each object of a message is a request of its own."""

Fact = int | float | str | bytes | list[int] | list[float]
_T = TypeVar("_T")
_CAUSE = re.compile(r"[A-Za-z]{1,60}")


def pack(facts: Any, blob: bytes = b"") -> RecordDict:
    """A message's content: the facts of a dataclass of `fedpeft.protocol.messages` and one opaque blob."""
    table = {key: value for key, value in asdict(facts).items() if value != []}
    if len(blob) <= SMALL:
        return RecordDict({"facts": ConfigRecord({**table, "blob": blob})})
    payload = ArrayRecord({"payload": Array("uint8", (len(blob),), STYPE, blob)})
    return RecordDict({"facts": ConfigRecord(table), "blob": payload})


def unpack(message: Message, kind: type[_T], limit: int) -> tuple[_T, bytes]:
    """Read a message's content back, believing nothing.

    Args:
        message: what arrived.
        kind: the dataclass its facts must fill.
        limit: the most bytes its blob may have.

    Raises:
        FederationError: records, types, ranges or sizes are not as they must be; names the fact only.
    """
    if message.has_error():
        raise FederationError(error_cause(message))
    content = message.content
    is_small = set(content.keys()) == {"facts"}
    if not is_small and set(content.keys()) != {"facts", "blob"}:
        raise FederationError("unexpected records in a message")
    if not isinstance(content["facts"], ConfigRecord):
        raise FederationError("unexpected records in a message")
    facts = dict(cast("Mapping[str, Any]", content["facts"]))
    blob = _small(facts.pop("blob", None)) if is_small else _large(content["blob"])
    if len(blob) > limit:
        raise FederationError(f"a message's payload has {len(blob)} bytes, allowed are {limit}")
    return _fill(kind, facts), blob


def pack_table(table: Mapping[str, bytes]) -> bytes:
    """Named byte strings in order of name, injective."""
    parts = [struct.pack("<I", len(table))]
    for name in sorted(table):
        encoded = name.encode()
        parts += [struct.pack("<II", len(encoded), len(table[name])), encoded, table[name]]
    return b"".join(parts)


def unpack_table(blob: bytes) -> dict[str, bytes]:
    """The inverse of `pack_table`; only its own bytes are accepted.

    Raises:
        FederationError: the bytes are no such table.
    """
    try:
        (count,), place = struct.unpack_from("<I", blob), 4
        table: dict[str, bytes] = {}
        for _ in range(count):
            size, length = struct.unpack_from("<II", blob, place)
            name = blob[place + 8 : place + 8 + size].decode()
            table[name] = blob[place + 8 + size : place + 8 + size + length]
            place += 8 + size + length
    except (struct.error, UnicodeDecodeError):
        raise FederationError("a table of a message is cut off") from None
    if pack_table(table) != blob:
        raise FederationError("a table of a message is not in its one valid form")
    return table


def error_cause(message: Message) -> str:
    """A plain cause for an error reply: its code, and a class name if it is nothing but that."""
    error = message.error
    reason = error.reason or ""
    return reason if _CAUSE.fullmatch(reason) else f"node error {error.code}"


def _small(blob: Any) -> bytes:
    if type(blob) is not bytes or len(blob) > SMALL:
        raise FederationError("unexpected payload in a message")
    return blob


def _large(record: Any) -> bytes:
    if not isinstance(record, ArrayRecord) or list(record.keys()) != ["payload"]:
        raise FederationError("unexpected payload in a message")
    array = record["payload"]
    if array.stype != STYPE or array.dtype != "uint8" or tuple(array.shape) != (len(array.data),):
        raise FederationError("a message's payload is not a packed blob")
    return array.data


def _fill(kind: type[_T], facts: Mapping[str, Any]) -> _T:
    wanted = {entry.name: entry.type for entry in fields(cast(Any, kind))}
    if set(facts) - set(wanted):
        raise FederationError("an unexpected fact in a message")
    return kind(**{name: _fact(name, str(declared), facts.get(name)) for name, declared in wanted.items()})


def _fact(name: str, declared: str, value: Any) -> Fact:
    if declared in _LISTS:
        entry, kind = _LISTS[declared]
        values = [] if value is None else value
        if not isinstance(values, list) or len(values) > 65536 or not all(map(entry, values)):
            raise FederationError(f"fact {name!r} must be a list of {kind}")
        return cast(Fact, values)
    valid = _VALID[declared]
    if not valid(value) or (name == "name" and not valid_name(value)):
        raise FederationError(f"fact {name!r} of a message is missing or out of range")
    return cast(Fact, value)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


_LISTS = {"list[int]": (_natural, "natural numbers"), "list[float]": (_finite, "finite numbers")}
_VALID = {
    "int": _natural,
    "float": lambda value: type(value) is float and math.isfinite(value) and value >= 0,
    "Epsilon": is_epsilon,
    "str": lambda value: type(value) is str and len(value) <= 128 and value.isprintable(),
    "bytes": lambda value: type(value) is bytes and len(value) <= 32,
}

"""The parts of a message as a stranger sends them, measured before anything is made of them.

A message crosses the network as parts named by their SHA-256 (Flower's *objects*)::

    Message -> RecordDict -> ConfigRecord
                          -> ArrayRecord -> Array -> ArrayChunk ...

and each begins with a head: its kind, the names of its children and the length of its body. A part's name
fixes its children, so what a sender says about a part is checked against the part itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.proto.message_pb2 import ObjectTree

CHUNK = 5 * 2**20
"""Bytes of a payload that travel in one part; Flower's constant."""
LARGEST_PART = CHUNK + 2**16
LARGEST_FRAME = 2**20
"""Bytes of a part that is no piece of a payload; what is read from one takes up to some 40 times as much."""
FRAMES = 5
"""Parts of a message besides the pieces of its payload."""
KINDS = (
    frozenset({"Message"}),
    frozenset({"RecordDict"}),
    frozenset({"ConfigRecord", "ArrayRecord"}),
    frozenset({"Array"}),
    frozenset({"ArrayChunk"}),
)
"""What a part may be at each depth."""
_LEAVES = frozenset({"ConfigRecord", "ArrayChunk"})
_NAME = re.compile(r"[0-9a-f]{64}")
_LONGEST_HEAD = LARGEST_FRAME


class BadPart(ValueError):
    """A part, or what was said of it, is not in its one form; the text is plain."""


@dataclass(frozen=True)
class Place:
    """Where a part belongs in a message: its depth and the names of its children, in order."""

    depth: int
    children: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """The head of a part: its kind, its children in order, and where its body begins."""

    kind: str
    children: tuple[str, ...]
    body: int


def most_parts(payload: int) -> int:
    """The most parts that a message with so many bytes of payload consists of."""
    return FRAMES + -(-payload // CHUNK)


def places(tree: ObjectTree, most: int) -> dict[str, Place]:
    """The announced parts of a message by name, children before parents.

    Raises:
        BadPart: more parts than ``most``, deeper than a message is, names that are none or come twice.
    """
    parts: dict[str, Place] = {}
    _walk(tree, 0, most, parts)
    return parts


def _walk(tree: ObjectTree, depth: int, most: int, parts: dict[str, Place]) -> None:
    children = tuple(child.object_id for child in tree.children)
    if depth >= len(KINDS) or len(parts) + len(children) >= most:
        raise BadPart(f"a message has more than {most} parts or is nested too deeply")
    for child in tree.children:
        _walk(child, depth + 1, most, parts)
    name = tree.object_id
    if not _NAME.fullmatch(name) or name in parts:
        raise BadPart("a part of a message has no valid name of its own")
    parts[name] = Place(depth, children)


def read_part(content: bytes) -> Part:
    """The head of a part.

    Raises:
        BadPart: there is none, or the body has another length than it says.
    """
    end = content.find(b"\0", 0, _LONGEST_HEAD)
    try:
        kind, names, length = content[:end].decode("ascii").split(" ") if end > 0 else ("", "", "-1")
        size = int(length)
    except ValueError:
        raise BadPart("a part of a message has no head") from None
    children = tuple(names.split(",")) if names else ()
    if size != len(content) - end - 1 or not all(_NAME.fullmatch(child) for child in children):
        raise BadPart("a part of a message is not what its head says")
    return Part(kind, children, end + 1)


def check_part(name: str, place: Place, content: bytes) -> None:
    """See that a part is the one that was announced, in name, place, children and size.

    Raises:
        BadPart: it is not.
    """
    if len(content) > LARGEST_PART or hashlib.sha256(content).hexdigest() != name:
        raise BadPart("a part of a message is too long or not what its name says")
    part = read_part(content)
    if part.kind not in KINDS[place.depth] or part.children != place.children:
        raise BadPart("a part of a message is not what was announced")
    if part.kind in _LEAVES and part.children:
        raise BadPart("a part of a message has children that its kind cannot have")
    if part.kind != "ArrayChunk" and len(content) > LARGEST_FRAME:
        raise BadPart("a part of a message that is no piece of a payload is too long")


def payload_bytes(root: str, parts: Mapping[str, bytes]) -> int:
    """Bytes of all payloads once a message is put together; nothing is put together for it.

    A payload names its pieces by number and may name one many times, so a few bytes can expand to many.

    Raises:
        BadPart: the parts are no message.
    """
    waiting, total, read = [(root, 0)], 0, 0
    while waiting:
        name, depth = waiting.pop()
        read += 1
        if name not in parts or depth >= len(KINDS) or read > len(parts):
            raise BadPart("a message lacks a part or names one twice")
        part = read_part(parts[name])
        if part.kind not in KINDS[depth] or (part.kind in _LEAVES and part.children):
            raise BadPart("a part of a message is of another kind than its place asks for")
        if part.kind == "Array":
            total += _array_bytes(parts, name, part)
        waiting += [(child, depth + 1) for child in part.children]
    return total


def _array_bytes(parts: Mapping[str, bytes], name: str, part: Part) -> int:
    """Bytes of one payload: those of its pieces, as often as they are named."""
    try:
        facts: Any = json.loads(parts[name][part.body :])
        numbers = facts["arraychunk_ids"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadPart("a payload has no list of its pieces") from None
    if not isinstance(numbers, list):
        raise BadPart("a payload has no list of its pieces")
    sizes = [_chunk_bytes(parts, child) for child in part.children]
    if not all(type(number) is int and 0 <= number < len(sizes) for number in numbers):
        raise BadPart("a payload names a piece that it does not have")
    return sum(sizes[number] for number in numbers)


def _chunk_bytes(parts: Mapping[str, bytes], name: str) -> int:
    if name not in parts:
        raise BadPart("a message lacks a part or names one twice")
    return len(parts[name]) - read_part(parts[name]).body

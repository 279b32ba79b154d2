"""What coordinator and node say to each other: two messages, each one packed blob and one table of facts.

``hello`` (QUERY) lets both sides compare base, layout, starting state and config by hash before round 1.
``train`` (TRAIN) carries the broadcast envelope down and the update's envelope up. Nothing that arrives is
trusted: every fact is checked for presence, type and range, and an unexpected record is an error.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpeft.config import Config, config_hash
from fedpeft.errors import FederationError
from fedpeft.exchange.layout import FloatVector, Layout

PROTOCOL = 1
STYPE = "fedpeft.blob.v1"
HELLO = "query"
TRAIN = "train"
COORDINATOR = "coordinator"
NO_STATE = bytes(32)
MAX_NAME = 64

Broadcast = Literal["none", "delta", "full"]
Fact = int | float | str | bytes | list[int]
Facts = dict[str, Fact]
_T = TypeVar("_T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CAUSE = re.compile(r"[A-Za-z]{1,60}")


@dataclass(frozen=True)
class Hello:
    """The coordinator introduces itself: protocol version, run id and its Ed25519 public key."""

    protocol: int
    run: bytes
    coordinator: bytes


@dataclass(frozen=True)
class HelloReply:
    """What a node computed itself, for comparison; it never believes what it is told.

    Attributes:
        name: the organisation's name; orders nodes everywhere.
        run: digest of the node's own agreed config, 16 bytes.
        base: content hash of the base, hexadecimal.
        layout: digest of the node's own tensors at its rank, 32 bytes.
        state: digest of the agreed starting state, 32 bytes.
        key: Ed25519 public key, 32 bytes.
        rank: adapter rank of this node.
        versions: rounds whose state the node holds.
    """

    name: str
    run: bytes
    base: str
    layout: bytes
    state: bytes
    key: bytes
    rank: int
    versions: list[int]


@dataclass(frozen=True)
class TrainTask:
    """One round's order.

    Attributes:
        round: 1-based round.
        steps: optimiser steps asked for; the node refuses more than its config agrees to.
        lr: local learning rate asked for; likewise.
        broadcast: how the blob changes the state: not at all, by the deltas of the rounds after ``since``, or
            as the whole state.
        since: round whose state the first delta applies to; 1 is the agreed starting state.
        sizes: bytes of each envelope in the blob, in order.
        state: digest of the state to train from, 32 bytes.
        ranks: rank of each module in a factor state, in order of name; empty for vectors.
        expires: seconds since the epoch after which the work is useless.
    """

    round: int
    steps: int
    lr: float
    broadcast: str
    since: int
    sizes: list[int]
    state: bytes
    ranks: list[int]
    expires: float


@dataclass(frozen=True)
class TrainReply:
    """One node's answer beside its envelope.

    Attributes:
        round: the round asked for.
        steps: optimiser steps done.
        train_s: seconds of local training.
        epsilon: privacy spent on this node's records so far; 0 says that no DP is claimed.
        ledger_entry: number of the newest entry of the node's ledger; only ever grows.
        ledger: hash of that entry, 32 bytes.
    """

    round: int
    steps: int
    train_s: float
    epsilon: float
    ledger_entry: int
    ledger: bytes


def run_id(config: Config) -> bytes:
    """The 16 bytes that name a run: both sides derive them from the config they agreed to.

    How nodes are run (backend, deadline, threads, engine) is not part of it: it does not change the result.
    """
    federation = config.federation.model_copy(update={"backend": "inprocess", "deadline": 1.0})
    base = config.base.model_copy(update={"threads": 0})
    run = config.run.model_copy(update={"engine": "auto", "tokens_at_once": 8192})
    shared = config.model_copy(update={"federation": federation, "base": base, "run": run})
    return bytes.fromhex(config_hash(shared))[:16]


def state_digest(layout: Layout, values: FloatVector) -> bytes:
    """SHA-256 over layout and float32 values, 32 bytes."""
    return hashlib.sha256(b"fedpeft-state-1\0" + layout.digest + values.astype("<f4").tobytes()).digest()


def pack(facts: Any, blob: bytes = b"") -> RecordDict:
    """A message's content: the facts of one of the dataclasses here and one opaque blob."""
    table = ConfigRecord({key: value for key, value in asdict(facts).items() if value != []})
    payload = ArrayRecord({"payload": Array("uint8", (len(blob),), STYPE, blob)})
    return RecordDict({"facts": table, "blob": payload})


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
    if set(content.keys()) != {"facts", "blob"} or not isinstance(content["facts"], ConfigRecord):
        raise FederationError("unexpected records in a message")
    facts = cast("Mapping[str, Any]", content["facts"])
    return _fill(kind, facts), _blob(content["blob"], limit)


def error_cause(message: Message) -> str:
    """A plain cause for an error reply: its code, and a class name if it is nothing but that."""
    error = message.error
    reason = error.reason or ""
    return reason if _CAUSE.fullmatch(reason) else f"node error {error.code}"


def _blob(record: Any, limit: int) -> bytes:
    if not isinstance(record, ArrayRecord) or list(record.keys()) != ["payload"]:
        raise FederationError("unexpected payload in a message")
    array = record["payload"]
    if array.stype != STYPE or array.dtype != "uint8" or tuple(array.shape) != (len(array.data),):
        raise FederationError("a message's payload is not a packed blob")
    if len(array.data) > limit:
        raise FederationError(f"a message's payload has {len(array.data)} bytes, allowed are {limit}")
    return array.data


def _fill(kind: type[_T], facts: Mapping[str, Any]) -> _T:
    wanted = {field.name: field.type for field in fields(cast(Any, kind))}
    if extra := sorted(set(facts) - set(wanted)):
        raise FederationError(f"unexpected fact {extra[0][:MAX_NAME]!r} in a message")
    return kind(**{name: _fact(name, str(declared), facts.get(name)) for name, declared in wanted.items()})


def _fact(name: str, declared: str, value: Any) -> Fact:
    if declared == "list[int]":
        values = [] if value is None else value
        if not isinstance(values, list) or len(values) > 65536 or not all(map(_natural, values)):
            raise FederationError(f"fact {name!r} must be a list of natural numbers")
        return cast("list[int]", values)
    valid = _VALID[declared]
    if not valid(value) or (name == "name" and not (_NAME.fullmatch(value) and len(value) <= MAX_NAME)):
        raise FederationError(f"fact {name!r} of a message is missing or out of range")
    return cast(Fact, value)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


_VALID = {
    "int": _natural,
    "float": lambda value: type(value) is float and math.isfinite(value) and value >= 0,
    "str": lambda value: type(value) is str and len(value) <= 128,
    "bytes": lambda value: type(value) is bytes and len(value) <= 32,
}

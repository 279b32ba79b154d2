"""What coordinator and node say to each other: four messages, each one packed blob and one table of facts.

``query.terms`` lets a deployed node read, check and accept a run. ``hello`` (QUERY) lets both sides compare
base, layout, starting state and config by hash before round 1. ``train`` (TRAIN) carries the broadcast
envelope down and the update's up, ``query.secure`` the phases of secure aggregation around it. Nothing that
arrives is trusted: facts are checked for presence, type and range; an unexpected record is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpeft.config import Config, config_hash
from fedpeft.epsilons import Epsilon, is_epsilon
from fedpeft.errors import FederationError
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.protocol.enrolment import valid_name

PROTOCOL, OLDEST = 4, 4
"""The newest and the oldest version that is spoken; `Terms`, `Hello` and `TermsReply` are the same in all."""
STYPE = "fedpeft.blob.v1"
SMALL = 2**18
"""Up to so many bytes a blob travels among the facts: each object of a message is a request of its own."""
HELLO = "query"
TRAIN = "train"
SECURE = "query.secure"
TERMS = "query.terms"
COORDINATOR = "coordinator"
NO_STATE = bytes(32)
LARGEST_TERMS = 2**18
LARGEST_TABLE = 2**20
"""No table of a phase of secure aggregation is longer, for 127 nodes."""

Broadcast = Literal["none", "delta", "full"]
Fact = int | float | str | bytes | list[int]
Facts = dict[str, Fact]
_T = TypeVar("_T")
_CAUSE = re.compile(r"[A-Za-z]{1,60}")


@dataclass(frozen=True)
class Terms:
    """What a deployed node is asked to agree to before anything else of a run; the blob is `RunProposal`.

    Attributes:
        protocol: newest version that the coordinator understands.
        run: `run_id` of the config, 16 bytes.
        coordinator: Ed25519 public key, 32 bytes.
        oldest: version that it understands.
    """

    protocol: int
    run: bytes
    coordinator: bytes
    oldest: int = OLDEST


@dataclass(frozen=True)
class TermsReply:
    """A node's answer to `Terms`.

    Attributes:
        name: the organisation's name.
        answer: ``agreed``, ``waiting`` (its operator has to approve first) or ``refused``.
        rule: name of the policy rule that refused, such as ``epsilon``; empty otherwise.
    """

    name: str
    answer: str
    rule: str


@dataclass(frozen=True)
class RunProposal:
    """A run as its coordinator announces and signs it.

    Attributes:
        config: the whole resolved config, canonical JSON.
        labels: labels of the task, if it has some, in agreed order.
        roster: Ed25519 public keys of the nodes, 32 bytes by name; a secure sum needs them.
        signature: of the coordinator, 64 bytes, over everything else and the run's 16 bytes.
    """

    config: bytes
    labels: tuple[str, ...] = ()
    roster: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    signature: bytes = b""

    def message(self, run: bytes) -> bytes:
        """What is signed."""
        return b"fedpeft-terms-1\0" + run + replace(self, signature=b"").encode()

    def encode(self) -> bytes:
        """The blob of a `Terms` message."""
        labels = json.dumps(list(self.labels), ensure_ascii=False).encode()
        keys = pack_table(self.roster)
        return pack_table({"config": self.config, "labels": labels, "roster": keys, "sign": self.signature})

    @classmethod
    def decode(cls, blob: bytes) -> RunProposal:
        """The inverse of `encode`; says nothing of the signature.

        Raises:
            FederationError: the bytes are no terms.
        """
        table = unpack_table(blob)
        try:
            labels = json.loads(table["labels"])
            roster = unpack_table(table["roster"])
            config, signature = table["config"], table["sign"]
        except (KeyError, ValueError):
            raise FederationError("the terms of a run are not in their one valid form") from None
        if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
            raise FederationError("the labels of a run's terms are not a list of words")
        return cls(config, tuple(labels), roster, signature)


@dataclass(frozen=True)
class Hello:
    """The coordinator introduces itself: newest protocol, run id, its Ed25519 public key, oldest protocol."""

    protocol: int
    run: bytes
    coordinator: bytes
    oldest: int = OLDEST


@dataclass(frozen=True)
class HelloReply:
    """What a node computed itself, for comparison; it never relies on what it is sent.

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
        steps: optimiser steps asked for; the node refuses any but its config's.
        lr: local learning rate asked for; likewise.
        broadcast: what the blob holds: nothing, the deltas of the rounds after ``since``, or the whole state.
        since: round whose state the first delta applies to; 1 is the agreed starting state.
        sizes: bytes of each envelope in the blob, in order.
        state: digest of the state to train from, 32 bytes.
        ranks: rank of each module in a factor state, in order of name; empty for vectors.
        expires: seconds since the epoch after which the work is useless.
        ledger_entry: the newest entry of this run in the node's ledger that was reported; 0: none yet.
        ledger: hash of that entry, 32 bytes; empty: none yet.
        attempt: of secure aggregation in this round; 0: the update is not masked.
        inbox: bytes at the end of the blob that are the shares for this node.
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
    ledger_entry: int = 0
    ledger: bytes = b""
    attempt: int = 0
    inbox: int = 0


@dataclass(frozen=True)
class TrainReply:
    """One node's answer beside its envelope.

    Attributes:
        round: the round asked for.
        steps: optimiser steps done.
        train_s: seconds of local training; 0 under DP in the node, as they tell how many records were drawn.
        epsilon: privacy that this run has spent on this node's records so far, whatever others have;
            unbounded where a round claimed no DP.
        ledger_entry: number of the newest entry of this run in the node's ledger; only ever grows.
        ledger: hash of that entry, 32 bytes.
    """

    round: int
    steps: int
    train_s: float
    epsilon: Epsilon
    ledger_entry: int
    ledger: bytes


@dataclass(frozen=True)
class SecureTask:
    """One phase of secure aggregation around a round.

    The blob is a table (`pack_table`) by node: of public keys in ``keys``, of advertisements in ``shares``,
    of receipts of the survivors in ``agree``, of their signatures in ``reveal``.

    Attributes:
        phase: ``keys``, ``shares``, ``agree`` or ``reveal``.
        round: 1-based round.
        attempt: 1-based; a round that starts again after a failure has a new one.
        state: digest of the state that the round trains from, 32 bytes.
        threshold: nodes that must survive.
        size: integers that each node adds: the values of the support, and one vote per tensor.
        follows: 1 where the support follows the newest broadcast, which all nodes of the round have read.
        scales: exponents of the public scales, per tensor; empty where there are none.
    """

    phase: str
    round: int
    attempt: int
    state: bytes
    threshold: int
    size: int
    follows: int
    scales: list[int]

    @property
    def public(self) -> bytes:
        """Digest of what the integers mean, 32 bytes."""
        meaning = struct.pack(f"<B{len(self.scales)}I", self.follows, *self.scales)
        return hashlib.sha256(b"fedpeft-secure-1\0" + meaning).digest()


@dataclass(frozen=True)
class SecureReply:
    """A node's answer to a `SecureTask`; the blob is what its phase asks for."""

    phase: str
    round: int


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


def spoken(newest: int, oldest: int) -> tuple[int, str]:
    """The newest protocol that both sides speak; or 0 and whom to upgrade, ``node`` or ``coordinator``."""
    old = "coordinator" if newest < OLDEST else "node" if oldest > PROTOCOL else ""
    return (0, old) if old else (min(newest, PROTOCOL), "")


def run_id(config: Config) -> bytes:
    """The 16 bytes that name a run: both sides derive them from the config they agreed to.

    How nodes are run and waited for (backend, deadline, grace, threads, engine) is not part of it.
    """
    federation = config.federation.model_copy(update={"backend": "inprocess", "deadline": 1.0, "grace": 0.0})
    base = config.base.model_copy(update={"threads": 0})
    run = config.run.model_copy(update={"engine": "auto", "tokens_at_once": 8192})
    shared = config.model_copy(update={"federation": federation, "base": base, "run": run})
    return bytes.fromhex(config_hash(shared))[:16]


def state_digest(layout: Layout, values: FloatVector) -> bytes:
    """SHA-256 over layout and float32 values, 32 bytes."""
    return hashlib.sha256(b"fedpeft-state-1\0" + layout.digest + values.astype("<f4").tobytes()).digest()


def pack(facts: Any, blob: bytes = b"") -> RecordDict:
    """A message's content: the facts of one of the dataclasses here and one opaque blob."""
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
    if declared == "list[int]":
        values = [] if value is None else value
        if not isinstance(values, list) or len(values) > 65536 or not all(map(_natural, values)):
            raise FederationError(f"fact {name!r} must be a list of natural numbers")
        return cast("list[int]", values)
    valid = _VALID[declared]
    if not valid(value) or (name == "name" and not valid_name(value)):
        raise FederationError(f"fact {name!r} of a message is missing or out of range")
    return cast(Fact, value)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


_VALID = {
    "int": _natural,
    "float": lambda value: type(value) is float and math.isfinite(value) and value >= 0,
    "Epsilon": is_epsilon,
    "str": lambda value: type(value) is str and len(value) <= 128 and value.isprintable(),
    "bytes": lambda value: type(value) is bytes and len(value) <= 32,
}

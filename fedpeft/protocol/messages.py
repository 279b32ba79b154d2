"""What coordinator and node say to each other: four messages, each one packed blob and one table of facts.

``query.terms`` lets a deployed node read, check and accept a run. ``hello`` (QUERY) lets both sides compare
base, layout, starting state and config by hash before round 1. ``train`` (TRAIN) carries the broadcast
envelope down and the update's up, ``query.secure`` the phases of secure aggregation around it. Nothing that
arrives is trusted (`fedpeft.protocol.encoding`).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fedpeft.config import Config, config_hash
from fedpeft.epsilons import Epsilon
from fedpeft.errors import FederationError
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.protocol.encoding import pack_table, unpack_table

PROTOCOL, OLDEST = 4, 4
"""The newest and the oldest version that is spoken; `Terms`, `Hello` and `TermsReply` are the same in all."""
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
        loss: the noisy training loss of the round in nats, alone in a list, where the run's privacy plan
            releases one (`fedpeft.privacy.loss_share`); else empty.
    """

    round: int
    steps: int
    train_s: float
    epsilon: Epsilon
    ledger_entry: int
    ledger: bytes
    loss: list[float] = field(default_factory=list[float])


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

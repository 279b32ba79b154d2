"""The terms of a secure sum: agreed before the first key is sent, and bound into every key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedpeft.cohort import Cohort
from fedpeft.errors import ConfigError
from fedpeft.secagg.errors import SecureAggregationError, TermsRefused

MOST_NODES = 127
"""So many ternary values always fit one byte: their sum is within -127 and 127."""

HASH_BYTES = 32
MOST_VALUES = 2**31


@dataclass(frozen=True)
class SecureContext:
    """The public terms of one secure sum.

    Every signature and every derived key covers `digest`, so nodes that were sent different terms (another
    model, another threshold, another roster) verify nothing of each other and share no mask.

    Attributes:
        run: identity of the run, 16 bytes.
        round: round of the run.
        attempt: attempt within the round.
        state: digest of the global adapter that the round starts from, 32 bytes (Pasquini et al. 2021,
            arXiv:2111.07380: different models per node isolate a node's update within the sum).
        roster: names and Ed25519 public keys of the nodes, in the order of the names; 2 to 127: all that the
            round asks, whether they answer or not.
        threshold: nodes that are needed to open the sum.
        least_nodes: nodes beside the colluders that a sum has at least.
        size: number of values.
        bits: of each value, 8, 16 or 32; the sum is exact modulo 2^bits.
        public: digest of other public data of the round such as scales, 32 bytes.
        colluders: nodes that may collude with the coordinator.

    Raises:
        SecureAggregationError: a field that no honest coordinator sends.
    """

    run: bytes
    round: int
    attempt: int
    state: bytes
    roster: tuple[tuple[str, bytes], ...]
    threshold: int
    least_nodes: int
    size: int
    bits: int
    public: bytes
    colluders: int = 0

    def __post_init__(self) -> None:
        for name in ("round", "attempt", "threshold", "least_nodes", "size", "bits", "colluders"):
            _require(type(getattr(self, name)) is int, name, getattr(self, name), "a whole number")
        for name, length in (("run", 16), ("state", HASH_BYTES), ("public", HASH_BYTES)):
            _require(
                len(getattr(self, name)) == length, name, len(getattr(self, name)), f"{length} bytes long"
            )
        nodes = len(self.roster)
        _require(2 <= nodes <= MOST_NODES, "roster", nodes, f"of 2 to {MOST_NODES} nodes")
        _require(list(self.names) == sorted(set(self.names)), "roster", "", "sorted, each name once")
        printable = all(name and name.isprintable() for name in self.names)
        _require(printable, "roster", "", "of printable names")
        keys = {key for _, key in self.roster}
        _require(
            len(keys) == nodes and {len(key) for key in keys} == {HASH_BYTES}, "roster", "", "of one key each"
        )
        _require(0 <= self.round < 2**31, "round", self.round, "0 or more")
        _require(0 <= self.attempt < 2**31, "attempt", self.attempt, "0 or more")
        _require(1 <= self.threshold <= nodes, "threshold", self.threshold, f"1 to {nodes}")
        _require(1 <= self.size <= MOST_VALUES, "size", self.size, f"1 to {MOST_VALUES}")
        _require(self.bits in (8, 16, 32), "bits", self.bits, "8, 16 or 32")
        try:
            self.cohort  # noqa: B018
        except ConfigError as error:
            raise TermsRefused("threshold", str(error)) from None

    @cached_property
    def cohort(self) -> Cohort:
        """The numbers of the sum, which nobody may weaken."""
        return Cohort(len(self.roster), self.threshold, self.least_nodes, self.colluders)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all fields, 32 bytes; the encoding is injective."""
        return hashlib.sha256(b"fedpeft-secagg-context-2\0" + self.to_bytes()).digest()

    @cached_property
    def keys(self) -> dict[str, bytes]:
        """The Ed25519 public key of each node."""
        return dict(self.roster)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all nodes."""
        return tuple(name for name, _ in self.roster)

    @property
    def quorum(self) -> int:
        """Nodes without which nothing goes on."""
        return self.cohort.quorum

    @property
    def dtype(self) -> np.dtype[Any]:
        """Unsigned little-endian integers of ``bits`` bits."""
        return np.dtype(f"<u{self.bits // 8}")

    def point(self, name: str) -> int:
        """The node's place in the roster, from 1: where its shares are evaluated."""
        return self.names.index(name) + 1

    def require_quorum(self, names: Iterable[str], what: str) -> None:
        """Refuse a set of nodes that is too small to hide each other.

        Raises:
            SecureAggregationError: there are fewer than `quorum`.
        """
        count = len(set(names))
        if count < self.quorum:
            raise SecureAggregationError(
                f"{count} nodes {what}, a secure sum needs {self.quorum}; run it again"
            )

    def to_bytes(self) -> bytes:
        """JSON with sorted keys; bytes as hexadecimal digits."""
        fields = asdict(self) | {name: getattr(self, name).hex() for name in ("run", "state", "public")}
        fields["roster"] = [[name, key.hex()] for name, key in self.roster]
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> SecureContext:
        """The context of `to_bytes`; only the very bytes that `to_bytes` gives are accepted.

        Raises:
            SecureAggregationError: the bytes are anything else.
        """
        try:
            fields = json.loads(data)
            for name in ("run", "state", "public"):
                fields[name] = bytes.fromhex(fields[name])
            fields["roster"] = tuple((str(name), bytes.fromhex(key)) for name, key in fields["roster"])
            context = cls(**fields)
            canonical = context.to_bytes() == data
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SecureAggregationError(f"this is no secure context: {type(error).__name__}") from error
        if not canonical:
            raise SecureAggregationError("this is no secure context: its encoding is not canonical")
        return context


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise SecureAggregationError(f"secure aggregation: {name} {value} must be {allowed}")

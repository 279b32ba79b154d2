"""The coordinator's side of a secure sum: it routes, adds up and opens the sum, and learns nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.secagg.context import SecureContext
from fedpeft.secagg.errors import SecureAggregationError
from fedpeft.secagg.messages import (
    RECEIPT_BYTES,
    SHARE_MESSAGE_BYTES,
    SIGNATURE_BYTES,
    Advertisement,
    check,
    commit_seed,
    commit_shares,
    encoded_names,
    read_advertisement,
    split_signed,
)
from fedpeft.secagg.shamir import SECRET_BYTES, join

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class CoordinatorRound:
    """One secure sum. Replies go in by ``add_...``; a phase ends when what it gives the nodes is asked for.

    Every ``add_...`` raises SecureAggregationError for a reply that is wrong, late or sent twice, names its
    node, and leaves the round as it was: the round goes on without that node. Ending a phase raises when too
    few nodes are left; then the round may be run again as a new attempt, unless a node was asked to reveal.

    Attributes:
        context: the terms.
    """

    context: SecureContext
    _keys: dict[str, Advertisement] = field(default_factory=dict[str, Advertisement], repr=False)
    _advertisements: dict[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    _dealt: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]], repr=False)
    _receipts: dict[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    _signatures: dict[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    _shares: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]], repr=False)
    _total: NDArray[Any] | None = field(default=None, repr=False)
    _phase: int = 0

    @property
    def participants(self) -> tuple[str, ...]:
        """The nodes that dealt shares, in the order of the names."""
        return tuple(sorted(self._dealt))

    @property
    def survivors(self) -> tuple[str, ...]:
        """The nodes whose values are in the sum, in the order of the names."""
        return tuple(sorted(self._receipts))

    @property
    def revealed(self) -> frozenset[str]:
        """The nodes that let their shares go."""
        return frozenset(self._shares)

    def add_advertisement(self, name: str, message: bytes) -> None:
        """Take a node's keys (`node.advertise`)."""
        from fedpeft.secagg.masks import check_key

        self._open_phase(0, name, name in self._keys)
        keys = read_advertisement(self.context, name, message)
        for key in (keys.mask_key, keys.share_key):
            check_key(key, name)
        self._keys[name] = keys
        self._advertisements[name] = message

    def advertisements(self) -> dict[str, bytes]:
        """All keys, for `node.share` of each node that sent some."""
        self._end_phase(0, self._keys, "advertised keys")
        return dict(self._advertisements)

    def add_shares(self, name: str, messages: Mapping[str, bytes]) -> None:
        """Take the shares that a node dealt (`node.share`)."""
        self._open_phase(1, name, name in self._dealt, name in self._keys)
        lengths = {len(message) for message in messages.values()}
        if set(messages) != set(self._keys) or lengths != {SHARE_MESSAGE_BYTES}:
            raise SecureAggregationError(f"shares of {name!r} are not one for each node that advertised")
        self._dealt[name] = dict(messages)

    def inboxes(self) -> dict[str, dict[str, bytes]]:
        """What each participant was dealt, by node, for `node.mask`."""
        self._end_phase(1, self._dealt, "dealt shares")
        return {
            name: {dealer: messages[name] for dealer, messages in self._dealt.items()} for name in self._dealt
        }

    def add_masked(self, name: str, masked: NDArray[Any], receipt: bytes) -> None:
        """Add a node's masked values to the sum (`node.mask`); they are not kept."""
        self._open_phase(2, name, name in self._receipts, name in self._dealt)
        if masked.dtype != self.context.dtype or masked.shape != (self.context.size,):
            raise SecureAggregationError(
                f"masked values of {name!r} are {masked.dtype} of shape {masked.shape}"
            )
        digest, signature = split_signed(receipt, RECEIPT_BYTES, "receipt", name)
        check(signature, "receipt", self.context, name, digest, encoded_names(self._dealt))
        if hashlib.sha256(np.ascontiguousarray(masked).data).digest() != digest:
            raise SecureAggregationError(f"masked values of {name!r} are not those of its receipt")
        self._receipts[name] = receipt
        if self._total is None:
            self._total = np.zeros(self.context.size, self.context.dtype)
        np.add(self._total, masked, out=self._total)

    def receipts(self) -> dict[str, bytes]:
        """The receipts of all survivors, for `node.agree` of each of them."""
        self._end_phase(2, self._receipts, "survived")
        return dict(self._receipts)

    def add_signature(self, name: str, signature: bytes) -> None:
        """Take a survivor's signature of the survivors (`node.agree`)."""
        self._open_phase(3, name, name in self._signatures, name in self._receipts)
        check(signature, "agreement", self.context, name, *self._sets())
        self._signatures[name] = signature

    def signatures(self) -> dict[str, bytes]:
        """The signatures, for `node.reveal` of each node that sent one."""
        self._end_phase(3, self._signatures, "signed the survivors", self.context.threshold)
        return dict(self._signatures)

    def add_reveal(self, name: str, message: bytes) -> None:
        """Take the shares that a survivor let go (`node.reveal`).

        Each is compared with its dealer's commitment, so a changed share is refused as its sender's.
        """
        self._open_phase(4, name, name in self._shares, name in self._receipts)
        length = SECRET_BYTES * len(self._dealt) + SIGNATURE_BYTES
        content, signature = split_signed(message, length, "reveal", name)
        check(signature, "reveal", self.context, name, *self._sets(), content)
        parts = (content[at : at + SECRET_BYTES] for at in range(0, len(content), SECRET_BYTES))
        shares = dict(zip(self.participants, parts, strict=True))
        for dealer, share in shares.items():
            self._check_share(dealer, name, share)
        self._shares[name] = shares

    def result(self) -> NDArray[Any]:
        """The sum of the survivors' values modulo 2^bits: unsigned integers, shape ``(size,)``.

        Raises:
            SecureAggregationError: fewer than ``threshold`` nodes revealed shares (add more and ask again),
                or a node dealt shares of something else than its keys, which spoils this attempt.
        """
        from fedpeft.secagg.masks import add_pair, add_self, exchange, public_key

        if self._total is None or len(self._shares) < self.context.threshold:
            needed = f"{self.context.threshold} are needed to open the sum"
            raise SecureAggregationError(f"{len(self._shares)} nodes revealed shares, {needed}")
        total, survivors = self._total.copy(), self.survivors
        for name in self.participants:
            secret, keys = self._joined(name), self._keys[name]
            survived = name in self._receipts
            commitment = commit_seed(self.context, name, secret) if survived else public_key(secret)
            if commitment != (keys.seed_commitment if survived else keys.mask_key):
                raise SecureAggregationError(
                    f"{name!r} dealt shares of another secret; run it again without the node"
                )
            if survived:
                add_self(self.context, total, name, secret, -1)
                continue
            for peer in survivors:
                agreed = exchange(secret, self._keys[peer].mask_key, peer)
                add_pair(self.context, total, name, peer, agreed)
        return total

    def _joined(self, dealer: str) -> bytes:
        holders = sorted(self._shares)[: self.context.threshold]
        return join({self.context.point(holder): self._shares[holder][dealer] for holder in holders})

    def _check_share(self, dealer: str, holder: str, share: bytes) -> None:
        start, dealt = (0 if dealer in self._receipts else 32), self._dealt[dealer][holder]
        commitment = commit_shares(self.context, dealer, holder, share + share)[start : start + 32]
        if commitment != dealt[start : start + 32]:
            raise SecureAggregationError(
                f"reveal of {holder!r}: the share of {dealer!r} is not the one dealt"
            )

    def _sets(self) -> tuple[bytes, bytes]:
        return encoded_names(self._dealt), encoded_names(self._receipts)

    def _open_phase(self, phase: int, name: str, again: bool, known: bool = True) -> None:
        if self._phase != phase:
            raise SecureAggregationError(
                f"the reply of {name!r} is for phase {phase}, the round is in {self._phase}"
            )
        if again or not known:
            raise SecureAggregationError(
                f"{name!r} has {'answered before' if again else 'no part in this phase'}"
            )

    def _end_phase(self, phase: int, done: Mapping[str, Any], what: str, least: int | None = None) -> None:
        if self._phase not in (phase, phase + 1):
            raise SecureAggregationError(f"the round is in phase {self._phase}, not in {phase}")
        needed = self.context.quorum if least is None else least
        if len(done) < needed:
            raise SecureAggregationError(f"{len(done)} nodes {what}, {needed} are needed; run it again")
        self._phase = phase + 1

"""Who a node is, and what it remembers between the messages of one secure sum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.cohort import Cohort
from fedpeft.secagg.context import SecureContext
from fedpeft.secagg.errors import SecureAggregationError
from fedpeft.secagg.release_store import ReleaseStore
from fedpeft.trust import Signer

SECRETS = ("mask_key", "share_key", "seed", "advertisement", "receipt")
MAPPINGS = {"peers": "peers", "messages": "messages", "shares": "held"}
"""Attributes, and their keys on disk."""


@dataclass(frozen=True)
class Member:
    """A node with its own limits, which no coordinator can widen.

    Attributes:
        name: the node's name in rosters.
        signer: its Ed25519 key.
        store: its durable record of releases.
        roster: Ed25519 public keys of all nodes that the round asks, by name: pinned, not as sent.
        cohort: the numbers that were agreed on.
    """

    name: str
    signer: Signer
    store: ReleaseStore
    roster: Mapping[str, bytes]
    cohort: Cohort


@dataclass(frozen=True)
class NodeSecrets:
    """A node's secrets of one sum; written to disk they are for the owner's eyes only (mode 0600).

    Attributes:
        context: the terms.
        name: this node.
        mask_key: X25519 private key of the pairwise masks.
        share_key: X25519 private key under which shares travel.
        seed: of the mask that the node adds on its own.
        advertisement: what the node has sent first.
        peers: verified advertisements by name, this node's included; empty before `share`.
        messages: the shares that this node has dealt, encrypted, by holder.
        shares: the shares that this node holds, 64 bytes by dealer; empty before `mask`.
        receipt: what was sent along with the masked vector.
        survivors: the set that this node has signed; empty before `agree`.
    """

    context: SecureContext
    name: str
    mask_key: bytes = field(repr=False)
    share_key: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    advertisement: bytes = field(repr=False)
    peers: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    messages: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    shares: Mapping[str, bytes] = field(default_factory=dict[str, bytes], repr=False)
    receipt: bytes = field(default=b"", repr=False)
    survivors: tuple[str, ...] = ()

    @property
    def participants(self) -> tuple[str, ...]:
        """The nodes against which this node has masked, itself included, in the order of the names."""
        return tuple(sorted(self.shares))

    def to_bytes(self) -> bytes:
        """JSON; keep it where only the owner can read it."""
        fields: dict[str, Any] = {name: getattr(self, name).hex() for name in SECRETS}
        for name, stored_name in MAPPINGS.items():
            fields[stored_name] = {key: value.hex() for key, value in getattr(self, name).items()}
        fields |= {
            "context": self.context.to_bytes().decode(),
            "name": self.name,
            "survivors": self.survivors,
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> NodeSecrets:
        """The secrets of `to_bytes`.

        Raises:
            SecureAggregationError: the bytes are something else.
        """
        try:
            fields = json.loads(data)
            fields |= {name: bytes.fromhex(fields[name]) for name in SECRETS}
            for name, stored_name in MAPPINGS.items():
                fields[name] = {key: bytes.fromhex(value) for key, value in fields.pop(stored_name).items()}
            fields["context"] = SecureContext.from_bytes(fields["context"].encode())
            fields["survivors"] = tuple(fields["survivors"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SecureAggregationError(
                "the stored secrets of the round cannot be read; start it anew"
            ) from error

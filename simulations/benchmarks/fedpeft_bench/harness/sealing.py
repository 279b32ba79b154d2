"""Keys and contexts of benchmarks: a full envelope needs both."""

from __future__ import annotations

from fedpeft.exchange import Context
from fedpeft.trust import Signer, Verifier

SIGNER = Signer.from_seed(b"bench")
VERIFIER = Verifier(SIGNER.public)


def context(round: int = 1, sender: str = "bench") -> Context:
    """What both ends know without being told."""
    return Context(bytes(16), round, sender, bytes(32), "up")

"""Reproducible random streams; nothing in fedpeft reads or writes a global generator.

Privacy noise and Poisson sampling never come from here: they use the operating system's entropy
(`fedpeft.privacy`).
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _digest(seed: int, round: int, node: str, purpose: str) -> bytes:
    digest = hashlib.sha256(b"fedpeft-stream-1\0")
    for part in (str(seed), str(round), node, purpose):
        encoded = part.encode()
        digest.update(struct.pack("<I", len(encoded)) + encoded)
    return digest.digest()


def stream(seed: int, round: int, node: str, purpose: str) -> np.random.Generator:
    """An independent numpy generator for each (seed, round, node, purpose).

    The four parts are hashed with SHA-256 (each with its length, so that no two tuples collide by
    concatenation) into the entropy of a PCG64 generator: the same tuple gives the same numbers on every
    machine, and another tuple gives unrelated ones.

    >>> bool(stream(0, 1, "a", "x").random() == stream(0, 1, "a", "x").random())
    True
    """
    entropy = int.from_bytes(_digest(seed, round, node, purpose), "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def torch_stream(seed: int, round: int, node: str, purpose: str) -> torch.Generator:
    """An independent torch generator on the CPU for each (seed, round, node, purpose)."""
    import torch

    value = int.from_bytes(_digest(seed, round, node, purpose)[:8], "little") >> 1
    return torch.Generator(device="cpu").manual_seed(value)

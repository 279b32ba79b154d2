"""Supports that both ends derive for themselves: no position is sent, and none tells anything of the data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedpeft.errors import ExchangeError
from fedpeft.exchange.context import Context
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import Layout
from fedpeft_kernels.golomb import Integers
from fedpeft_kernels.threshold import largest

Source = Literal["seed", "released"]

EXPLORED = 0.2
"""Share of a support of the last release that the seed draws, so that every value is sent at times."""


@dataclass(frozen=True)
class PublicSupport:
    """A share of the values, the same for all nodes of a round that have read the same broadcast.

    From ``seed`` the support is random and differs from round to round; it depends on no data. From
    ``released`` most of it is where the newest broadcast was largest, so it costs no privacy that the
    broadcast has not cost; the seed draws the rest, and more where the broadcast has few values. A node
    that was sent a whole state takes the seed's.

    Attributes:
        density: share of the values on the support; 1 is all of them.
        source: where the support comes from.
        context: what both ends know of the message; set by `at`.
        released: the newest broadcast delta, float32, shape ``(layout.size,)``; set by `at`.

    Raises:
        ExchangeError: the density is no share.
    """

    density: float
    source: Source = "seed"
    context: Context | None = None
    released: Decoded | None = None

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ExchangeError(f"density is {self.density}; it must be above 0 and at most 1")

    def at(self, context: Context, released: Decoded | None) -> PublicSupport:
        """The support of one message."""
        return replace(self, context=context, released=released if self.source == "released" else None)

    def positions(self, layout: Layout) -> Positions:
        """Increasing positions in the flat vector."""
        if self.context is None:
            raise ExchangeError("a public support needs the message's context: bind the plan with at() first")
        if self.density == 1:
            return np.arange(layout.size)
        key = hashlib.sha256(b"fedpeft-support-1\0" + layout.digest + self.context.shared()).digest()
        if self.released is None:
            return np.flatnonzero(_drawn(key, layout.size, self.density))
        count = min(round((1 - EXPLORED) * self.density * layout.size), self.released.nonzero)
        chosen = _drawn(key, layout.size, self.density - count / max(1, layout.size))
        chosen[largest(self.released.dense(), count)] = True
        return np.flatnonzero(chosen)

    def counts(self, positions: Positions, layout: Layout) -> Integers:
        """How many of the positions each tensor has, int64, shape ``(tensors,)``."""
        return np.diff(np.searchsorted(positions, layout.offsets))


def _drawn(key: bytes, size: int, density: float) -> np.ndarray:
    """Flags of a random support: each value with this probability, to a multiple of 2^-16.

    Only the raw output of the generator is used, which numpy keeps the same in all versions.
    """
    raw = np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little"))).random_raw(-(-size // 4))
    return raw.astype("<u8").view("<u2")[:size] < round(density * 65536)

"""Supports that both ends derive: no position is sent, and none reveals anything about the data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedpeft.errors import ExchangeError
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import Layout
from fedpeft.exchange.message_context import Context
from fedpeft_kernels.golomb import Integers
from fedpeft_kernels.threshold import largest

Source = Literal["seed", "released"]

EXPLORED = 0.2
"""Share of a support of the last release that the seed draws, so that every value is sent at times."""


@dataclass(frozen=True)
class PublicSupport:
    """A share of the values, the same for all nodes of a round that have read the same broadcast.

    Its size is a public constant of the layout, which the noise of a sum is accounted for. From ``seed``
    the support is random and differs from round to round; it depends on no data. From
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

    def size(self, values: int) -> int:
        """How many of ``values`` are on the support, exactly and in each round."""
        return min(values, max(1, round(self.density * values)))

    def positions(self, layout: Layout) -> Positions:
        """Increasing positions in the flat vector, int64, shape ``(size(layout.size),)``."""
        if self.context is None:
            raise ExchangeError("a public support needs the message's context: bind the plan with at() first")
        if self.density == 1:
            return np.arange(layout.size)
        key = hashlib.sha256(b"fedpeft-support-2\0" + layout.digest + self.context.shared()).digest()
        size, chosen = self.size(layout.size), np.zeros(layout.size, bool)
        if self.released is not None:
            count = min(round((1 - EXPLORED) * size), self.released.nonzero)
            chosen[largest(self.released.dense(), count)] = True
        rest = np.flatnonzero(~chosen)
        chosen[rest[_drawn(key, layout.size, rest, size - int(chosen.sum()))]] = True
        return np.flatnonzero(chosen)

    def counts(self, positions: Positions, layout: Layout) -> Integers:
        """How many of the positions each tensor has, int64, shape ``(tensors,)``."""
        return np.diff(np.searchsorted(positions, layout.offsets))


def _drawn(key: bytes, size: int, rest: Positions, count: int) -> Positions:
    """Indices into ``rest`` of the ``count`` positions whose 16 random bits are lowest; the first of equals.

    Only the raw output of the generator is used, which numpy keeps the same in all versions.
    """
    raw = np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little"))).random_raw(-(-size // 4))
    bits = raw.astype("<u8").view("<u2")[:size][rest]
    edge = np.partition(bits, count - 1)[count - 1] if count else 0
    below = np.flatnonzero(bits < edge)
    return np.concatenate([below, np.flatnonzero(bits == edge)[: count - len(below)]])

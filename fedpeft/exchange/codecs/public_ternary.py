"""Ternary values with public scales on a public support: integers that add up under secure aggregation.

A secure sum adds integers and shows nobody's own scale, so all nodes must share one scale per tensor before
they round. It is a power of ``2^(1/8)``, follows the nodes by votes, and starts from a public guess: each
node votes up where its values lie above the scale that they would ask for, down where below, and the votes
are summed as the values are. The rule is Lloyd's: at rest the scale is the mean magnitude of the values that
are rounded to it (Lloyd 1982), which loses the least.

Payload: one byte per value of the support, 0, 1 or 255 for 0, +1 and -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import Codec
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.support import PublicSupport
from fedpeft_kernels.golomb import Integers

if TYPE_CHECKING:
    from fedpeft.config.models import ExchangeConfig

STEPS_PER_OCTAVE = 8
ZERO_EXPONENT = 1024
"""The exponent of scale 1; exponents are natural numbers."""
UNANIMOUS = 4
"""Steps by which a scale moves when all nodes vote the same way: half an octave."""
CONTENT = 2 ** (1 / 4)
"""A node votes to stay while its ideal scale is within this factor."""


@dataclass(frozen=True)
class PublicTernary(Codec):
    """Each value of the support as the nearest of minus the scale, zero and the scale.

    Attributes:
        support: which values are carried.
        exponents: of each tensor's scale, ``2^((exponent - 1024) / 8)``; set by `at_scales`.
    """

    support: PublicSupport
    exponents: tuple[int, ...] = ()

    name = "public-ternary"
    wire_id = 7
    sends_all = False
    same_values = True
    fills_zeros = False

    def __repr__(self) -> str:
        return f"PublicTernary(density={self.support.density}, source={self.support.source!r})"

    @classmethod
    def of_sum(cls, exchange: ExchangeConfig) -> PublicTernary:
        """The codec of a run's secure sums."""
        return cls(PublicSupport(exchange.secure.share, exchange.up.support))

    @property
    def shared_support(self) -> PublicSupport:
        """Its support."""
        return self.support

    def at(self, context: Context, released: Decoded | None = None) -> PublicTernary:
        """The codec of one message."""
        return replace(self, support=self.support.at(context, released))

    def at_scales(self, exponents: Sequence[int]) -> PublicTernary:
        """The codec of one round's scales."""
        if not all(0 <= exponent <= 2 * ZERO_EXPONENT for exponent in exponents):
            raise ExchangeError(f"a scale's exponent must be 0 to {2 * ZERO_EXPONENT}")
        return replace(self, exponents=tuple(exponents))

    def integers(self, values: FloatVector, layout: Layout) -> NDArray[np.int8]:
        """-1, 0 or 1 for each value of the support, in order."""
        positions, scales = self._places(layout)
        chosen = values[positions]
        return (np.sign(chosen) * (np.abs(chosen) > scales / 2)).astype(np.int8)

    def votes(self, values: FloatVector, layout: Layout) -> NDArray[np.int8]:
        """Per tensor 1 to raise its scale, -1 to lower it, 0 to leave it; shape ``(tensors,)``.

        A tensor whose values all round to zero votes down; one without values on the support does not vote.
        """
        positions, scales = self._places(layout)
        magnitudes, counts = np.abs(values[positions]).astype(np.float64), self._counts(positions, layout)
        rounded = magnitudes > scales / 2
        tensor = np.repeat(np.arange(counts.size), counts)
        size = np.bincount(tensor, rounded, counts.size)
        ideal = np.bincount(tensor, magnitudes * rounded, counts.size) / np.maximum(size, 1)
        ratio = ideal / self.scales
        return (np.where(ratio > CONTENT, 1, np.where(ratio < 1 / CONTENT, -1, 0)) * (counts > 0)).astype(
            np.int8
        )

    @property
    def scales(self) -> FloatVector:
        """Scale of each tensor, float32, shape ``(tensors,)``."""
        return scales_of(self.exponents)

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """The nearest of minus the scale, zero and the scale on the support, zero elsewhere."""
        positions, scales = self._places(layout)
        return Decoded(layout, self.integers(values, layout) * scales, positions).dense()

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The canonical payload; raises `ExchangeError` for values that `fit` does not make."""
        if not np.array_equal(self.fit(values, layout), values):
            raise ExchangeError("public-ternary carries the values of its scales only; put Quantise() before")
        return self.integers(values, layout).tobytes()

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """The values; every accepted payload is the canonical one."""
        positions, scales = self._places(layout)
        integers = np.frombuffer(payload, np.int8)
        if integers.size != positions.size or np.any(np.abs(integers.astype(np.int16)) > 1):
            raise EnvelopeError(
                f"a payload of {positions.size} bytes 0, 1 or 255 is needed, got {integers.size}"
            )
        return Decoded(layout, integers * scales, positions)

    def max_bytes(self, layout: Layout) -> int:
        """One byte per value."""
        return layout.size

    def values(self, integers: NDArray[np.int64], layout: Layout) -> FloatVector:
        """Sums of integers times their scales, float32, shape ``(layout.size,)``."""
        positions, scales = self._places(layout)
        return Decoded(layout, (integers * scales.astype(np.float64)).astype(np.float32), positions).dense()

    def _places(self, layout: Layout) -> tuple[Positions, FloatVector]:
        """Positions of the support and the scale of each."""
        if len(self.exponents) != len(layout.names):
            raise ExchangeError(
                f"{len(layout.names)} tensors need as many public scales, got {len(self.exponents)}"
            )
        positions = self.support.positions(layout)
        return positions, np.repeat(self.scales, self._counts(positions, layout))

    def _counts(self, positions: Positions, layout: Layout) -> Integers:
        return self.support.counts(positions, layout)


def scales_of(exponents: Sequence[int]) -> FloatVector:
    """The scales of exponents, float32."""
    steps = (np.asarray(exponents, np.float64) - ZERO_EXPONENT) / STEPS_PER_OCTAVE
    return np.exp2(steps).astype(np.float32)


def exponent_of(scale: float) -> int:
    """The exponent nearest to a positive scale."""
    return int(np.clip(round(STEPS_PER_OCTAVE * np.log2(scale)) + ZERO_EXPONENT, 0, 2 * ZERO_EXPONENT))


def moved(exponents: Sequence[int], votes: NDArray[np.int64], voters: int) -> list[int]:
    """The exponents after a vote: by half an octave where all agree, by less where they do not."""
    change = np.rint(UNANIMOUS * votes / voters).astype(int)
    return [int(e) for e in np.clip(np.asarray(exponents, int) + change, 0, 2 * ZERO_EXPONENT)]

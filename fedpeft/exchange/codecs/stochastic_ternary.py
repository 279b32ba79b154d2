"""Ternary values that are drawn at random and right on average."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.errors import ExchangeError
from fedpeft.exchange.codecs.bitfields import fitting
from fedpeft.exchange.codecs.ternary import Ternary
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.transforms import Metrics, State, Transform, Update, check_density
from fedpeft_kernels.ternary import SIGNIFICAND_BITS, mean_magnitudes

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig


@dataclass(frozen=True)
class StochasticTernarise(Transform):
    """Give every tensor one magnitude at random, right on average: no residual is needed.

    A value ``x`` becomes ``sign(x) s`` with probability ``|x| / s``, else 0, where ``s`` is the tensor's
    largest magnitude or, if that is more, its mean magnitude over ``density``: the expected share of nonzero
    values is at most the density. ``s`` is rounded up to 7 significant bits; a tensor more than 15 octaves
    below the largest becomes zero. Source: TernGrad (Wen et al.
    2017, arXiv 1705.07878), with a bound on the density.

    The draws are reproducible: they come from the run, the round and the sender. The norm grows, by
    ``sqrt(s / mean magnitude)`` in the square mean, so that a clip before it bounds nothing.

    Attributes:
        density: bound on the expected share of nonzero values, per tensor.
        context: what both ends know of the message; set by `at`.
    """

    density: float
    context: Context | None = None

    name = "stochastic_ternarise"
    lengthens = True

    def __post_init__(self) -> None:
        check_density(self.density)

    def __repr__(self) -> str:
        return f"StochasticTernarise(density={self.density})"

    @property
    def rounds_for(self) -> Ternary:
        """Ternary."""
        return Ternary()

    def at(self, context: Context, released: Decoded | None = None) -> StochasticTernarise:
        """The step for one message."""
        return replace(self, context=context)

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure the ``density`` that came out."""
        if self.context is None:
            raise ExchangeError("stochastic_ternarise needs the message's context: bind the plan with at()")
        key = hashlib.sha256(b"fedpeft-ternarise-1\0" + self.context.encode()).digest()
        draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little"))))
        layout, magnitudes = update.layout, np.abs(update.values)
        scales = np.repeat(self._scales(magnitudes, layout), layout.sizes)
        support = np.flatnonzero((draws.random(layout.size, np.float32) * scales < magnitudes) & (scales > 0))
        values = np.zeros(layout.size, np.float32)
        values[support] = np.copysign(scales[support], update.values[support])
        return update.with_values(values, support), {"density": support.size / max(1, layout.size)}

    def _scales(self, magnitudes: FloatVector, layout: Layout) -> FloatVector:
        means = mean_magnitudes(magnitudes, layout.sizes)
        peaks = np.maximum.reduceat(magnitudes, layout.offsets[:-1]) if layout.size else means
        scales = np.maximum(peaks, means / self.density) * (1 + 2.0 ** (1 - SIGNIFICAND_BITS))
        if scales.max(initial=0) > np.finfo(np.float32).max:
            raise ExchangeError("a value is too large for stochastic ternary; clip the update before")
        return fitting(scales)


class StochasticTernary(Ternary):
    """A choice of settings: the envelopes are those of ternary, the values are rounded at random."""

    error_feedback = False

    @classmethod
    def configured(cls, direction: DirectionConfig) -> Ternary:
        """Ternary itself."""
        return Ternary()

    @classmethod
    def transforms(cls, direction: DirectionConfig) -> tuple[Transform, ...]:
        """One random step."""
        return (StochasticTernarise(direction.density),)

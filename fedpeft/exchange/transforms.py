"""The steps an update passes on its way out.

A transform is a frozen dataclass with a name and ``apply(update, state) -> (update, metrics)``. It is
deterministic: same update and state, same result. State belongs to the node (or to the coordinator, for the
broadcast) and lives as long as the run: a mapping from name to array, kept by whoever runs the plan.

All transforms here are post-processing: they read the update and the state and nothing else. On an update
that DP-SGD has made private they therefore cost no privacy, error feedback included, because the residual is
then a function of private outputs only.
"""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ExchangeError
from fedpeft.exchange.codecs.base import AnyOf, Codec
from fedpeft.exchange.codecs.bitfields import fitting
from fedpeft.exchange.codecs.sign import MaskedSign, Sign
from fedpeft.exchange.codecs.ternary import Ternary
from fedpeft.exchange.decoded import Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.update import Update
from fedpeft_kernels.ternary import SIGNIFICAND_BITS, mean_magnitudes
from fedpeft_kernels.threshold import largest

Metrics = dict[str, float]
State = MutableMapping[str, NDArray[Any]]

RESIDUAL = "residual"
"""State: what was meant to be sent and has not been, float32, shape ``(layout.size,)``."""
INTENDED = "intended"
"""State, only while a plan runs: the update with the residual added."""


class Transform(Protocol):
    """One step of an exchange plan."""

    @property
    def name(self) -> str:
        """Name of the step and of the audit's tap after it."""
        ...

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """The changed update and what was measured on the way."""
        ...


@dataclass(frozen=True)
class Clip:
    """Scale the update so that its L2 norm is at most ``norm``."""

    norm: float

    @property
    def name(self) -> str:
        """Name of the step."""
        return "clip"

    def __post_init__(self) -> None:
        if not 0 < self.norm < np.inf:
            raise ExchangeError(f"clip norm is {self.norm}; it must be positive and finite")

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure ``norm`` before, scale down if it is too large."""
        norm = l2(update.values)
        if norm <= self.norm:
            return update, {"norm": norm}
        scaled = update.values.astype(np.float64) * (self.norm / norm)
        return update.with_values(scaled.astype(np.float32)), {"norm": norm}


@dataclass(frozen=True)
class AddResidual:
    """Add what earlier rounds held back (error feedback; Karimireddy et al. 2019, arXiv 1901.09847)."""

    @property
    def name(self) -> str:
        """Name of the step."""
        return "add_residual"

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Add the residual and note the intended values for `KeepResidual`."""
        residual = state.get(RESIDUAL)
        values = update.values
        if residual is not None:
            if residual.shape != values.shape or residual.dtype != np.float32:
                raise ExchangeError(
                    f"the stored residual has shape {residual.shape}, the update {values.shape}; "
                    "it belongs to another adapter: start a new state"
                )
            values = values + residual
        state[INTENDED] = values
        return update.with_values(values), {"norm": l2(values)}


@dataclass(frozen=True)
class KeepResidual:
    """Keep the difference between what was intended and what will be decoded, for the next round."""

    @property
    def name(self) -> str:
        """Name of the step."""
        return "keep_residual"

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Write the residual; the update passes unchanged."""
        if INTENDED not in state:
            raise ExchangeError("keep_residual needs add_residual before it")
        residual = state.pop(INTENDED) - update.values
        state[RESIDUAL] = residual
        return update, {"norm": l2(residual)}


@dataclass(frozen=True)
class Sparsify:
    """Keep the share ``density`` of largest magnitudes over the whole update; the count is exact.

    One threshold for all tensors: tensors that moved more get more of the budget (STC, arXiv 1903.02891;
    ComPEFT, arXiv 2311.13171). Of equal magnitudes the lowest index is kept. At least one value is kept.
    """

    density: float

    @property
    def name(self) -> str:
        """Name of the step."""
        return "sparsify"

    def __post_init__(self) -> None:
        _check_density(self.density)

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Set all other values to zero."""
        size = update.values.size
        if self.density == 1:
            return update, {"density": np.count_nonzero(update.values) / max(1, size)}
        support = largest(update.values, min(size, max(1, round(self.density * size))))
        values, support = _kept(update.values, support)
        return update.with_values(values, support), {"density": support.size / max(1, size)}


@dataclass(frozen=True)
class Ternarise:
    """Give every nonzero value its sign times its tensor's mean magnitude as the codec carries it."""

    @property
    def name(self) -> str:
        """Name of the step."""
        return "ternarise"

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure nothing."""
        return _fitted(Ternary(), update), {}


@dataclass(frozen=True)
class StochasticTernarise:
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

    @property
    def name(self) -> str:
        """Name of the step."""
        return "stochastic_ternarise"

    def __post_init__(self) -> None:
        _check_density(self.density)

    def __repr__(self) -> str:
        return f"StochasticTernarise(density={self.density})"

    def at(self, context: Context) -> StochasticTernarise:
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


@dataclass(frozen=True)
class Quantise:
    """Round to what a codec carries, so that the residual is taken from what the receiver decodes."""

    codec: Codec

    @property
    def name(self) -> str:
        """Name of the step."""
        return "quantise"

    def __post_init__(self) -> None:
        if isinstance(self.codec, Ternary | AnyOf):
            step = "Ternarise()" if isinstance(self.codec, Ternary) else "Choose()"
            raise ExchangeError(f"Quantise is not for the {self.codec.name} codec; use {step}")

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure nothing."""
        return _fitted(self.codec, update), {}


@dataclass(frozen=True)
class Choose:
    """Take the codec with the most energy per bit for this very vector.

    Every member carries the vector at about the cost of ternary at ``density``; energy is the share of the
    vector's squared norm that is decoded, bits are those of the bytes written.

    Attributes:
        codec: the members to choose from.
        density: of ternary; sets the budget.
    """

    codec: AnyOf
    density: float

    @property
    def name(self) -> str:
        """Name of the step."""
        return "choose"

    def __post_init__(self) -> None:
        _check_density(self.density)

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure ``codec``, the number of what is written, and each member's ``energy_per_bit``."""
        results = {member.name: self._tried(member, update) for member in self.codec.members}
        best, _ = max(results.values(), key=lambda result: result[1])
        energy = {f"energy_per_bit.{name}": score for name, (_, score) in results.items()}
        written = self.codec.choose(best.values, best.layout, best.support)
        return best, {"codec": float(written.id), **energy}

    def _tried(self, codec: Codec, update: Update) -> tuple[Update, float]:
        sparse = update
        if share := _SHARES.get(codec.name):
            sparse, _ = Sparsify(self.density * share).apply(update, {})
        fitted = _fitted(codec, sparse)
        bits = 8 * len(codec.encode(fitted.values, fitted.layout, fitted.support))
        whole, lost = l2(update.values) ** 2, l2(update.values - fitted.values) ** 2
        return fitted, (1 - lost / whole) * update.layout.size / bits if whole else 0.0


_SHARES = {"ternary": 1.0, "dead-zone": 0.75}
"""Density of the sparse members of `Choose` over ternary's: seven levels take more bits per value."""


def l2(values: NDArray[np.float32]) -> float:
    """L2 norm, summed in float64."""
    return float(np.sqrt(np.einsum("i,i", values, values, dtype=np.float64)))


def _kept(values: FloatVector, support: Positions) -> tuple[FloatVector, Positions]:
    """Values outside of the support set to zero, and the support without zeros."""
    numbers = values[support]
    if not numbers.all():
        support, numbers = support[numbers != 0], numbers[numbers != 0]
    result = np.zeros_like(values)
    result[support] = numbers
    return result, support


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ExchangeError(f"density is {density}; it must be above 0 and at most 1")


def _fitted(codec: Codec, update: Update) -> Update:
    """The update as the codec carries it."""
    values = codec.fit(update.values, update.layout, update.support)
    if update.support is None or isinstance(codec, Sign | MaskedSign):  # these also fill zeros
        return update.with_values(values)
    support = update.support
    if not (carried := values[support] != 0).all():
        support = support[carried]
    return update.with_values(values, support)

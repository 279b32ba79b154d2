"""An update, and the steps that it passes on its way out.

A transform is a frozen dataclass with a name and ``apply(update, state) -> (update, metrics)``. It is
deterministic: same update and state, same result. State belongs to the node (or to the coordinator, for the
broadcast) and lives as long as the run: a mapping from name to array, kept by whoever runs the plan.

All transforms here are post-processing: they read the update and the state and nothing else. On an update
that DP-SGD has made private they therefore cost no privacy, error feedback included, because the residual is
then a function of private outputs only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ExchangeError
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft_kernels.threshold import largest

if TYPE_CHECKING:
    from fedpeft.exchange.codecs.base import Codec

Metrics = dict[str, float]
State = MutableMapping[str, NDArray[Any]]

RESIDUAL = "residual"
"""State: what was meant to be sent and has not been, float32, shape ``(layout.size,)``."""
INTENDED = "intended"
"""State, only while a plan runs: the update with the residual added."""


@dataclass(frozen=True)
class Update:
    """``trained - received`` of one node in one round, as a flat vector in the agreed layout.

    Attributes:
        layout: names and shapes of the tensors.
        values: float32, shape ``(layout.size,)``.
        round: 1-based round number.
        steps: number of local optimiser steps.
        weight: public weight of this node in the mean; not a sample count unless that is public.
        support: increasing positions outside of which all values are zero, where a step has found them.
    """

    layout: Layout
    values: FloatVector
    round: int
    steps: int
    weight: float = 1.0
    support: Positions | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (self.layout.size,):
            raise ExchangeError(f"an update needs {self.layout.size} values, got shape {self.values.shape}")

    def with_values(self, values: FloatVector, support: Positions | None = None) -> Update:
        """The same update with other values."""
        return replace(self, values=values, support=support)

    def tensors(self) -> dict[str, FloatVector]:
        """Views of the values by tensor name, in their shapes."""
        return self.layout.split(self.values)


class Transform(ABC):
    """One step of an exchange plan; a step that declares nothing is taken for the most dangerous.

    Attributes:
        name: of the step and of the audit's tap after it.
        post_processing: it reads the update and the plan's state and nothing else, so that it costs no
            privacy where the update is private already.
        lengthens: its result may be longer than its input, so that a bound on the norm is lost.
    """

    name: ClassVar[str]
    post_processing: ClassVar[bool] = False
    lengthens: ClassVar[bool] = False

    @property
    def rounds_for(self) -> Codec | None:
        """The codec to whose values it rounds; None: it rounds to none."""
        return None

    def at(self, context: Context, released: Decoded | None = None) -> Transform:
        """The step for one message; see `ExchangePlan.at`."""
        return self

    @abstractmethod
    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """The changed update and what was measured on the way."""


@dataclass(frozen=True)
class Clip(Transform):
    """Scale the update so that its L2 norm is at most ``norm``."""

    norm: float

    name = "clip"
    post_processing = True

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
class AddResidual(Transform):
    """Add what earlier rounds held back (error feedback; Karimireddy et al. 2019, arXiv 1901.09847)."""

    name = "add_residual"
    post_processing = True

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
class KeepResidual(Transform):
    """Keep the difference between what was intended and what will be decoded, for the next round."""

    name = "keep_residual"
    post_processing = True

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Write the residual; the update passes unchanged."""
        if INTENDED not in state:
            raise ExchangeError("keep_residual needs add_residual before it")
        residual = state.pop(INTENDED) - update.values
        state[RESIDUAL] = residual
        return update, {"norm": l2(residual)}


@dataclass(frozen=True)
class Sparsify(Transform):
    """Keep the share ``density`` of largest magnitudes over the whole update; the count is exact.

    One threshold for all tensors: tensors that moved more get more of the budget (STC, arXiv 1903.02891;
    ComPEFT, arXiv 2311.13171). Of equal magnitudes the lowest index is kept. At least one value is kept.
    """

    density: float

    name = "sparsify"
    post_processing = True

    def __post_init__(self) -> None:
        check_density(self.density)

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Set all other values to zero."""
        size = update.values.size
        if self.density == 1:
            return update, {"density": np.count_nonzero(update.values) / max(1, size)}
        support = largest(update.values, min(size, max(1, round(self.density * size))))
        values, support = _on_support(update.values, support)
        return update.with_values(values, support), {"density": support.size / max(1, size)}


class Rounding(Transform):
    """Round to what a codec carries, so that the residual is taken from what the receiver decodes."""

    post_processing = True

    @property
    @abstractmethod
    def rounds_for(self) -> Codec:
        """The codec to whose values it rounds."""

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure nothing."""
        return fitted(self.rounds_for, update), {}


@dataclass(frozen=True)
class Quantise(Rounding):
    """Round to what a codec carries that has no step of its own."""

    codec: Codec

    name = "quantise"

    def __post_init__(self) -> None:
        if self.codec.own_step is not None:
            step = f"{self.codec.own_step.capitalize()}()"
            raise ExchangeError(f"Quantise is not for the {self.codec.name} codec; use {step}")

    @property
    def rounds_for(self) -> Codec:
        """Its codec."""
        return self.codec

    def at(self, context: Context, released: Decoded | None = None) -> Quantise:
        """The step with the codec of one message."""
        return Quantise(self.codec.at(context, released))


def l2(values: NDArray[np.float32]) -> float:
    """L2 norm, summed in float64."""
    return float(np.sqrt(np.einsum("i,i", values, values, dtype=np.float64)))


def _on_support(values: FloatVector, support: Positions) -> tuple[FloatVector, Positions]:
    """Values outside of the support set to zero, and the support without zeros."""
    numbers = values[support]
    if not numbers.all():
        support, numbers = support[numbers != 0], numbers[numbers != 0]
    result = np.zeros_like(values)
    result[support] = numbers
    return result, support


def check_density(density: float) -> None:
    """Refuse what is no share."""
    if not 0 < density <= 1:
        raise ExchangeError(f"density is {density}; it must be above 0 and at most 1")


def fitted(codec: Codec, update: Update) -> Update:
    """The update as the codec carries it."""
    values = codec.fit(update.values, update.layout, update.support)
    if update.support is None or codec.fills_zeros:
        return update.with_values(values)
    support = update.support
    if not (carried := values[support] != 0).all():
        support = support[carried]
    return update.with_values(values, support)

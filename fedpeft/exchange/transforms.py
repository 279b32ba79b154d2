"""The steps an update passes on its way out.

A transform is a frozen dataclass with a name and ``apply(update, state) -> (update, metrics)``. It is
deterministic: same update and state, same result. State belongs to the node (or to the coordinator, for the
broadcast) and lives as long as the run: a mapping from name to array, kept by whoever runs the plan.

All transforms here are post-processing: they read the update and the state and nothing else. On an update
that DP-SGD has made private they therefore cost no privacy, error feedback included, because the residual is
then a function of private outputs only.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ExchangeError
from fedpeft.exchange.codecs import codec_named
from fedpeft.exchange.update import Update
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
        if not 0 < self.density <= 1:
            raise ExchangeError(f"density is {self.density}; it must be above 0 and at most 1")

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Set all other values to zero."""
        size = update.values.size
        count = min(size, max(1, round(self.density * size)))
        values = np.where(largest(update.values, count), update.values, np.float32(0))
        return update.with_values(values), {"density": np.count_nonzero(values) / max(1, size)}


@dataclass(frozen=True)
class Ternarise:
    """Give every nonzero value its sign times its tensor's mean magnitude as the codec carries it."""

    @property
    def name(self) -> str:
        """Name of the step."""
        return "ternarise"

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure ``error``: the L2 norm of the change over that of the input."""
        return _fitted("ternary", update)


@dataclass(frozen=True)
class Quantise:
    """Round to what a dense codec carries, so that the residual is taken from what the receiver decodes."""

    codec: str

    @property
    def name(self) -> str:
        """Name of the step."""
        return "quantise"

    def __post_init__(self) -> None:
        if codec_named(self.codec).name == "ternary":
            raise ExchangeError("Quantise is for dense codecs; use Ternarise() for the ternary codec")

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure ``error``: the L2 norm of the change over that of the input."""
        return _fitted(self.codec, update)


def l2(values: NDArray[np.float32]) -> float:
    """L2 norm, summed in float64."""
    return float(np.sqrt(np.square(values, dtype=np.float64).sum()))


def _fitted(codec: str, update: Update) -> tuple[Update, Metrics]:
    values = codec_named(codec).fit(update.values, update.layout)
    norm = l2(update.values)
    return update.with_values(values), {"error": l2(update.values - values) / norm if norm else 0.0}

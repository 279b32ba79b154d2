"""What stands between a hostile update and the mean: a bound on norms, and means that withstand outliers.

Both work on decoded values, where a value that a codec did not send is 0. Neither is possible where single
updates must not be looked at: under secure aggregation nobody sees one, and under a trusted coordinator's
noise (which cuts each update to its clip) the choice of one update must not depend on another.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.aggregation import Contribution
from fedpeft.aggregation.base import AggregationRule
from fedpeft.aggregation.server_optimisers import Vector
from fedpeft.config import Config
from fedpeft.config.models import FederationConfig
from fedpeft.errors import ExchangeError
from fedpeft.exchange import Decoded
from fedpeft.plugins import ADAPTER_METHODS, AGGREGATION_RULES, AUTO

LEAST_NORMS = 3
"""Fewer updates have no median that one of them cannot set."""
MOST_COMPARED = 100
"""Of more nodes a single one weighs little, and their updates do not fit into memory together."""
_STEPS = 200  # Weiszfeld's, of numbers of nodes only
_DIGITS = 9  # of a weight: rounding errors of a sum, which differ between processors, are not among them
_NEAREST = 1e-6  # of the median norm: an update closer than that does not take all the weight
_BLOCK = 1 << 16  # values of all nodes that are sorted at a time


def norm_of(values: Decoded) -> float:
    """L2 norm, summed in float64 without a copy of that width."""
    return math.sqrt(float(np.einsum("i,i->", values.numbers, values.numbers, dtype=np.float64)))


def bounds(updates: int, federation: FederationConfig) -> bool:
    """Whether `too_long` could refuse any of so many updates."""
    return federation.norm_bound > 0 or (federation.norm_ratio > 0 and updates >= LEAST_NORMS)


def too_long(norms: Mapping[str, float], federation: FederationConfig) -> dict[str, str]:
    """The updates that are refused for their length, with the cause, by node.

    First those above ``norm_bound`` (under norm-clip they are cut instead), then those above ``norm_ratio``
    times the lower median of the others, if these are at least three. While fewer than half of the updates
    are hostile the median lies between honest norms.
    """
    cut = federation.robust != AUTO and AGGREGATION_RULES[federation.robust].cuts
    bound = 0.0 if cut else federation.norm_bound
    causes = {
        name: f"its update has norm {norm:.3g}, federation.norm_bound is {bound:g}"
        for name, norm in norms.items()
        if bound and norm > bound
    }
    left = {name: norm for name, norm in norms.items() if name not in causes}
    if len(left) < LEAST_NORMS or not federation.norm_ratio:
        return causes
    median = sorted(left.values())[(len(left) - 1) // 2]
    limit = federation.norm_ratio * median
    cause = f"{federation.norm_ratio:g} times the round's median {median:.3g} is allowed"
    long = {name: norm for name, norm in left.items() if limit and norm > limit}
    return causes | {name: f"its update has norm {norm:.3g}, {cause}" for name, norm in long.items()}


class _InMemory(AggregationRule):
    """A rule that a minority of hostile updates moves by little; all nodes count alike.

    All updates of a round are in memory, as sparse as their codec has them: up to 4 bytes per value and node
    for a dense one, 8 per value sent for a sparse one; beside them one block of 65,536 values of all nodes.
    """

    def mean(
        self, size: int, contributions: Iterable[Contribution]
    ) -> tuple[Vector, AggregationRule, dict[str, Any]]:
        """The robust mean; itself; and ``trimmed``, ``clipped`` or ``weights``."""
        mean, facts = self._of_all(size, _gathered(size, contributions))
        return mean, self, facts

    @abstractmethod
    def _of_all(self, size: int, updates: list[Decoded]) -> tuple[Vector, dict[str, Any]]:
        """The mean of a round's updates, and facts of it."""


@dataclass(frozen=True)
class Median(_InMemory):
    """The median of each value (Yin et al. 2018, arXiv 1803.01498)."""

    def _of_all(self, size: int, updates: list[Decoded]) -> tuple[Vector, dict[str, Any]]:
        return _trimmed(size, updates, (len(updates) - 1) // 2)


@dataclass(frozen=True)
class TrimmedMean(_InMemory):
    """The mean of each value without the ``trim`` share of nodes, below 1/2, on either side (the same)."""

    trim: float = 0.2

    @classmethod
    def configured(cls, federation: FederationConfig) -> TrimmedMean:
        """With ``federation.trim``."""
        return cls(federation.trim)

    def _of_all(self, size: int, updates: list[Decoded]) -> tuple[Vector, dict[str, Any]]:
        return _trimmed(size, updates, int(self.trim * len(updates)))


@dataclass(frozen=True)
class NormClip(_InMemory):
    """The mean of updates cut to one length, ``bound`` or, where that is 0, the median of the round's norms.

    Source: Sun et al. 2019, arXiv 1911.07963.
    """

    bound: float = 0.0

    needs_dense = False
    cuts = True

    @classmethod
    def configured(cls, federation: FederationConfig) -> NormClip:
        """With ``federation.norm_bound``."""
        return cls(federation.norm_bound)

    def _of_all(self, size: int, updates: list[Decoded]) -> tuple[Vector, dict[str, Any]]:
        mean, clipped = _clipped(size, updates, self.bound)
        return mean, {"clipped": clipped}


@dataclass(frozen=True)
class GeometricMedian(_InMemory):
    """Of updates cut to the median of the round's norms, the point with the least sum of distances to them.

    By smoothed Weiszfeld steps (Pillutla et al. 2022, arXiv 1912.13445); a weighted mean of them, so a value
    that few nodes send is not lost. Fewer than half of the nodes move it by no more than the others differ.
    """

    needs_dense = False

    def _of_all(self, size: int, updates: list[Decoded]) -> tuple[Vector, dict[str, Any]]:
        mean, weights = _geometric_median(size, updates)
        return mean, {"weights": [round(weight, 4) for weight in weights]}


def rule_of(config: Config) -> AggregationRule:
    """The rule of a run.

    ``auto`` is the geometric median of 3 to `MOST_COMPARED` nodes whose single updates may be compared, else
    the mean.
    """
    name = config.federation.robust
    if name == AUTO:
        name = "geometric-median" if _comparable(config) else "none"
    return AGGREGATION_RULES[name].configured(config.federation)


def _comparable(config: Config) -> bool:
    """Whether single updates may be looked at, mean the same on all nodes, and fit into memory together."""
    hidden = config.exchange.secure.enabled or config.privacy.trust == "central"
    factors = ADAPTER_METHODS[config.adapter.key].sends_factors
    return not hidden and not factors and LEAST_NORMS <= config.federation.nodes <= MOST_COMPARED


def _gathered(size: int, contributions: Iterable[Contribution]) -> list[Decoded]:
    updates: dict[str, Decoded] = {}
    for node, _, values in contributions:
        if updates and node <= next(reversed(updates)):
            raise ExchangeError(f"each node counts once, in rising order; {node!r} came late")
        if values.layout.size != size:
            raise ExchangeError(f"expected {size} values of {node!r}, got {values.layout.size}")
        updates[node] = values
    if not updates:
        raise ExchangeError("there is nothing to aggregate: no node contributed")
    return list(updates.values())


def _blocks(size: int, updates: list[Decoded]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Some values of all nodes at a time: where they start, and float32, shape ``(nodes, values)``."""
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        yield start, np.stack([_between(update, start, end) for update in updates])


def _between(values: Decoded, start: int, end: int) -> NDArray[np.float32]:
    """The values at ``start`` up to ``end``, dense."""
    if values.positions is None:
        return values.numbers[start:end]
    first, last = np.searchsorted(values.positions, [start, end])
    block = np.zeros(end - start, np.float32)
    block[values.positions[first:last].astype(np.intp) - start] = values.numbers[first:last]
    return block


def _trimmed(size: int, updates: list[Decoded], cut: int) -> tuple[Vector, dict[str, Any]]:
    """The mean of each value without the ``cut`` lowest and highest, and how many that are."""
    mean = np.empty(size, np.float64)
    for start, block in _blocks(size, updates):
        ordered = np.sort(block, axis=0)[cut : len(updates) - cut]
        mean[start : start + block.shape[1]] = ordered.mean(axis=0, dtype=np.float64)
    return mean, {"trimmed": 2 * cut}


def _geometric_median(size: int, updates: list[Decoded]) -> tuple[Vector, list[float]]:
    """The geometric median of updates cut to their median length, and the weight of each update in it.

    All distances between a weighted mean and the updates follow from their inner products, so each step
    works on numbers of nodes, not of values.
    """
    products = np.zeros((len(updates), len(updates)))
    for _, block in _blocks(size, updates):
        products += np.einsum("iv,jv->ij", block, block, dtype=np.float64)
    norms = np.sqrt(np.diagonal(products))
    longest = float(np.median(norms))
    cuts = longest / np.maximum(norms, longest) if longest else np.ones(len(updates))
    weights = (cuts * _weiszfeld(products * np.outer(cuts, cuts))).tolist()
    mean = np.zeros(size, np.float64)
    for update, weight in zip(updates, weights, strict=True):
        at = slice(None) if update.positions is None else update.positions.astype(np.intp)
        mean[at] += weight * update.numbers.astype(np.float64)
    return mean, weights


def _weiszfeld(products: Vector) -> Vector:
    """Weights of the geometric median, float64, shape ``(nodes,)``, from all inner products."""
    count = len(products)
    weights = np.full(count, 1 / count)
    squares = np.diagonal(products)
    nearest = _NEAREST * math.sqrt(float(np.median(squares))) or 1.0
    for _ in range(_STEPS):
        distances = np.sqrt(np.maximum(squares - 2 * products @ weights + weights @ products @ weights, 0.0))
        pulls = 1 / np.maximum(distances, nearest)
        weights = pulls / pulls.sum()
    return np.round(weights, _DIGITS) / np.round(weights, _DIGITS).sum()


def _clipped(size: int, updates: list[Decoded], bound: float) -> tuple[Vector, int]:
    """The mean of updates cut to a length, and how many were cut."""
    norms = [norm_of(update) for update in updates]
    length = bound or float(np.median(norms))
    total = np.zeros(size, np.float64)
    for update, norm in zip(updates, norms, strict=True):
        factor = length / norm if norm > length else 1.0
        at = slice(None) if update.positions is None else update.positions.astype(np.intp)
        total[at] += factor * update.numbers.astype(np.float64)
    return total / len(updates), sum(norm > length for norm in norms)

"""Aggregating LoRA factors: exact stacking and re-projection, in numpy and without a model.

Averaging A and B apart is not averaging their products: for four random clients the mean is off by half.
Stacking (FLoRA, arXiv 2409.05976) keeps the sum of products exactly at the price of rank; re-projection
(FlexLoRA, arXiv 2402.11505) cuts the same sum back to a rank by a singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft.aggregation.mean import Contribution, normalised
from fedpeft.errors import ExchangeError
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.rng import stream

Pair = tuple[FloatVector, FloatVector]
Wide = NDArray[np.float64]
Factors = tuple[Wide, Wide]


@dataclass(frozen=True)
class FactorState:
    """The federation's weight change as factors: per module ``B @ A``, LoRA's scaling included.

    Attributes:
        factors: module name to (A of shape ``(R, in)``, B of shape ``(out, R)``), float32; R may be 0 and
            may differ between modules.
        discarded: relative Frobenius norm of what the last re-projection cut off; 0 under stack.
    """

    factors: Mapping[str, Pair]
    discarded: float = 0.0

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max((a.shape[0] for a, _ in self.factors.values()), default=0)

    def tensors(self) -> dict[str, FloatVector]:
        """Flat names to arrays, without modules of rank 0; `from_tensors` reads them back."""
        tensors: dict[str, FloatVector] = {}
        for module, (a, b) in self.factors.items():
            if a.shape[0]:
                tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        return tensors

    @property
    def layout(self) -> Layout:
        """Layout of `tensors`."""
        return Layout.of(self.tensors())

    @property
    def values(self) -> FloatVector:
        """`tensors` as one vector in the order of `layout`, float32."""
        return self.layout.flatten(self.tensors())

    def dense(self, module: str) -> Wide:
        """The weight change of one module, float64, shape ``(out, in)``."""
        a, b = self.factors[module]
        return b.astype(np.float64) @ a.astype(np.float64)


@dataclass(frozen=True)
class FactorAggregator:
    """How factors are started from, aggregated and named; both ends compute the same from the same state.

    Attributes:
        kind: stack or reproject.
        seed: seed of the streams of A.
        shapes: (module, (out, in)) pairs, sorted.
        rank: rank of the re-projected state, and of a node without an entry in ``ranks``.
        ranks: (node, rank) pairs.
        scaling: LoRA's alpha / rank on every node.
    """

    kind: Literal["stack", "reproject"]
    seed: int
    shapes: tuple[tuple[str, tuple[int, int]], ...]
    rank: int
    ranks: tuple[tuple[str, int], ...] = ()
    scaling: float = 2.0

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict(self.ranks)

    def rank_of(self, node: str) -> int:
        """Rank of a node's adapter."""
        return self._ranks.get(node, self.rank)

    def layout(self, node: str = "") -> Layout:
        """Layout of what a node sends: the changes of its A and B."""
        rank = self.rank_of(node)
        shapes = {f"{module}.lora_A.weight": (rank, width) for module, (_, width) in self.shapes}
        shapes |= {f"{module}.lora_B.weight": (out, rank) for module, (out, _) in self.shapes}
        names = tuple(sorted(shapes))
        return Layout(names, tuple(shapes[name] for name in names))

    def initial(self) -> FactorState:
        """The state before round 1: no change, rank 0."""
        return FactorState({module: _empty(out, width) for module, (out, width) in self.shapes})

    def state_layout(self, ranks: Mapping[str, int]) -> Layout:
        """Layout of a state whose modules have the given ranks."""
        return FactorState({m: _zeros(out, width, ranks[m]) for m, (out, width) in self.shapes}).layout

    def from_tensors(self, tensors: Mapping[str, FloatVector]) -> FactorState:
        """The state with these tensors; modules that are not named have rank 0.

        Raises:
            ExchangeError: a tensor is unknown or does not fit its module or its partner.
        """
        known = {f"{module}.{end}" for module, _ in self.shapes for end in ("lora_A.weight", "lora_B.weight")}
        if strangers := sorted(set(tensors) - known):
            raise ExchangeError(f"{strangers[0]!r} is not a factor of this adapter")
        return FactorState({m: _pair(m, out, width, tensors) for m, (out, width) in self.shapes})

    def start(self, state: FactorState, round: int, node: str) -> dict[str, Pair]:
        """What a node's trainable A and B begin a round with, float32, by module.

        Under stack, A is fresh from the node's stream and B is 0: the state itself stands beside them as a
        frozen adapter. Under reproject they are the state's leading components, filled up with fresh rows
        of A and zero columns of B. Round 0 without a node gives what evaluation needs.
        """
        rank = self.rank_of(node)
        return {
            module: self._start(module, shape, state, rank, (round, node)) for module, shape in self.shapes
        }

    def start_values(self, state: FactorState, round: int, node: str) -> FloatVector:
        """`start` as a vector in the layout of the node."""
        return self.layout(node).flatten(_flat(self.start(state, round, node)))

    def step(
        self, state: FactorState, round: int, contributions: Iterable[Contribution], lr: float = 1.0
    ) -> FactorState:
        """The next state: the old one plus ``lr`` times the weighted mean of the nodes' weight changes.

        Contributions are (node, weight, trained - started) in strictly rising order of node. Exact under
        stack (up to float32); under reproject exact up to the cut, whose size is ``discarded``.

        Raises:
            ExchangeError: nothing to aggregate, a bad weight, a wrong order or a vector that does not fit.
        """
        parts: dict[str, list[Factors]] = {module: [] for module, _ in self.shapes}
        for node, weight, delta in normalised(contributions):
            start = self.start(state, round, node)
            change = self.layout(node).split(delta.dense())
            for module, (a0, b0) in start.items():
                parts[module] += self._terms(lr * weight, (a0, b0), change, module)
        return self._combine(state, parts)

    def _start(
        self, module: str, shape: tuple[int, int], state: FactorState, rank: int, when: tuple[int, str]
    ) -> Pair:
        out, width = shape
        rng = stream(self.seed, when[0], when[1], f"lora-A:{module}.lora_A.weight")
        bound = width**-0.5
        a = rng.uniform(-bound, bound, (rank, width)).astype(np.float32)
        b = np.zeros((out, rank), np.float32)
        if self.kind == "reproject":
            held_a, held_b = state.factors[module]
            keep = min(rank, held_a.shape[0])
            a[:keep] = held_a[:keep]
            b[:, :keep] = held_b[:, :keep] / np.float32(self.scaling)
        return a, b

    def _terms(
        self, weight: float, start: Pair, change: Mapping[str, FloatVector], module: str
    ) -> list[Factors]:
        """A node's weight change as products: the trained one and, where it started from one, minus that."""
        a0, b0 = (factor.astype(np.float64) for factor in start)
        a = a0 + change[f"{module}.lora_A.weight"]
        b = b0 + change[f"{module}.lora_B.weight"]
        factor = weight * self.scaling
        terms = [(a, factor * b)]
        return terms + ([(a0, -factor * b0)] if b0.any() else [])

    def _combine(self, state: FactorState, parts: Mapping[str, list[Factors]]) -> FactorState:
        combined: dict[str, Pair] = {}
        cut = whole = 0.0
        for module, shape in self.shapes:
            held_a, held_b = state.factors[module]
            a = np.concatenate([held_a.astype(np.float64), *(pair[0] for pair in parts[module])])
            b = np.concatenate([held_b.astype(np.float64), *(pair[1] for pair in parts[module])], axis=1)
            limit = self.rank if self.kind == "reproject" else min(shape)
            if self.kind == "reproject" or a.shape[0] > limit:
                a, b, lost, total = compact(a, b, limit)
                cut, whole = cut + lost, whole + total
            combined[module] = (a.astype(np.float32), b.astype(np.float32))
        discarded = float(np.sqrt(cut / whole)) if whole and self.kind == "reproject" else 0.0
        return FactorState(combined, discarded)


def compact(a: Wide, b: Wide, limit: int) -> tuple[Wide, Wide, float, float]:
    """The best factors of ``b @ a`` of rank at most ``limit``; also the squared norms cut off and in all.

    QR of both factors and a singular value decomposition of the small core, in float64. Singular values
    are shared evenly between the factors, directions of rounding size are dropped, and signs are fixed by
    making the largest entry of each column of B positive, so that the result is a function of its input.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, s, vt = np.linalg.svd(r_b @ r_a.T)
    s = s[: min(u.shape[0], vt.shape[0])]
    keep = min(limit, int((s > s[:1].max(initial=0.0) * 1e-12).sum()))
    root = np.sqrt(s[:keep])
    new_b, new_a = (q_b @ u[:, :keep]) * root, (vt[:keep] @ q_a.T) * root[:, None]
    peaks = np.abs(new_b).argmax(axis=0)
    signs = np.where(new_b[peaks, np.arange(keep)] < 0, -1.0, 1.0)
    return new_a * signs[:, None], new_b * signs, float((s[keep:] ** 2).sum()), float((s**2).sum())


def _flat(pairs: Mapping[str, Pair]) -> dict[str, FloatVector]:
    flat = {f"{module}.lora_A.weight": a for module, (a, _) in pairs.items()}
    return flat | {f"{module}.lora_B.weight": b for module, (_, b) in pairs.items()}


def _zeros(out: int, width: int, rank: int) -> Pair:
    return np.zeros((rank, width), np.float32), np.zeros((out, rank), np.float32)


def _empty(out: int, width: int) -> Pair:
    return _zeros(out, width, 0)


def _pair(module: str, out: int, width: int, tensors: Mapping[str, FloatVector]) -> Pair:
    a, b = tensors.get(f"{module}.lora_A.weight"), tensors.get(f"{module}.lora_B.weight")
    if a is None and b is None:
        return _empty(out, width)
    if a is None or b is None or a.ndim != 2 or a.shape[1] != width or b.shape != (out, a.shape[0]):
        raise ExchangeError(f"the factors of {module!r} do not fit its shape ({out}, {width}) or each other")
    return np.asarray(a, np.float32), np.asarray(b, np.float32)

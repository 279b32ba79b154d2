"""Vectors that codecs are measured on: made up in the shapes of real LoRA adapters, and trained ones.

A made-up vector has heavy-tailed values (Student's t with 3 degrees of freedom; the trained SGD deltas of
`fedpeft_bench.exchange.deltas` have a kurtosis of 10 to 40) and comes in two variants: ``even``, in which
one threshold gives every tensor the same density, and ``uneven``, in which each tensor has its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpeft.exchange import FloatVector, Layout
from fedpeft.rng import stream

UNEVENNESS = 1.0
"""Standard deviation of the natural logarithm of a tensor's scale in the uneven variant."""

TYPICAL = 1e-3
"""Magnitude of a typical value; LoRA deltas of one round are of this order."""


@dataclass(frozen=True)
class Vector:
    """A vector to compress: float32 values, shape ``(layout.size,)``."""

    name: str
    layout: Layout
    values: FloatVector

    @property
    def nbytes(self) -> int:
        """Bytes as dense float32."""
        return 4 * self.layout.size


@dataclass(frozen=True)
class LoraShape:
    """A LoRA adapter: ``layers`` times the linear modules, given as (inputs, outputs)."""

    layers: int
    modules: Mapping[str, tuple[int, int]]
    rank: int = 16

    @property
    def layout(self) -> Layout:
        """Both factors of every module."""
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            for module, (inputs, outputs) in self.modules.items():
                shapes[f"layers.{layer:02d}.{module}.lora_A.weight"] = (self.rank, inputs)
                shapes[f"layers.{layer:02d}.{module}.lora_B.weight"] = (outputs, self.rank)
        names = tuple(sorted(shapes))
        return Layout(names, tuple(shapes[name] for name in names))


def _square(names: tuple[str, ...], width: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(names, (width, width))


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = {"gate_proj": (1024, 2816), "up_proj": (1024, 2816), "down_proj": (2816, 1024)}
SMALL = LoraShape(10, _square(ATTENTION, 1024) | MLP)
"""140 tensors of two sizes, 3,153,920 values."""
LARGE = LoraShape(40, _square(ATTENTION, 4096))
"""320 tensors, 20,971,520 values."""


def made_up(shape: LoraShape, *, uneven: bool, seed: int = 0) -> Vector:
    """Independent heavy-tailed values, with one scale for all tensors or one each."""
    layout, kind = shape.layout, "uneven" if uneven else "even"
    rng = stream(seed, 0, kind, "bench")
    values = rng.standard_t(3, layout.size).astype(np.float32)
    spread = UNEVENNESS if uneven else 0.0
    scales = np.exp(spread * rng.standard_normal(len(layout.names))) * TYPICAL
    values *= np.repeat(scales, layout.sizes).astype(np.float32)
    return Vector(f"LoRA-like, {layout.size / 1e6:.1f} M, {kind} densities", layout, values)

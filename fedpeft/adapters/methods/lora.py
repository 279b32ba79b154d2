"""LoRA (Hu et al. 2021, arXiv 2106.09685) in five modes: what is trained and sent, and how it is averaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from fedpeft.adapters.methods.base import AdapterMethod, PackingRoles, Spec, TokenRows, Traits, scaling_of
from fedpeft.adapters.output_rows import output_rows
from fedpeft.aggregation.mean import Contribution, naive_warning, product_error
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.rng import stream

A, B = "lora_A.weight", "lora_B.weight"
ROWS = TokenRows(inputs="lora_A", projected="lora_B", projection="lora_A")
PACKING = PackingRoles("LORA", ("lora_B", "lora_embedding_A"), ("lora_A", "lora_embedding_B"))


def build(spec: Spec) -> Any:
    """A LoRA without dropout or bias."""
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=_number(scaling_of(spec.config) * spec.rank),
        target_modules=list(spec.targets),
        fan_in_fan_out=spec.conv1d,
        bias="none",
        lora_dropout=0.0,
    )


def _number(value: float) -> Any:
    """An int where the value is one, as peft writes it."""
    return int(value) if float(value).is_integer() else value


def kaiming_a(shape: tuple[int, ...], rng: np.random.Generator) -> FloatVector:
    """LoRA's A: uniform in ±1/sqrt(in), float32, shape ``(rank, in)`` (He init with a = sqrt 5)."""
    bound = shape[1] ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _lora_initial(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    if name.endswith("lora_B.weight"):
        return np.zeros(shape, np.float32)
    return kaiming_a(shape, stream(seed, 0, "", f"lora-A:{name}"))


def _initial_of_frozen_b(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    if name.endswith("lora_A.weight"):
        return np.zeros(shape, np.float32)
    bound = (3.0 / shape[0]) ** 0.5  # columns of length 1 on average
    return stream(seed, 0, "", f"lora-B:{name}").uniform(-bound, bound, shape).astype(np.float32)


def _mode(name: str, exact: bool, aggregation: Any, *trained: str) -> AdapterMethod:
    traits = Traits(linear=exact, dp="batched", exports_lora=True, trains_inputs=False)
    return AdapterMethod(
        f"lora/{name}", traits, aggregation, trained, build, _lora_initial, ROWS, packing=PACKING
    )


def _naive_error(layout: Layout, start: FloatVector, contributions: Iterable[Contribution]) -> dict[str, Any]:
    error = product_error(layout, start, contributions)
    return {"naive_error": error, "warning": naive_warning(error)}


FROZEN_A = replace(
    _mode("frozen_a", True, "mean", B), takes=frozenset(("train_head", "experts", "trainable_tokens"))
)
FROZEN_B = replace(
    _mode("frozen_b", True, "mean", A),
    initial=_initial_of_frozen_b,
    fixed=output_rows,
    takes=frozenset(("train_head", "output_tokens")),
)
STACK = replace(_mode("stack", True, "stack", A, B), takes=frozenset[str]())
REPROJECT = replace(_mode("reproject", False, "reproject", A, B), takes=frozenset[str]())
NAIVE = replace(_mode("naive", False, "mean", A, B), measured=_naive_error)

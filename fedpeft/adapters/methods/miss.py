"""MiSS: the frozen A sums the shards of the input, B is the trained block (arXiv 2409.15371)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedpeft.adapters.methods import lora
from fedpeft.adapters.methods.base import AdapterMethod, Content, PackingRoles, Spec, Traits
from fedpeft.errors import ConfigError
from fedpeft.exchange.layout import FloatVector


def _build(spec: Spec) -> Any:
    """MiSS as the LoRA it is: the frozen A sums the shards of the input, B is the trained block."""
    for name, (_, width) in spec.shapes:
        if width < spec.rank:
            raise ConfigError(
                f"adapter.rank {spec.rank} is above the {width} inputs of {name!r}; miss needs at most that"
            )
    config = lora.build(spec)
    config.lora_alpha = spec.rank
    return config


def shard_sum(shape: tuple[int, ...]) -> FloatVector:
    """MiSS's fixed A: row j sums the inputs c with c mod rank = j (arXiv 2409.15371)."""
    rank, width = shape
    return (np.arange(rank)[:, None] == np.arange(width)[None] % rank).astype(np.float32)


def _initial(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    return np.zeros(shape, np.float32) if name.endswith(lora.B) else shard_sum(shape)


def _exported(spec: Spec, tensors: Mapping[str, FloatVector]) -> Content | None:
    """As peft's own MiSS; None: plain LoRA, where peft has no MiSS for the modules."""
    if spec.conv1d:
        return None
    from peft import MissConfig

    blocks = {
        name.replace(lora.B, "miss_block"): value.T
        for name, value in tensors.items()
        if name.endswith(lora.B)
    }
    return blocks, MissConfig(r=spec.rank, target_modules=list(spec.targets), bias="none")


MISS = AdapterMethod(
    name="miss",
    traits=Traits(linear=True, dp="batched", exports_lora=True, trains_inputs=False),
    aggregation="mean",
    trained=(lora.B,),
    build=_build,
    initial=_initial,
    token_rows=lora.ROWS,
    packing=PackingRoles("MISS", ("miss_block",)),
    exported=_exported,
)

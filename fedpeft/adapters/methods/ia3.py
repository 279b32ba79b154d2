"""(IA)³: scales of keys, values and inputs of feed-forward outputs (arXiv 2205.05638, section 3.3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpeft.adapters.methods.base import AdapterMethod, PackingRoles, Spec, Traits
from fedpeft.adapters.targets import fits
from fedpeft.exchange.layout import FloatVector


def _targets(model_type: str) -> tuple[str, ...]:
    """The modules of the paper, where peft knows the architecture."""
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

    return tuple(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model_type, ()))


def feedforward_targets(spec: Spec) -> tuple[str, ...]:
    """The targets whose inputs, not outputs, are scaled: the feed-forward down projections."""
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING

    suffixes = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(spec.model_type, ())
    return tuple(name for name in spec.targets if any(fits(name, suffix) for suffix in suffixes))


def _build(spec: Spec) -> Any:
    from peft import IA3Config

    return IA3Config(
        target_modules=list(spec.targets),
        feedforward_modules=list(feedforward_targets(spec)),
        fan_in_fan_out=spec.conv1d,
    )


def _initial(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    return np.ones(shape, np.float32)


IA3 = AdapterMethod(
    name="ia3",
    traits=Traits(linear=True, dp="loop", exports_lora=False, trains_inputs=False),
    aggregation="mean",
    trained=("ia3_l",),
    build=_build,
    initial=_initial,
    default_targets=_targets,
    packing=PackingRoles("IA3", ("ia3_l",)),
)

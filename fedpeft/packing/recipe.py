"""How an adapter is to be coded, and which of its tensors go together.

Which tensors may be coded coarsely follows from the method. Factors and changes are centred at zero, and what
is lost of them is lost of the adapter alone. Prompts start at random and stay in bfloat16. All other tensors
(norms, magnitudes, saved modules, factors whose start takes principal parts out of the base) are what the
base had plus a change that may be small beside it: any rounding could be all of the change, so that they are
kept exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedpeft.adapters.methods.base import PackingRoles
from fedpeft.adapters.methods.lora import kaiming_a
from fedpeft.errors import ExchangeError
from fedpeft.exchange.layout import FloatVector
from fedpeft.packing.peft_folder import AdapterFiles, Array
from fedpeft.plugins import ADAPTER_METHODS
from fedpeft.rng import stream

CodedCodec = Literal["levels", "ternary"]
RestCodec = Literal["levels", "dense-bf16", "int8", "dense-fp32"]

_ROLES_OF_OTHERS = {
    roles.peft_type: roles
    for roles in (
        PackingRoles("ADALORA", (), ("lora_A", "lora_B")),
        PackingRoles("LOHA", ("hada_w2_b",), ("hada_w1_a", "hada_w1_b", "hada_w2_a")),
        PackingRoles("LOKR", ("lokr_w1", "lokr_w1_a"), ("lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")),
        PackingRoles("VERA", (), (), ("vera_A", "vera_B")),
    )
}
"""Of methods that no run of ours trains; `ADAPTER_METHODS` have the others."""
_USUAL_STARTS = {
    "init_lora_weights": (True, "gaussian", "eva"),
    "init_weights": (True, "bat", "mini"),
    "init_ia3_weights": (True,),
}
_SEEDED = ".lora_A.weight"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Recipe:
    """How to code an adapter.

    Attributes:
        codec: of the changes; ``levels`` codes the other factors too.
        step: of levels, over the root mean square of a tensor; None: 0.1, or 0.5 beside ternary changes,
            which lose more than that.
        density: of ternary: share of every tensor's values that is kept.
        alpha: ternary as ComPEFT does it: all changes and factors are one vector, of which the share
            ``density`` is kept with the magnitude ``alpha`` times the standard deviation of the vector.
        rest: of factors that are no change, where they are not coded as the changes are.
        keep: tensors whose name contains one of these stay in bfloat16, or exact where they are by default.
        seed: seed of a run of fedpeft whose frozen ``lora_A`` need not be stored.

    Raises:
        ExchangeError: a number is out of range.
    """

    codec: CodedCodec = "levels"
    step: float | None = None
    density: float = 0.2
    alpha: float | None = None
    rest: RestCodec = "levels"
    keep: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step <= 8:
            raise ExchangeError(f"step is {self.step}; it must be above 0 and at most 8")
        if not 0 < self.density <= 1:
            raise ExchangeError(f"density is {self.density}; it must be above 0 and at most 1")
        if self.alpha is not None and not 0 < self.alpha <= 100:
            raise ExchangeError(f"alpha is {self.alpha}; it must be above 0 and at most 100")


def step_of(recipe: Recipe) -> float:
    """The step of levels."""
    return recipe.step or (0.1 if recipe.codec == "levels" else 0.5)


def codecs_of(files: AdapterFiles, recipe: Recipe) -> dict[str, str]:
    """The codec of each tensor of an adapter, sorted by name."""
    roles = _roles(str(files.config.get("peft_type"))) if _usual(files.config) else PackingRoles("", ())
    return {name: _codec_of(name, files.tensors[name], roles, recipe) for name in sorted(files.tensors)}


def _codec_of(name: str, value: Array, roles: PackingRoles, recipe: Recipe) -> str:
    if value.dtype != np.float32 or not value.size:
        return "exact"
    if recipe.seed is not None and _follows(name, value, recipe.seed):
        return "seed"
    parts = set(name.split("."))
    change, factor = parts & set(roles.changes), parts & set(roles.factors)
    if not (change or factor or parts & set(roles.centred)):
        return "exact"
    if any(part in name for part in recipe.keep) or not (change or factor):
        return "dense-fp32" if recipe.rest == "dense-fp32" else "dense-bf16"
    return recipe.codec if change or recipe.alpha is not None else recipe.rest


def _roles(peft_type: str) -> PackingRoles:
    """The roles of a method's tensors; of an unknown method, none."""
    if peft_type in _ROLES_OF_OTHERS:
        return _ROLES_OF_OTHERS[peft_type]
    known = (method.packing for _, method in ADAPTER_METHODS.items() if method.packing is not None)
    return next((roles for roles in known if roles.peft_type == peft_type), PackingRoles(peft_type, ()))


def _usual(config: Mapping[str, Any]) -> bool:
    """Whether training started at the usual values."""
    return all(config[key] in usual for key, usual in _USUAL_STARTS.items() if key in config)


def seeded(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    """The frozen ``lora_A`` that a run of fedpeft with this seed gives a module."""
    return kaiming_a(shape, stream(seed, 0, "", f"lora-A:{name.removeprefix(_PREFIX)}"))


def _follows(name: str, value: Array, seed: int) -> bool:
    if not name.endswith(_SEEDED) or value.ndim != 2:
        return False
    return np.array_equal(value, seeded(name, value.shape, seed))

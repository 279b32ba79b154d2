"""The adapter methods: what each one trains, declares and starts from.

A method is data and three functions; `fedpeft.adapters.attach` does the rest. Traits are tested, not
believed: tests/fedpeft/test_adapters_methods.py runs every entry of `METHODS` through the same checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedpeft.adapters.targets import feedforward_targets, find_targets, linear_modules
from fedpeft.bases.load import Base
from fedpeft.config.models import AdapterConfig
from fedpeft.errors import ConfigError
from fedpeft.exchange.layout import FloatVector
from fedpeft.rng import stream


@dataclass(frozen=True)
class Traits:
    """What a method declares about itself.

    Attributes:
        linear: what the method's law makes of the contributions has exactly the mean of their effective
            weights.
        dp: which per-example gradient rule is right for it: batched hooks on linear modules, or a loop.
        exports_lora: its adapter can be written as plain LoRA without loss.
        trains_inputs: an embedding or a head is trainable; such methods are refused by default.
    """

    linear: bool
    dp: Literal["batched", "loop"]
    exports_lora: bool
    trains_inputs: bool = False


def _out_in(module: Any) -> tuple[int, int]:
    """Number of outputs and inputs of a linear module."""
    if hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)
    return int(module.weight.shape[1]), int(module.weight.shape[0])


@dataclass(frozen=True)
class Spec:
    """What a method needs to build its peft configuration, read from the base before it is wrapped.

    Attributes:
        config: the settings.
        rank: rank of this adapter.
        shapes: (module, (out, in)) pairs of the adapted modules, sorted by name.
        conv1d: whether one of them is GPT-2's Conv1D, which keeps its weight transposed.
        feedforward: those whose input (IA)³ scales.
    """

    config: AdapterConfig
    rank: int
    shapes: tuple[tuple[str, tuple[int, int]], ...]
    conv1d: bool
    feedforward: tuple[str, ...]

    @classmethod
    def of(cls, base: Base, cfg: AdapterConfig, rank: int) -> Spec:
        """The specification for a base that carries no adapter.

        Raises:
            ConfigError: settings that leave no module, or name one that is not there.
        """
        targets = find_targets(base, cfg)
        modules = linear_modules(base.model)
        shapes = tuple((name, _out_in(modules[name])) for name in targets)
        conv1d = any(type(modules[name]).__name__ == "Conv1D" for name in targets)
        return cls(cfg, rank, shapes, conv1d, feedforward_targets(base, targets))

    @property
    def targets(self) -> tuple[str, ...]:
        """Full names of the adapted modules, sorted."""
        return tuple(name for name, _ in self.shapes)


@dataclass(frozen=True)
class AdapterMethod:
    """One adapter method.

    Attributes:
        name: key in `METHODS`.
        traits: what it declares.
        law: ``mean`` of flat vectors, or ``stack`` or ``reproject`` of factors.
        trained: endings of the names of the trainable tensors.
        build: the peft configuration for a `Spec`.
        initial: the agreed first value of a tensor, from (name, shape, seed).
    """

    name: str
    traits: Traits
    law: Literal["mean", "stack", "reproject"]
    trained: tuple[str, ...]
    build: Callable[[Spec], Any]
    initial: Callable[[str, tuple[int, ...], int], FloatVector]


def method_key(cfg: AdapterConfig) -> str:
    """The key in `METHODS` that a configuration asks for."""
    return f"lora/{cfg.aggregation}" if cfg.method == "lora" else cfg.method


def method_of(cfg: AdapterConfig) -> AdapterMethod:
    """The method that a configuration asks for.

    Raises:
        ConfigError: ranks per node under a law that needs equal ones.
    """
    method = METHODS[method_key(cfg)]
    if cfg.ranks and method.law == "mean":
        raise ConfigError(
            f"adapter.ranks needs aggregation 'stack' or 'reproject'; {method.name!r} needs one rank"
        )
    return method


def rank_of(cfg: AdapterConfig, node: str | None) -> int:
    """Rank of a node's adapter."""
    return cfg.ranks.get(node, cfg.rank) if node is not None else cfg.rank


def scaling_of(cfg: AdapterConfig) -> float:
    """LoRA's factor alpha / rank, 2 by default; nodes of another rank use the same factor."""
    return 2.0 if cfg.alpha is None else cfg.alpha / cfg.rank


def _lora(spec: Spec) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=_number(scaling_of(spec.config) * spec.rank),
        target_modules=list(spec.targets),
        fan_in_fan_out=spec.conv1d,
        bias="none",
        lora_dropout=0.0,
    )


def _miss(spec: Spec) -> Any:
    """MiSS as the LoRA it is: the frozen A sums the shards of the input, B is the trained block."""
    for name, (_, width) in spec.shapes:
        if width < spec.rank:
            raise ConfigError(
                f"adapter.rank {spec.rank} is above the {width} inputs of {name!r}; miss needs at most that"
            )
    config = _lora(spec)
    config.lora_alpha = spec.rank
    return config


def _ia3(spec: Spec) -> Any:
    from peft import IA3Config

    return IA3Config(
        target_modules=list(spec.targets),
        feedforward_modules=list(spec.feedforward),
        fan_in_fan_out=spec.conv1d,
    )


def _number(value: float) -> Any:
    """An int where the value is one, as peft writes it."""
    return int(value) if float(value).is_integer() else value


def kaiming_a(shape: tuple[int, ...], rng: np.random.Generator) -> FloatVector:
    """LoRA's A: uniform in ±1/sqrt(in), float32, shape ``(rank, in)`` (He init with a = sqrt 5)."""
    bound = shape[1] ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def shard_sum(shape: tuple[int, ...]) -> FloatVector:
    """MiSS's fixed A: row j sums the inputs c with c mod rank = j (arXiv 2409.15371)."""
    rank, width = shape
    return (np.arange(rank)[:, None] == np.arange(width)[None] % rank).astype(np.float32)


def _lora_initial(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    if name.endswith("lora_B.weight"):
        return np.zeros(shape, np.float32)
    return kaiming_a(shape, stream(seed, 0, "", f"lora-A:{name}"))


def _miss_initial(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    return np.zeros(shape, np.float32) if name.endswith("lora_B.weight") else shard_sum(shape)


def _ia3_initial(name: str, shape: tuple[int, ...], seed: int) -> FloatVector:
    return np.ones(shape, np.float32)


_A, _B = "lora_A.weight", "lora_B.weight"
_EXACT = Traits(linear=True, dp="batched", exports_lora=True)
_INEXACT = Traits(linear=False, dp="batched", exports_lora=True)
_SCALES = Traits(linear=True, dp="loop", exports_lora=False)

METHODS: dict[str, AdapterMethod] = {
    method.name: method
    for method in (
        AdapterMethod("lora/frozen_a", _EXACT, "mean", (_B,), _lora, _lora_initial),
        AdapterMethod("lora/stack", _EXACT, "stack", (_A, _B), _lora, _lora_initial),
        AdapterMethod("lora/reproject", _INEXACT, "reproject", (_A, _B), _lora, _lora_initial),
        AdapterMethod("lora/naive", _INEXACT, "mean", (_A, _B), _lora, _lora_initial),
        AdapterMethod("miss", _EXACT, "mean", (_B,), _miss, _miss_initial),
        AdapterMethod("ia3", _SCALES, "mean", ("ia3_l",), _ia3, _ia3_initial),
    )
}

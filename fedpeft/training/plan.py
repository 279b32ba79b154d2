"""What a node does in one round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.config.models import Engine, FederationConfig, RunConfig


ADAMW_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class PerformanceFlags:
    """What changes speed and memory and nothing else: no result and no privacy depends on it.

    Attributes:
        engine: per-example gradients: ``batched`` where it is right, the low-memory ``loop``, or ``auto``.
        tokens_at_once: padded tokens of one forward pass; a larger batch is cut, never truncated.

    Raises:
        ConfigError: a value is out of range.
    """

    engine: Engine = "auto"
    tokens_at_once: int = 8192

    def __post_init__(self) -> None:
        if self.tokens_at_once < 1:
            raise ConfigError(f"run.tokens_at_once = {self.tokens_at_once} must be at least 1")

    @classmethod
    def of(cls, run: RunConfig) -> PerformanceFlags:
        """The flags of a configuration."""
        return cls(run.engine, run.tokens_at_once)


@dataclass(frozen=True)
class LocalPlan:
    """Local training of one round.

    Attributes:
        steps: optimiser steps.
        batch_size: records per step without privacy; under privacy the plan's rate decides.
        optimiser: ``adamw`` (betas 0.9 and 0.95, no decay) or ``sgd``, both without memory across rounds.
        lr: learning rate of this round.
        momentum: of ``sgd``.
        max_grad_norm: L2 clip of the batch gradient without privacy.

    Raises:
        ConfigError: a value is out of range.
    """

    steps: int
    batch_size: int
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-2
    momentum: float = 0.9
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"local training: {name} = {value} must be finite and above 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"local training: momentum = {self.momentum} must be in [0, 1)")
        if self.optimiser not in ("adamw", "sgd"):
            raise ConfigError(f"local training: optimiser {self.optimiser!r}; allowed are 'adamw' and 'sgd'")

    @classmethod
    def of(cls, federation: FederationConfig, round: int) -> LocalPlan:
        """The plan of a 1-based round; the learning rate falls linearly by ``lr_decay`` over the run."""
        passed = (round - 1) / max(federation.rounds - 1, 1)
        return cls(
            steps=federation.local_steps,
            batch_size=federation.batch_size,
            optimiser=federation.optimiser,
            lr=federation.lr * (1 - federation.lr_decay * passed),
            momentum=federation.momentum,
            max_grad_norm=federation.max_grad_norm,
        )

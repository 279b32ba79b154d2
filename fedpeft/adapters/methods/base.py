"""What an adapter method declares: what it trains, starts from, sends, and what an audit may read of it.

A method is data and a few functions, in a module of its own; `fedpeft.adapters.attach` does the rest.
`fedpeft.plugins.ADAPTER_METHODS` has them by name. Traits are tested, not believed:
tests/fedpeft/test_adapters_methods.py runs every method that is shipped through the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedpeft.adapters.coverage import Coverage
from fedpeft.adapters.targets import find_targets, linear_modules
from fedpeft.adapters.trained_parts import TrainedParts
from fedpeft.bases.load import Base
from fedpeft.config.models import AdapterConfig
from fedpeft.errors import ConfigError
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.plugins import ADAPTER_METHODS

if TYPE_CHECKING:
    from fedpeft.aggregation.mean import Contribution


@dataclass(frozen=True)
class Traits:
    """What a method declares about itself.

    Attributes:
        linear: what aggregation makes of the contributions has exactly the mean of their effective
            weights.
        dp: which per-example gradient rule is right for it: batched hooks on linear modules, or a loop.
        exports_lora: its adapter can be written as plain LoRA without loss.
        trains_inputs: the method itself trains an embedding or a head, or nobody said that it does not;
            policies refuse that. What settings add (`fedpeft.adapters.trained_parts`) has rules of its own.
    """

    linear: bool
    dp: Literal["batched", "loop"]
    exports_lora: bool
    trains_inputs: bool = True


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
        model_type: architecture of the base, as transformers calls it.
        coverage: how much of the base is adapted.
        parts: what else of the base is trained.
    """

    config: AdapterConfig
    rank: int
    shapes: tuple[tuple[str, tuple[int, int]], ...]
    conv1d: bool
    model_type: str
    coverage: Coverage
    parts: TrainedParts

    @classmethod
    def of(cls, base: Base, cfg: AdapterConfig, rank: int) -> Spec:
        """The specification for a base that carries no adapter.

        Raises:
            ConfigError: settings that leave no module, or name one that is not there.
        """
        kind = str(base.model.config.model_type)
        targets = find_targets(base, cfg, method_of(cfg).default_targets(kind))
        modules = linear_modules(base.model)
        shapes = tuple((name, _out_in(modules[name])) for name in targets)
        conv1d = any(type(modules[name]).__name__ == "Conv1D" for name in targets)
        parts = TrainedParts.of(base, cfg)
        coverage = Coverage.of(base, dict(shapes), cfg.skip_layers, parts)
        return cls(cfg, rank, shapes, conv1d, kind, coverage, parts)

    @property
    def targets(self) -> tuple[str, ...]:
        """Full names of the adapted modules, sorted."""
        return tuple(name for name, _ in self.shapes)


@dataclass(frozen=True)
class TokenRows:
    """Which tensors an audit reads tokens from, by a part of their names between dots.

    The part in front names the adapted module; the gradient's rows combine what that module reads.

    Attributes:
        inputs: of tensors whose rows combine the module's inputs themselves, as those of LoRA's A.
        projected: of tensors whose rows combine inputs that a matrix has projected, as those of LoRA's B.
        projection: of the tensors that project, shape ``(rank, in)``.
    """

    inputs: str
    projected: str
    projection: str

    def place(self, name: str) -> tuple[str, str] | None:
        """Module and part of a tensor's name; None for a tensor that has no such rows."""
        names = name.split(".")
        parts = (self.inputs, self.projected, self.projection)
        at = next((index for index, part in enumerate(names) if index and part in parts), None)
        return None if at is None else (".".join(names[:at]), names[at])


@dataclass(frozen=True)
class PackingRoles:
    """Which tensors of an exported adapter may be coded coarsely, by a part of their names between dots.

    Attributes:
        peft_type: of the folder's configuration.
        changes: tensors that start at a known value, so that they are their own change.
        factors: factors that start at random.
        centred: other tensors that hold nothing of the base: they stay in bfloat16. What is named nowhere
            is kept exactly.
    """

    peft_type: str
    changes: tuple[str, ...]
    factors: tuple[str, ...] = ()
    centred: tuple[str, ...] = ()


Content = tuple[dict[str, FloatVector], Any]
"""Tensors by name and the peft configuration of an adapter folder."""


Measure = Callable[[Layout, FloatVector, Iterable["Contribution"]], dict[str, Any]]


def _all_linear(model_type: str) -> tuple[str, ...]:
    """No suffix: every linear module."""
    return ()


def _from_seed(base: Base, spec: Spec) -> FloatVector | None:
    """Frozen tensors follow from their names and the seed."""
    return None


@dataclass(frozen=True)
class AdapterMethod:
    """One adapter method.

    Attributes:
        name: in `ADAPTER_METHODS`: that of ``adapter.method``, or with several ``adapter.aggregation`` both,
            as ``lora/stack``.
        traits: what it declares.
        aggregation: ``mean`` of flat vectors, or ``stack`` or ``reproject`` of LoRA's factors.
        trained: endings of the names of the trainable tensors.
        build: the peft configuration for a `Spec`.
        initial: the agreed first value of a tensor, from (name, shape, seed).
        token_rows: what an audit reads tokens from; None: the audit says that it does not cover the method.
        default_targets: suffixes of the modules that are adapted where the settings name none, from the
            architecture; none: all linear ones.
        packing: how an exported adapter is packed; None: exactly.
        measured: facts for the event of a round, from the layout, the values before it and its updates;
            None: there is nothing to measure.
        exported: what a folder holds in place of the tensors as they are trained; None: those.
        fixed: the value of each frozen tensor where the base decides it; None: `initial` of its name.
        takes: settings that may add parts of the base to it (`fedpeft.adapters.trained_parts.REVEALED`): its
            peft configuration names them, its traits hold for them, and what it sends has a place for them.
    """

    name: str
    traits: Traits
    aggregation: Literal["mean", "stack", "reproject"]
    trained: tuple[str, ...]
    build: Callable[[Spec], Any]
    initial: Callable[[str, tuple[int, ...], int], FloatVector]
    token_rows: TokenRows | None = None
    default_targets: Callable[[str], tuple[str, ...]] = _all_linear
    packing: PackingRoles | None = None
    measured: Measure | None = None
    exported: Callable[[Spec, Mapping[str, FloatVector]], Content | None] | None = None
    fixed: Callable[[Base, Spec], FloatVector | None] = _from_seed
    takes: frozenset[str] = frozenset(("train_head",))

    @property
    def sends_factors(self) -> bool:
        """Whether LoRA's factors are sent and combined; else updates are flat vectors of one meaning."""
        return self.aggregation != "mean"

    @property
    def renews_factors(self) -> bool:
        """Whether each round trains new factors beside the federation's, which are frozen."""
        return self.aggregation == "stack"


def method_of(cfg: AdapterConfig) -> AdapterMethod:
    """The method that a configuration asks for.

    Raises:
        ConfigError: ranks per node under an aggregation that needs equal ones.
    """
    method = ADAPTER_METHODS[cfg.key]
    if cfg.ranks and not method.sends_factors:
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

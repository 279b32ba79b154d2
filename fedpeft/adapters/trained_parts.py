"""Parts of a base that settings add to a method's own modules: a classification head, fused experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.adapters.targets import fused_experts, layer_of
from fedpeft.bases.load import HEAD_MODULES, Base, fresh_head
from fedpeft.config.models import AdapterConfig
from fedpeft.errors import ConfigError
from fedpeft.exchange.layout import FloatVector

if TYPE_CHECKING:
    import torch

REVEALED: Mapping[str, str] = {
    "train_head": "updates of a head show the labels of records",
    "experts": "updates of experts show which of them a batch was sent to",
}
"""By setting of ``[adapter]``, off by default: what its updates show unless noise covers it."""
HEADS = frozenset(("classifier", "score", "classification_head"))
"""Names of modules that give the logits of classes."""


@dataclass(frozen=True)
class TrainedParts:
    """What peft trains beside the modules of the method.

    Attributes:
        heads: full names of the modules of a classification head; all of their values are trained.
        experts: full names of parameters of shape ``(experts, ., .)`` that get the method's own factors for
            each expert, with their shapes.
    """

    heads: tuple[str, ...] = ()
    experts: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, base: Base, cfg: AdapterConfig) -> TrainedParts:
        """The parts that the settings ask for, of a base that carries no adapter yet.

        Raises:
            ConfigError: the base has no such part.
        """
        return cls(_heads(base) if cfg.train_head else (), _experts(base, cfg) if cfg.experts else ())

    @property
    def modules(self) -> frozenset[str]:
        """Full names of the modules that peft wraps for the parts."""
        return frozenset((*self.heads, *(name.rpartition(".")[0] for name, _ in self.experts)))

    def configure(self, config: Any) -> Any:
        """Name the parts in a method's peft configuration, and return it.

        Raises:
            ConfigError: the method's configuration cannot name them.
        """
        if self.heads:
            if not hasattr(config, "modules_to_save"):
                kind = type(config).__name__
                raise ConfigError(f"adapter.train_head: peft's {kind} saves no modules; take 'lora'")
            config.modules_to_save = sorted({name.rpartition(".")[2] for name in self.heads})
        if self.experts:
            config.target_parameters = [name for name, _ in self.experts]
        return config

    def trains(self, name: str) -> bool:
        """Whether a tensor of this exchanged name is trained as a part, not as one of the method's."""
        return name.startswith(tuple(f"{head}." for head in self.heads))

    def start(self, base: Base, name: str) -> FloatVector:
        """The agreed first value of a part's tensor: a new head's from its name, else the base's own."""
        value = original(base.model, name)
        if name in base.fresh:
            return fresh_head(name, tuple(value.shape))
        return value.detach().float().cpu().numpy()


def head_of(name: str) -> str | None:
    """The head that a tensor belongs to."""
    return next((part for part in name.split(".") if part in HEAD_MODULES), None)


def original(model: Any, name: str) -> torch.nn.Parameter:
    """A base's own parameter by its name, whether or not peft has wrapped its module."""
    module = model
    for part in name.split("."):
        module = getattr(getattr(module, "original_module", module), part)
    return module


def _heads(base: Base) -> tuple[str, ...]:
    """Modules that peft wraps for the names of the head, and of what else the base's folder lacks."""
    wanted = tuple(HEADS | {head for name in base.fresh if (head := head_of(name))})
    heads = tuple(name for name, _ in base.model.named_modules() if name.endswith(wanted))
    if base.task != "sequence-classification" or not heads:
        raise ConfigError(
            f"adapter.train_head: {base.name!r} has no classification head; set base.task = "
            "'sequence-classification'"
        )
    return heads


def _experts(base: Base, cfg: AdapterConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The experts' parameters outside of skipped layers."""
    experts = fused_experts(base.model)
    if not experts:
        raise ConfigError(f"adapter.experts: {base.name!r} has no experts that are fused into one tensor")
    chosen = {name: value for name, value in experts.items() if layer_of(name) not in cfg.skip_layers}
    return tuple((name, tuple(chosen[name].shape)) for name in sorted(chosen))

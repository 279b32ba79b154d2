"""Parts of a base that a run trains beside the modules with an adapter: a classification head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.bases.load import HEAD_MODULES, Base, fresh_head
from fedpeft.config.models import AdapterConfig
from fedpeft.errors import ConfigError
from fedpeft.exchange.layout import FloatVector

if TYPE_CHECKING:
    import torch

HEADS = frozenset(("classifier", "score", "classification_head"))
"""Names of modules that give the logits of classes."""


@dataclass(frozen=True)
class TrainedParts:
    """What peft trains and saves beside the method's own tensors.

    Attributes:
        heads: full names of the modules of a classification head; all of their values are trained.
    """

    heads: tuple[str, ...] = ()

    @classmethod
    def of(cls, base: Base, cfg: AdapterConfig) -> TrainedParts:
        """The parts that the settings ask for, of a base that carries no adapter yet.

        Raises:
            ConfigError: the base has no such part.
        """
        return cls(_heads(base) if cfg.train_head else ())

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
        return config

    def trains(self, name: str) -> bool:
        """Whether a tensor of this exchanged name belongs to a part."""
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

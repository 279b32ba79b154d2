"""Parts of a base that settings add to a method's own modules: a head, fused experts, rows of embeddings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
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
    "trainable_tokens": "updates of embeddings show which of these tokens a batch held",
    "output_tokens": "updates along embeddings of tokens show how often each of them is an answer",
}
"""By setting of ``[adapter]``, off by default: what its updates show unless noise covers it."""
ROWS = "token_adapter.trainable_tokens_delta"
"""End of the name of peft's tensor of trained rows, which holds them as they are, not their change."""
HEADS = frozenset(("classifier", "score", "classification_head"))
"""Names of modules that give the logits of classes."""


@dataclass(frozen=True)
class TrainedParts:
    """What peft trains beside the modules of the method.

    Attributes:
        heads: full names of the modules of a classification head; all of their values are trained.
        experts: full names of parameters of shape ``(experts, ., .)`` that get the method's own factors for
            each expert, with their shapes.
        tokens: ids whose rows of the embeddings are trained, rising.
        embeddings: with tokens, full names of the embeddings and of a head that shares their weight.
        outputs: ids whose rows of the output embeddings are the method's frozen B, rising.
    """

    heads: tuple[str, ...] = ()
    experts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    tokens: tuple[int, ...] = ()
    embeddings: tuple[str, ...] = ()
    outputs: tuple[int, ...] = ()

    @classmethod
    def of(cls, base: Base, cfg: AdapterConfig) -> TrainedParts:
        """The parts that the settings ask for, of a base that carries no adapter yet.

        Raises:
            ConfigError: the base has no such part.
        """
        return cls(
            _heads(base) if cfg.train_head else (),
            _experts(base, cfg) if cfg.experts else (),
            _token_ids(base, cfg.trainable_tokens, "trainable_tokens"),
            _embeddings(base.model) if cfg.trainable_tokens else (),
            _token_ids(base, cfg.output_tokens, "output_tokens"),
        )

    @property
    def modules(self) -> frozenset[str]:
        """Full names of the modules that peft wraps for the parts."""
        experts = (name.rpartition(".")[0] for name, _ in self.experts)
        return frozenset((*self.heads, *experts, *self.embeddings))

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings of `REVEALED` that added parts."""
        added = {
            "train_head": self.heads,
            "experts": self.experts,
            "trainable_tokens": self.tokens,
            "output_tokens": self.outputs,
        }
        return tuple(setting for setting in REVEALED if added[setting])

    def notes(self, model: Any) -> tuple[str, ...]:
        """What people are told of the parts, of a model that carries no adapter yet."""
        sizes = [
            (name, sum(t.numel() for t in model.get_submodule(name).parameters())) for name in self.heads
        ]
        trained = ", ".join(f"{name} ({size:,} values)" for name, size in sizes)
        rows = f"trains {len(self.tokens)} rows of {' and '.join(self.embeddings)}: "
        before = {"train_head": f"trains the head {trained}: ", "trainable_tokens": rows}
        return tuple(before.get(setting, "") + REVEALED[setting] for setting in self.settings)

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
        if self.tokens:
            config.trainable_token_indices = {self.embeddings[0]: list(self.tokens)}
        return config

    def trains(self, name: str) -> bool:
        """Whether a tensor of this exchanged name is trained as a part, not as one of the method's."""
        return name.startswith(tuple(f"{head}." for head in self.heads)) or name.endswith(ROWS)

    def start(self, base: Base, name: str) -> FloatVector:
        """The agreed first value of a part's tensor: a new head's from its name, else the base's own."""
        if name.endswith(ROWS):
            rows = original(base.model, f"{self.embeddings[0]}.weight")[list(self.tokens)]
            return rows.detach().float().cpu().numpy()
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


def _token_ids(base: Base, tokens: Sequence[str | int], setting: str) -> tuple[int, ...]:
    """Ids of the tokens that a setting names, rising."""
    vocabulary = base.tokenizer.get_vocab() if any(isinstance(token, str) for token in tokens) else {}
    rows = base.model.get_input_embeddings().weight.shape[0]
    ids: set[int] = set()
    for token in tokens:
        number = vocabulary.get(token) if isinstance(token, str) else token
        if number is None:
            near = difflib.get_close_matches(str(token), vocabulary, n=3, cutoff=0.6)
            hint = f"nearest: {', '.join(map(repr, near))}" if near else "add it to tokenizer and base first"
            raise ConfigError(f"adapter.{setting}: {token!r} is no token of {base.name!r}; {hint}")
        if not 0 <= number < rows:
            raise ConfigError(
                f"adapter.{setting}: {token!r} has no row among the {rows} embeddings of {base.name!r}"
            )
        ids.add(number)
    return tuple(sorted(ids))


def _embeddings(model: Any) -> tuple[str, ...]:
    """Full names of the input embeddings, and of an output head with the same weight."""
    inner = model.get_input_embeddings()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names = [name for name, module in model.named_modules() if module is inner]
    tied = head is not None and head.weight is inner.weight
    return (names[0], *(name for name, module in model.named_modules() if tied and module is head))

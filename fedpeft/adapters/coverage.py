"""How much of a base carries an adapter, and what does not: said at the start of every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.adapters.targets import closed_layers, layer_of, linear_layers

if TYPE_CHECKING:
    from fedpeft.adapters.trained_parts import TrainedParts
    from fedpeft.bases.load import Base

UNCHOSEN = "of other names than those adapted"
EXPERTS = "in experts of a mixture, fused into one tensor"
BLOCKS = "in other tensors of three dimensions"


@dataclass(frozen=True)
class Coverage:
    """Which part of a base an adapter changes.

    Attributes:
        adapted: weight matrices with an adapter.
        matrices: all of them: linear layers, the output head, and each expert's of a mixture.
        share: parameters of the adapted matrices over all of the base.
        left_out: what the others are, and how many.
        trained: parts that are trained without an adapter, each with the number of its values.
    """

    adapted: int
    matrices: int
    share: float
    left_out: tuple[tuple[str, int], ...]
    trained: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(
        cls,
        base: Base,
        shapes: Mapping[str, tuple[int, int]],
        skipped: Collection[int],
        parts: TrainedParts,
    ) -> Coverage:
        """The coverage of some modules of a base that carries no adapter yet.

        Args:
            base: the base.
            shapes: (out, in) of the modules that get an adapter, by their full names.
            skipped: ``adapter.skip_layers``.
            parts: what else is trained.
        """
        closed, rest, whole = closed_layers(base.model), Counter[str](), 0
        for name in linear_layers(base.model):
            if parts.trains(f"{name}.weight"):
                whole += 1
            elif name not in shapes:
                layer = layer_of(name)
                layer_reason = f"in layer {layer} (adapter.skip_layers)" if layer in skipped else UNCHOSEN
                rest[closed.get(name, layer_reason)] += 1
        rest.update(_fused(base.model))
        left_out = tuple((reason, count) for reason, count in rest.items() if count)
        adapted = sum(rows * columns for rows, columns in shapes.values())
        matrices, share = len(shapes) + whole + rest.total(), adapted / max(base.parameters, 1)
        return cls(len(shapes), matrices, share, left_out, _sizes(base.model, parts))

    @property
    def text(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{count} {reason}" for reason, count in self.left_out)
        trained = ", ".join(f"{name} ({size:,} values)" for name, size in self.trained)
        return (
            f"adapts {self.adapted} of {self.matrices} weight matrices, {100 * self.share:.3g} % of the "
            f"parameters; left out: {parts or 'none'}"
            + (f"; trains the head {trained}: its updates show the labels of records" if trained else "")
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What a summary holds of it."""
        return {**asdict(self), "left_out": dict(self.left_out), "trained": dict(self.trained)}

    @property
    def event(self) -> dict[str, Any]:
        """As an event of ``metrics.jsonl``."""
        return {"event": "coverage", **self.facts, "text": self.text}


def _sizes(model: Any, parts: TrainedParts) -> tuple[tuple[str, int], ...]:
    """The modules that are trained whole, and how many values each has."""
    modules = ((name, model.get_submodule(name)) for name in parts.heads)
    return tuple((name, sum(tensor.numel() for tensor in module.parameters())) for name, module in modules)


def _fused(model: Any) -> Counter[str]:
    """Matrices that are kept in one parameter of three dimensions, as those of a layer's experts are."""
    import torch

    counts = Counter[str]()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv3d):
            continue
        reason = EXPERTS if "expert" in type(module).__name__.lower() else BLOCKS
        for tensor in module.parameters(recurse=False):
            if tensor.dim() == 3 and tensor.shape[0] > 1:
                counts[reason] += int(tensor.shape[0])
    return counts

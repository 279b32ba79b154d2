"""How much of a base carries an adapter, and what does not: said at the start of every run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.adapters.targets import closed_layers, fused_matrices, layer_of, linear_layers
from fedpeft.adapters.trained_parts import TrainedParts

if TYPE_CHECKING:
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
        notes: what settings add to that, and what updates then show.
    """

    adapted: int
    matrices: int
    share: float
    left_out: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()

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
                rest[closed.get(name, _skipped(name, skipped) or UNCHOSEN)] += 1
        experts = dict(parts.experts)
        for name, (tensor, of_experts) in fused_matrices(base.model).items():
            if name not in experts:
                reason = EXPERTS if of_experts else BLOCKS
                rest[(_skipped(name, skipped) if experts else None) or reason] += int(tensor.shape[0])
        adapted = len(shapes) + sum(shape[0] for shape in experts.values())
        # layers may share one weight
        values_of = {id(base.model.get_submodule(name).weight): math.prod(shapes[name]) for name in shapes}
        values = sum(values_of.values()) + sum(math.prod(shape) for shape in experts.values())
        matrices, left_out = adapted + whole + rest.total(), tuple(rest.items())
        share = values / max(base.parameters, 1)
        return cls(adapted, matrices, share, left_out, parts.notes(base.model))

    @property
    def text(self) -> str:
        """One line for people."""
        parts = ", ".join(f"{count} {reason}" for reason, count in self.left_out)
        line = (
            f"adapts {self.adapted} of {self.matrices} weight matrices, {100 * self.share:.3g} % of the "
            f"parameters; left out: {parts or 'none'}"
        )
        return "; ".join((line, *self.notes))

    @property
    def facts(self) -> dict[str, Any]:
        """What a summary holds of it."""
        return {**asdict(self), "left_out": dict(self.left_out), "notes": list(self.notes)}

    @property
    def event(self) -> dict[str, Any]:
        """As an event of ``metrics.jsonl``."""
        return {"event": "coverage", **self.facts, "text": self.text}


def _skipped(name: str, skipped: Collection[int]) -> str | None:
    """That a matrix stands in a skipped layer or outside all layers, which go with layer 0, if it does."""
    layer = layer_of(name)
    if layer is None and 0 in skipped:
        return "outside all layers, which go with layer 0 (adapter.skip_layers)"
    return f"in layer {layer} (adapter.skip_layers)" if layer in skipped else None

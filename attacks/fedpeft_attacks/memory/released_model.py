"""A run's material with the released adapter on its base, and how much is tried on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedpeft.data import Record
from fedpeft_attacks.memory.member_records import Material

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.data import Example

_Reading = TypeVar("_Reading")


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        records: the most members, and the most non-members.
        prompts: of these, the most whose personal data are asked for.
        canaries: the most canaries that were trained on, and the most that were not.
        shadows: shadow adapters, an even number of at least 4; 0 leaves that attack out.
        cache: folder that holds the confidences of the shadows; None: no cache.
    """

    records: int = 384
    prompts: int = 96
    canaries: int = 24
    shadows: int = 0
    cache: Path | None = None


@dataclass(frozen=True)
class ReleasedModel:
    """A run's material, the base with the released adapter, and how much to try."""

    material: Material
    attached: Attached
    effort: Effort

    @property
    def writes(self) -> bool:
        """Whether the model writes text."""
        return self.attached.base.task == "causal-lm"

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Records as they are trained on."""
        return self.material.examples(records, self.attached)

    def encode(self, records: Sequence[Record]) -> list[list[int]]:
        """Their token ids."""
        return [example.ids.tolist() for example in self.examples(records)]

    def both(self, read: Callable[[Any], _Reading]) -> tuple[_Reading, _Reading]:
        """What a reader finds in the model with the adapter, and in the base without it."""
        reading = read(self.attached.model)
        trained = [(tensor, tensor.requires_grad) for tensor in self.attached.model.parameters()]
        with self.attached.model.disable_adapter():
            without = read(self.attached.model)
        for tensor, required in trained:
            tensor.requires_grad_(required)  # peft makes frozen factors trainable when it turns adapters on
        return reading, without

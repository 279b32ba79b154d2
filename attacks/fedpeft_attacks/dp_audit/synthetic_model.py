"""A made-up model whose records have gradients of one coordinate: what the platform's own training is run on.

`fedpeft.training` cannot tell it from an adapter on a base: it draws, clips, adds noise and steps
as on real data. There are no real data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpeft.data import Batch, Example
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.step_matrix import StepMatrix
from fedpeft.rng import stream
from fedpeft.secagg.discrete_gaussian import share_of_noise
from fedpeft.secagg.grid_values import noisy_grid
from fedpeft.training import LocalPlan, gradient_sum, train_local
from fedpeft.training.local import Extras

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

EXCESS = 10.0
"""Gradients before the clip over the clip: without a clip a canary counts ten times."""


class DiracForSequenceClassification(nn.Module):
    """Two classes from one table: the gradient of a record of token ``j`` lies in entry ``j`` alone.

    Args:
        size: entries of the table.
        norm: length of a one-token record's gradient of its loss while the table is zero.
    """

    def __init__(self, size: int, norm: float) -> None:
        super().__init__()
        self.table = nn.Embedding(size, 1)
        nn.init.zeros_(self.table.weight)
        self.strength, self.dtype = 2 * norm, torch.float32
        text = SimpleNamespace(vocab_size=size, pad_token_id=0)
        self.config = SimpleNamespace(get_text_config=lambda: text, is_encoder_decoder=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Logits of shape ``(B, 2)``, of which the first falls with the entries of the record's tokens."""
        score = (self.table(input_ids)[..., 0] * attention_mask).sum(1) * self.strength
        return SimpleNamespace(logits=torch.stack([-score / 2, score / 2], dim=1))


@dataclass(frozen=True)
class SyntheticModel:
    """What training and privacy use of an attached adapter.

    Attributes:
        model: the made-up model.
        layout: its one table.
        parameters: the same.
    """

    model: DiracForSequenceClassification
    layout: Layout
    parameters: dict[str, nn.Parameter]

    @classmethod
    def of(cls, size: int, clip: float) -> SyntheticModel:
        """A table of ``size`` entries whose records exceed the clip by `EXCESS`."""
        model = DiracForSequenceClassification(size, EXCESS * clip)
        parameters = dict(model.named_parameters())
        return cls(model, Layout.of(parameters), parameters)

    @property
    def attached(self) -> Attached:
        """Itself, as training names it."""
        return cast("Attached", self)


def records(coordinates: NDArray[np.integer], plan: PrivacyPlan) -> list[Example]:
    """Records whose gradients lie in these coordinates, one unit each; class 0 makes them positive.

    Where the unit is a person, each has one record more than are used.
    """
    copies = plan.records_per_unit + 1 if plan.unit == "person" else 1
    weights = np.zeros(1, np.float32)
    return [
        Example(np.array([place]), weights, label_index=0, person=f"canary {unit}")
        for unit, place in enumerate(coordinates)
        for _ in range(copies)
    ]


def noisy_steps(
    plan: PrivacyPlan, examples: Sequence[Example], size: int, matrix: StepMatrix | None = None
) -> NDArray[np.float64]:
    """The noisy sums of the plan's steps over the clip, float64, shape ``(plan.steps, size)``.

    Each step is a whole `train_local` of one step from the table of zeros, so that every noisy gradient is
    seen and each canary's gradient is the same in all of them. Trust ``distributed``: a `gradient_sum` of one
    node on the grid, and the noise of the fewest nodes that a sum may hold. With bands ``matrix`` goes
    through all steps.
    """
    if plan.trust == "distributed":
        return np.stack([_summed_step(plan, examples, size) for _ in range(plan.steps)])
    synthetic, seen = SyntheticModel.of(size, plan.clip), list[FloatVector]()

    def see(gradient: FloatVector, _: Batch) -> None:
        seen.append(gradient)

    local = LocalPlan(steps=1, batch_size=plan.expected_batch_size, optimiser="sgd")
    unused: Any = stream(0, 0, "", "rehearsal")
    extras = Extras(on_first_gradient=see, matrix=matrix)
    for _ in range(plan.steps):
        train_local(synthetic.attached, examples, local, unused, plan, extras)
        nn.init.zeros_(synthetic.model.table.weight)
    return np.stack(seen).astype(np.float64) * (plan.expected_batch_size / plan.clip)


def _summed_step(plan: PrivacyPlan, examples: Sequence[Example], size: int) -> NDArray[np.float64]:
    assert plan.grid is not None
    local = LocalPlan(steps=1, batch_size=plan.expected_batch_size, optimiser="sgd")
    model, unused = SyntheticModel.of(size, plan.clip).attached, stream(0, 0, "", "rehearsal")
    total = noisy_grid(gradient_sum(model, examples, local, unused, plan), plan)
    return (total + shared_noise(plan, size, plan.grid.least_nodes - 1)) / plan.grid.steps_per_clip


def shared_noise(plan: PrivacyPlan, size: int, nodes: int) -> NDArray[np.int64]:
    """The noise of so many nodes of a secure sum, in grid steps, shape ``(size,)``."""
    assert plan.grid is not None
    variance = plan.grid.share(plan.noise_multiplier)
    return sum((share_of_noise(size, variance) for _ in range(nodes)), np.zeros(size, np.int64))

"""The undefended reference: what the attacks read with all protections off.

LoRA with both factors trained on every linear module, B warm (as a malicious coordinator would send it), and
the raw gradient of the very batch that was audited. An attack that finds little here has little power, and
its silence elsewhere means little.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.adapters import attach
from fedpeft.config.models import AdapterConfig
from fedpeft.data import collate
from fedpeft.exchange.layout import FloatVector
from fedpeft.rng import stream
from fedpeft.training import per_example_loss
from fedpeft.training.modes import steady
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_attacks.sequences.probing import whole_example
from fedpeft_attacks.tokens.adversary_knowledge import layer_of, special_tokens
from fedpeft_attacks.views import Knowledge, Start, View

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.bases import Base

_WARM = 0.02


@dataclass(frozen=True)
class Reference:
    """A warm, undefended LoRA on the base, ready to give views of any batch."""

    attached: Attached
    knowledge: Knowledge

    def view(self, token_ids: Sequence[Sequence[int]], truth: Collection[int]) -> View:
        """The raw gradient of a batch as its observer sees it.

        Args:
            token_ids: the records of the batch.
            truth: their distinct tokens; only the number is used.
        """
        layout = self.attached.layout
        with steady(self.attached.model):
            values = sum((self._gradient(ids) for ids in token_ids), np.zeros(layout.size, np.float32))
        values = np.asarray(values / len(token_ids), np.float32)
        counts = len(truth), len(token_ids)
        return View("reference", "insider", "lora/naive", layout, values, self.knowledge, *counts)

    def _gradient(self, ids: Sequence[int]) -> FloatVector:
        """Of one record: a batch keeps gigabytes for its backward pass on a real base."""
        base, layout = self.attached.base, self.attached.layout
        batch = collate([whole_example(ids)], base.pad_id, base.device)
        batch.targets.clamp_(min=0)
        with torch.enable_grad():
            loss = per_example_loss(self.attached.model, batch, base.task).mean()
            parts = torch.autograd.grad(loss, list(self.attached.parameters.values()))
        return layout.flatten(dict(zip(layout.names, parts, strict=True)))


def undefended(
    base: Base,
    rank: int,
    prior: NDArray[np.float64],
    skip_layers: tuple[int, ...] = (),
    frame: RecordFrame | None = None,
) -> Reference:
    """Attach the reference to the base; whatever adapter was on it is taken off.

    Args:
        base: the base.
        rank: rank of the run's adapter.
        prior: the base's language prior, shape ``(tokens,)``.
        skip_layers: layers without adapter; to see what the attacks read where the run's adapter lies.
        frame: of the records; their tokens are weighted evenly here whatever it says.
    """
    adapter = AdapterConfig(aggregation="naive", rank=rank, skip_layers=skip_layers)
    attached = attach(base, adapter, seed=0)
    warm_start(attached)
    layer = layer_of(attached)
    knowledge = Knowledge(
        inputs=layer.inputs,
        readers=layer.readers,
        projections={},
        prior=prior,
        special=special_tokens(base),
        rows=attached.method.token_rows,
        start=Start(attached, attached.get()) if base.task == "causal-lm" else None,
        approximation=layer.approximation,
        placed=layer.placed,
        frame=None if frame is None else replace(frame, prompt_weight=1.0),
    )
    return Reference(attached, knowledge)


def warm_start(attached: Attached) -> None:
    """Move an adapter's trainable values off their start, as a malicious coordinator would send them.

    Small reproducible normal values are added to everything but LoRA's A, which is warm from the start.
    """
    attached.load(attached.layout.flatten({name: _warm(name, t) for name, t in attached.parameters.items()}))


def _warm(name: str, tensor: Any) -> NDArray[np.float32]:
    values = tensor.detach().float().cpu().numpy()
    if name.endswith(".lora_A.weight"):
        return values
    draws = stream(0, 0, name, "audit-warm-start").normal(scale=_WARM, size=values.shape)
    return values + draws.astype(np.float32)

"""The loss of each example by itself, for any Hugging Face causal LM or sequence classifier."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from fedpeft.training.modes import steady

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.config.models import Task
    from fedpeft.data import Batch

Loss = Callable[[Any, "Batch"], "Tensor"]
"""Model and batch to the loss of each example, float32, shape ``(B,)``.

No entry depends on another example, nor on what earlier calls have seen.
"""

PROBE_TOKENS = 6
PROBE_TOLERANCE = 1e-3

_selective: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
"""Models that were asked whether their head may be computed at chosen positions only."""


def per_example_loss(model: Any, batch: Batch, task: Task | None = None) -> Tensor:
    """Loss of each example, float32, shape ``(B,)``; no entry depends on another example.

    Causal LM: the token losses weighted by ``batch.weights`` and divided by the sum of the example's own
    weights (0 where that is 0). Sequence classification: cross entropy of ``batch.targets``.
    The loss of Hugging Face is never used: it divides by the tokens of the whole batch, so that a
    neighbour changes an example's gradient and no clip bounds its influence.
    """
    if (task or task_of(model)) == "sequence-classification":
        return functional.cross_entropy(class_logits(model, batch).float(), batch.targets, reduction="none")
    rows, columns = weighted_positions(batch)
    return causal_loss(batch, rows, columns, token_logits(model, batch.ids, rows, columns))


def weighted_positions(batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows and columns of the positions whose next token bears weight, row by row; int64, shapes ``(M,)``."""
    rows, columns = torch.nonzero(batch.weights[:, 1:], as_tuple=True)
    return rows, columns


def causal_loss(batch: Batch, rows: Tensor, columns: Tensor, logits: Tensor) -> Tensor:
    """Weighted mean of each example's token losses, shape ``(B,)``, from the logits at its positions."""
    losses = functional.cross_entropy(logits.float(), batch.ids[rows, columns + 1], reduction="none")
    losses = losses * batch.weights[rows, columns + 1]
    total = torch.zeros(len(batch.ids), device=losses.device).index_add(0, rows, losses)
    return total / batch.weights[:, 1:].sum(1).clamp(min=torch.finfo(torch.float32).tiny)


def token_logits(model: Any, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Next-token logits at chosen positions of a causal LM, shape ``(M, V)``.

    Padding is on the right and there is no attention mask: bit-identical to a masked pass for causal models.
    The head runs at the chosen positions only where a probe has shown that this changes nothing.

    Args:
        model: the model, with or without an adapter.
        ids: int64, shape ``(B, T)``.
        rows: examples of the positions, shape ``(M,)``.
        columns: the positions, shape ``(M,)``; logits at ``t`` predict token ``t + 1``.
    """
    if len(rows) and _may_select(model, ids.device):
        return _selected_logits(model, ids, rows, columns)
    return _all_logits(model, ids)[rows, columns]


@contextmanager
def logits_at(model: Any, rows: Tensor, columns: Tensor) -> Generator[Callable[[Tensor], Tensor]]:
    """Yields what takes the logits at chosen positions, ``(M, V)``, from those of a pass inside.

    For passes that `token_logits` does not make; the head runs at these positions only where it may.
    """
    if not _may_select(model, rows.device):
        yield lambda logits: logits[rows, columns]
        return
    with _head_at(model, rows, columns):
        yield lambda logits: logits[0]


def class_logits(model: Any, batch: Batch) -> Tensor:
    """Logits of a sequence classifier, shape ``(B, classes)``."""
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    mask = (positions[None] < batch.lengths[:, None]).long()
    return model(input_ids=batch.ids, attention_mask=mask).logits


def task_of(model: Any) -> Task:
    """The task of a model, read from the class of its base."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    is_classifier = type(base).__name__.endswith("ForSequenceClassification")
    return "sequence-classification" if is_classifier else "causal-lm"


def _all_logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]


def _selected_logits(model: Any, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    with _head_at(model, rows, columns):
        return model(input_ids=ids, use_cache=False).logits[0]


@contextmanager
def _head_at(model: Any, rows: Tensor, columns: Tensor) -> Generator[None]:
    """Cuts the head's input down to the chosen positions, by a hook: logits have the shape ``(1, M, V)``."""

    def choose(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def _may_select(model: torch.nn.Module, device: torch.device) -> bool:
    if model not in _selective:
        _selective[model] = _head_is_pointwise(model, device)
    return _selective[model]


def _head_is_pointwise(model: Any, device: torch.device) -> bool:
    """Whether a frozen head at chosen positions gives the logits of the full pass, on made-up tokens."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, torch.nn.Linear) or any(p.requires_grad for p in head.parameters()):
        return False
    ids = torch.arange(2 * PROBE_TOKENS, device=device).reshape(2, PROBE_TOKENS) % head.out_features
    rows, columns = torch.tensor([0, 1, 1], device=device), torch.tensor([3, 0, 4], device=device)
    with torch.no_grad(), steady(model):
        whole = _all_logits(model, ids)[rows, columns].float()
        chosen = _selected_logits(model, ids, rows, columns).float()
    if chosen.shape != whole.shape:
        return False
    return bool((chosen - whole).abs().max() <= PROBE_TOLERANCE * whole.abs().max())

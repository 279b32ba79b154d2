"""Scores of all candidates of a round against everything that was observed in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedpeft.data.batches import gather
from fedpeft.exchange.layout import FloatVector
from fedpeft.progress_reports import each
from fedpeft.training import per_example_loss
from fedpeft.training.modes import steady
from fedpeft_attacks.evidence.taps import GRADIENT
from fedpeft_attacks.memory.statistics import Floats
from fedpeft_attacks.update_membership.alignment import Alignment, Matrix, Preconditioner
from fedpeft_attacks.update_membership.candidates import FEWEST
from fedpeft_attacks.update_membership.residuals import Residuals

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.data import Example

ALIGNMENT, COSINE, PROJRES = "gradient alignment", "plain gradient cosine", "projection residual (ProjRes)"
"""Scores of a candidate; the first is judged, the others stand beside it."""

FLOATS = 2**28
"""At most so many numbers of auxiliary gradients are kept at a time: 1 GiB."""

Column = tuple[str, str]
"""Stage and node of observed values; the mean has a name of its own for all nodes."""


@dataclass(frozen=True)
class Observation:
    """What the adversary holds of one round, or of one batch.

    Attributes:
        attached: the adapter on its base.
        start: trainable values before the round, shape ``(D,)``.
        values: observed values by stage and node, each of shape ``(D,)``.
        projections: fixed input projections by module, shape ``(rank, in)``.
        of_gradients: whether updates are sums of gradients, as SGD makes them, and not of Adam's steps.
        auxiliary: records of which the adversary knows that they are not behind the values.
    """

    attached: Attached = field(repr=False)
    start: FloatVector = field(repr=False)
    values: Mapping[Column, FloatVector] = field(repr=False)
    projections: Mapping[str, Any] = field(repr=False)
    of_gradients: bool
    auxiliary: Sequence[Example] = field(repr=False)


@dataclass(frozen=True)
class RoundScores:
    """Scores by their name, the group of the candidates and the column, float64, shape ``(candidates,)``.

    Attributes:
        table: the scores; those that could not be computed are missing.
        gradients: how many gradients of records were computed.
    """

    table: Mapping[tuple[str, str, Column], Floats]
    gradients: int


def score_round(seen: Observation, candidates: Mapping[str, Sequence[Example]]) -> RoundScores:
    """Score every candidate against everything observed, also against what is another node's.

    The values of the adapter are those before the round again on return.

    Args:
        seen: what the adversary holds; who was drawn is not among it.
        candidates: groups of records by name.
    """
    attached, columns = seen.attached, list(seen.values)
    attached.load(seen.start)
    known = _auxiliary_gradients(seen)
    signs = [1 if stage == GRADIENT else -1 for stage, _ in columns]  # training moves against the gradient
    observed = np.stack([sign * values for sign, values in zip(signs, seen.values.values(), strict=True)])
    raw = [seen.of_gradients or stage == GRADIENT for stage, _ in columns]
    alignment = Alignment.of(observed, Preconditioner.of(known) if len(known) else None, raw)
    residuals = Residuals.of(list(seen.values.values()), attached, seen.projections)
    table: dict[tuple[str, str, Column], Floats] = {}
    for name, examples in candidates.items():
        scores = _passes(attached, examples, alignment, residuals)
        table |= {
            (score, name, column): values[:, place]
            for score, values in scores.items()
            for place, column in enumerate(columns)
        }
    return RoundScores(table, sum(map(len, candidates.values())) + len(known))


def gradient_of(attached: Attached, examples: Sequence[Example]) -> FloatVector:
    """Gradient of the mean loss of records as they are trained on, float32, shape ``(D,)``.

    To be called while the model is `steady`, which takes longer than a short record's gradient.
    """
    batch = gather(attached.model, examples)
    with torch.enable_grad():
        loss = per_example_loss(attached.model, batch, attached.base.task).mean()
        parts = torch.autograd.grad(loss, list(attached.parameters.values()))
    return attached.layout.flatten(dict(zip(attached.parameters, parts, strict=True)))


def _auxiliary_gradients(seen: Observation) -> Matrix:
    """Shape ``(n, D)``; no rows where there are too few records to learn from."""
    size = seen.attached.layout.size
    examples = seen.auxiliary[: max(FEWEST, FLOATS // size)] if len(seen.auxiliary) >= FEWEST else []
    gradients = np.empty((len(examples), size), np.float32)
    with steady(seen.attached.model):
        for place, example in enumerate(each(examples, "auxiliary gradient")):
            gradients[place] = gradient_of(seen.attached, [example])
    return gradients


def _passes(
    attached: Attached, examples: Sequence[Example], alignment: Alignment, residuals: Residuals
) -> dict[str, Floats]:
    """What one gradient of each candidate gives: scores by name, shape ``(candidates, columns)``."""
    rows: dict[str, list[Floats]] = {ALIGNMENT: [], COSINE: []} | ({PROJRES: []} if residuals.parts else {})
    with residuals.reading(attached.model), steady(attached.model):
        for example in each(examples, "candidate"):
            gradient = gradient_of(attached, [example])
            rows[ALIGNMENT].append(alignment(gradient))
            rows[COSINE].append(alignment.cosine(gradient))
            if residuals.parts:
                rows[PROJRES].append(residuals())
    return {name: np.stack(values) for name, values in rows.items() if values}

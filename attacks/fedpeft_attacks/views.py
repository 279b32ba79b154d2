"""What an adversary holds: the threat model as a type. An attack sees a View and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import AuditError
from fedpeft.exchange.layout import FloatVector, Layout

Role = Literal["node", "coordinator", "participant"]

THREAT_MODELS: dict[Role, str] = {
    "node": "someone inside the node, before the later steps of the exchange plan",
    "coordinator": "an honest-but-curious coordinator that opens the envelope",
    "participant": "the coordinator and every other organisation, which get the mean",
}
"""Who sees a stage, in plain words."""


@dataclass(frozen=True)
class Knowledge:
    """What the adversary knows beside the update; all of it is public to the members of a federation.

    Attributes:
        inputs: shape ``(tokens, width)``: what the first adapted modules read for each token of the
            vocabulary; in layer 0 that is the first norm of the embedding.
        readers: names of the adapted modules that read `inputs`.
        projections: module name to its fixed input projection, shape ``(rank, width)``: LoRA's A where it is
            agreed or still at its start, the summing matrix of MiSS.
        prior: how often each token occurs in text sampled from the base, shape ``(tokens,)``, sum 1.
        given: ids of special tokens, which are in every batch and are no secret.
        lr: local learning rate of the round.
        approximation: why `inputs` are only near what is read, None where they are exact.
    """

    inputs: NDArray[np.floating]
    readers: frozenset[str]
    projections: Mapping[str, NDArray[np.floating]]
    prior: NDArray[np.float64]
    given: frozenset[int] = frozenset()
    lr: float = 0.0
    approximation: str | None = None


@dataclass(frozen=True)
class View:
    """One update as seen at one stage, with what its observer knows.

    Attributes:
        stage: name of the stage of the exchange plan.
        role: who sees this stage.
        adapter: the adapter's method and aggregation, such as ``lora/frozen_a``.
        layout: names and shapes of the tensors in `values`.
        values: the observed update or gradient, float32, shape ``(layout.size,)``.
        knowledge: what the observer knows beside it.
        tokens: number of distinct tokens that the attacker assumes; the audit grants the true number.
    """

    stage: str
    role: Role
    adapter: str
    layout: Layout
    values: FloatVector
    knowledge: Knowledge = field(repr=False)
    tokens: int

    def __post_init__(self) -> None:
        if self.values.shape != (self.layout.size,):
            raise AuditError(
                f"stage {self.stage!r} holds {self.values.size} values, the layout has {self.layout.size}; "
                "audit the run with the config it was made with"
            )
        if not np.isfinite(self.values).all():
            raise AuditError(f"stage {self.stage!r} holds values that are not finite; the tap is damaged")


@dataclass(frozen=True)
class NotApplicable:
    """Why an attack has nothing to read in a view; one plain clause."""

    reason: str


@dataclass(frozen=True)
class Guess:
    """What an attack reads from a view.

    Attributes:
        ranking: token ids without the special ones, the most likely first.
        claimed: how many of them the attack itself would call certain.
        method: which solver spoke, in plain words.
    """

    ranking: list[int]
    claimed: int
    method: str


def role_of(stage: str) -> Role:
    """Who sees a stage: the envelope is the coordinator's, the aggregate everyone's, the rest the node's."""
    if stage == "aggregate":
        return "participant"
    return "coordinator" if stage == "envelope" else "node"

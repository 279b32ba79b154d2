"""What an adversary holds: the threat model as a type. An attack sees a View and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import AuditError
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft_attacks.work import NOTHING, Work

if TYPE_CHECKING:
    from fedpeft.adapters import Attached, TokenRows
    from fedpeft_attacks.record_frame import RecordFrame
    from fedpeft_attacks.tokens.placed_inputs import PlacedInputs

Role = Literal["insider", "coordinator", "malicious-coordinator", "peer", "outsider"]

THREAT_MODELS: dict[Role, str] = {
    "insider": "someone inside the node, before the later steps of the exchange plan",
    "coordinator": "an honest-but-curious coordinator that opens the envelope",
    "malicious-coordinator": "a coordinator that chose base or starting adapter and opens the envelope",
    "peer": "the coordinator and every other organisation, which get the mean",
    "outsider": "anyone who holds the base and the released adapter",
}
"""Who sees a stage, in plain words."""

Need = Literal["token inputs", "model", "records"]
"""What an attack may need beside the observed values; `View.holds` says what a view has."""


@dataclass(frozen=True, eq=False)
class Start:
    """Base and adapter as they were handed out before the update: what whoever holds both can run.

    Each is one of its own; what is found out about it is kept with it.

    Attributes:
        attached: the adapter on the base, whose update is a plain mean; one is attached per process, so use
            what `ready` returns.
        state: trainable values before the update, float32, shape ``(layout.size,)``.
    """

    attached: Attached
    state: FloatVector

    def ready(self) -> Attached:
        """The adapter on the base, with these values loaded; whatever was attached before is taken off."""
        from fedpeft.adapters import attach

        attached = attach(self.attached.base, self.attached.config, self.attached.seed)
        attached.load(self.state)
        return attached


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
        special: ids of special tokens, which are in every batch and are no secret.
        lr: local learning rate of the round.
        rows: which tensors show tokens, as the adapter method declares it; None: it does not, and attacks on
            tokens do not cover it.
        start: base and adapter before the update; None where the observer does not hold them.
        approximation: why `inputs` are only near what is read, None where they are exact.
        unread: what the update shows beside that, which no attack reads; empty: nothing.
        frame: how records begin and end and how their tokens are weighted; None: with the base's start and
            end token, and evenly.
        placed: the same inputs by token and place, exact, where they depend on the place; None: they do not,
            or not in a way that is known.
    """

    inputs: NDArray[np.floating]
    readers: frozenset[str]
    projections: Mapping[str, NDArray[np.floating]]
    prior: NDArray[np.float64]
    special: frozenset[int] = frozenset()
    lr: float = 0.0
    rows: TokenRows | None = None
    start: Start | None = None
    approximation: str | None = None
    unread: str = ""
    frame: RecordFrame | None = None
    placed: PlacedInputs | None = field(default=None, repr=False)


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
        records: number of records that the attacker assumes; the audit grants the true number. 0: unknown.
    """

    stage: str
    role: Role
    adapter: str
    layout: Layout
    values: FloatVector
    knowledge: Knowledge = field(repr=False)
    tokens: int
    records: int = 0

    @property
    def holds(self) -> frozenset[Need]:
        """What this view has beside its values."""
        has: dict[Need, bool] = {
            "token inputs": bool(self.knowledge.readers),
            "model": self.knowledge.start is not None,
            "records": self.records > 0,
        }
        return frozenset(need for need, is_present in has.items() if is_present)

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
class NotCovered(NotApplicable):
    """Why an attack cannot say anything of a view, though there may be something to read in it."""


UNDECLARED = NotCovered("the adapter method declares no token_rows, so nobody knows where tokens show")


@dataclass(frozen=True)
class Guess:
    """What an attack reads from a view.

    Attributes:
        ranking: token ids without the special ones, the most likely first.
        claimed: how many of them the attack itself would call certain.
        method: which solver spoke, in plain words.
        sequences: whole records in the order of their tokens, special ones included; empty: none was tried.
        certain: which of `sequences` the attack itself knows to be exact.
        work: what was done for it.
        note: what makes it weaker here: inputs that are only near, or what its cost left out; empty: nothing.
    """

    ranking: list[int]
    claimed: int
    method: str
    sequences: tuple[tuple[int, ...], ...] = ()
    certain: tuple[bool, ...] = ()
    work: Work = NOTHING
    note: str = ""


def role_of(stage: str) -> Role:
    """Who sees a stage: the envelope is the coordinator's, the mean everyone's, the rest the node's own."""
    roles: dict[str, Role] = {"aggregate": "peer", "envelope": "coordinator", "released": "outsider"}
    return roles.get(stage, "insider")

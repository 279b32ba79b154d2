"""The attacks: plain functions from a View to a Guess, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from fedpeft.errors import AuditError
from fedpeft.plugins import ATTACKS, AUDIT_PARTS
from fedpeft.plugins import register_attack as register_attack
from fedpeft.registry import nearest
from fedpeft_attacks.tokens.blocks import Block
from fedpeft_attacks.tokens.observations import observations
from fedpeft_attacks.tokens.placed_recovery import read_places
from fedpeft_attacks.tokens.span_check import span_check
from fedpeft_attacks.tokens.sparse_recovery import Ranking, guess_of, sparse_recovery
from fedpeft_attacks.views import UNDECLARED, Guess, Need, NotApplicable, View
from fedpeft_attacks.work import SAFETY, Meter

Solver = Callable[[View], Guess | NotApplicable]

ALONE, TOGETHER = 96, 16
"""Steps of the assembly of one record, or of several, in views that are audited and in trials of its power.

One record: a whole pass of the beam over the longest that is tried, ``data.max_length`` where it is known;
one that it finds takes as many steps as it has tokens. Several were not found in six times as many, and each
step of theirs takes longer; where the row spaces are complete, a tree finds them in steps of its own.
"""


def _attack(
    solve: Callable[[View, Sequence[Block], Meter], Ranking], view: View, seconds: float
) -> Guess | NotApplicable:
    meter = Meter(seconds=seconds)
    if view.knowledge.placed is not None:
        return read_places(view, solve is _span, meter)
    blocks = observations(view)
    if isinstance(blocks, NotApplicable):
        return blocks
    return guess_of(solve(view, blocks, meter), view.knowledge, meter)


def _span(view: View, blocks: Sequence[Block], meter: Meter) -> Ranking:
    meter.step()
    ranking, claimed = span_check(blocks)
    return Ranking(ranking, claimed, "span check")


def _sparse(view: View, blocks: Sequence[Block], meter: Meter) -> Ranking:
    return sparse_recovery(blocks, view.knowledge, view.tokens + len(view.knowledge.special), meter)


def _records(view: View, seconds: float) -> Guess | NotApplicable:
    from fedpeft_attacks.sequences import Budget, assemble

    longest = ALONE if view.knowledge.frame is None else view.knowledge.frame.longest
    steps = longest if view.records == 1 else TOGETHER
    return assemble(view, Budget(steps, longest=longest, seconds=seconds))


@dataclass(frozen=True)
class Attack:
    """An attack as the suite knows it.

    Attributes:
        name: as ``audit.attacks`` uses it.
        needs: what a view must hold beside its values; it cannot run on any other.
        solve: the attack itself, of a view and the processor seconds of its safety stop.
        text: what it does, for the report: one or two plain sentences with the source.
        trials: on how many undefended batches its power is measured at most; None: on all that were tapped.
    """

    name: str
    needs: frozenset[Need]
    solve: Callable[[View, float], Guess | NotApplicable]
    text: str
    trials: int | None = None

    def __call__(self, view: View, seconds: float = SAFETY) -> Guess | NotApplicable:
        """Attack a view that holds what is needed.

        Args:
            view: the view.
            seconds: processor seconds of the safety stop; what it ends says so in its `Work`.
        """
        if "token inputs" in self.needs and view.knowledge.rows is None:
            return UNDECLARED
        missing = sorted(self.needs - view.holds)
        if missing:
            return NotApplicable(f"it needs {' and '.join(missing)}, which this observer does not hold")
        return self.solve(view, seconds)


SPAN = Attack(
    "span",
    frozenset({"token inputs"}),
    partial(_attack, _span),
    "Span check (DAGER, Petrov et al. 2024). Gradients of the first layer are sums of known vectors, "
    "one per token; the check asks of each token whether its vector lies in what was sent.",
)
SPARSE_RECOVERY = Attack(
    "sparse-recovery",
    frozenset({"token inputs"}),
    partial(_attack, _sparse),
    "Sparse recovery (rank-aware matching pursuit, Davies and Eldar 2012; where the update is full "
    "or noisy, sparse Bayesian recovery, Wipf and Rao 2007). Looks for the few tokens whose vectors "
    "together explain what was sent, also where there are many more tokens than ranks; may use what "
    "the base tends to write.",
)
SEQUENCES = Attack(
    "sequences",
    frozenset({"token inputs", "model", "records"}),
    _records,
    "Sequence assembly (span checks of partial records as in DAGER, Petrov et al. 2024; pairing as "
    "in ReCIT, Xie et al. 2025). Writes whole records token by token so that their gradient explains "
    "what was sent, helped by what the base writes; where nothing is left, it knows it is right.",
    trials=2,
)


def attack_named(name: str) -> Attack:
    """The attack of this name.

    Raises:
        AuditError: there is none.
    """
    if name not in ATTACKS:
        raise AuditError(f"unknown attack {name!r}; {nearest('attack', name, (*ATTACKS, *AUDIT_PARTS))}")
    return ATTACKS[name]


def remembering(attack: Solver) -> Solver:
    """The same attack that answers at once where it has seen the same values with the same knowledge.

    The last stages of an exchange plan often hold the very same values.
    """
    answers: dict[tuple[bytes, int, int, int], tuple[View, Guess | NotApplicable]] = {}

    def remembered(view: View) -> Guess | NotApplicable:
        key = (sha256(view.values.tobytes()).digest(), id(view.knowledge), view.tokens, view.records)
        if key not in answers:
            answers[key] = (view, attack(view))  # the view keeps its knowledge, and so its id, alive
        return answers[key][1]

    return remembered

"""The power of an attack: what it reads from the undefended reference on the batches that were audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.config.models import AdapterConfig
from fedpeft_attacks.findings import Power
from fedpeft_attacks.gathering import Evidence, Observed, distinct
from fedpeft_attacks.reference import Reference, undefended
from fedpeft_attacks.registry import Solver
from fedpeft_attacks.scoring import Score, recall, score
from fedpeft_attacks.taps import Tap, TokenIds
from fedpeft_attacks.views import Guess


@dataclass(frozen=True)
class Trials:
    """Undefended views of the batches of step 1.

    Attributes:
        batches: the whole batches.
        records: the first record of each batch alone.
        layer: the same records, read from the layers that the run adapts.
    """

    batches: tuple[Observed, ...]
    records: tuple[Observed, ...]
    layer: tuple[Observed, ...]


def trials_of(evidence: Evidence, adapter: AdapterConfig, taps: Sequence[Tap]) -> Trials:
    """Attach the reference and take its views; at last without the layers that the run leaves out."""
    taps = [tap for tap in taps if tap.first]
    reference = undefended(evidence.base, adapter.rank, evidence.prior)
    batches = tuple(_view(reference, tap, tap.first) for tap in taps)
    records = tuple(_view(reference, tap, tap.first[:1]) for tap in taps)
    if not adapter.skip_layers:
        return Trials(batches, records, records)
    reference = undefended(evidence.base, adapter.rank, evidence.prior, adapter.skip_layers)
    return Trials(batches, records, tuple(_view(reference, tap, tap.first[:1]) for tap in taps))


def power_of(attack: Solver, trials: Trials) -> Power | None:
    """What an attack reads from the undefended reference; None where no batch was tapped."""
    if not trials.batches:
        return None
    batches, records, layer = (
        [_score(attack, one) for one in group] for group in (trials.batches, trials.records, trials.layer)
    )
    return Power(
        batch=recall([part.all for part in batches]) or 0.0,
        rare=recall([part.rare for part in batches]),
        record=recall([part.all for part in records]) or 0.0,
        layer=recall([part.all for part in layer]) or 0.0,
    )


def _view(reference: Reference, tap: Tap, records: TokenIds) -> Observed:
    truth = distinct(records, reference.knowledge)
    return Observed(tap.node, tap.round, reference.view(records, truth), truth)


def _score(attack: Solver, one: Observed) -> Score:
    answer, known = attack(one.view), one.view.knowledge
    guess = answer if isinstance(answer, Guess) else Guess([], 0, answer.reason)
    return score(guess, one.truth, known.prior, known.given)

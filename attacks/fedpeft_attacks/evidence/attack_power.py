"""The power of an attack: what it reads from the undefended reference on the batches that were audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.config.models import AdapterConfig
from fedpeft.progress_reports import each
from fedpeft_attacks.evidence.collect_views import Evidence, Observed, distinct
from fedpeft_attacks.evidence.taps import Tap, TokenIds
from fedpeft_attacks.evidence.undefended_reference import Reference, undefended
from fedpeft_attacks.registry import Attack, remembering
from fedpeft_attacks.results.measures import Strength
from fedpeft_attacks.results.record_scores import exact_records
from fedpeft_attacks.results.token_scores import Score, recall, score
from fedpeft_attacks.views import Guess
from fedpeft_attacks.work import worked

_WHERE = "the raw gradient of {} of the same batches, with an unprotected LoRA on all layers"


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
    reference = undefended(evidence.base, adapter.rank, evidence.prior, frame=evidence.frame)
    batches = tuple(_view(reference, tap, tap.first) for tap in each(taps, "gradient of a batch"))
    records = tuple(_view(reference, tap, tap.first[:1]) for tap in taps)
    if not adapter.skip_layers:
        return Trials(batches, records, records)
    reference = undefended(evidence.base, adapter.rank, evidence.prior, adapter.skip_layers, evidence.frame)
    return Trials(batches, records, tuple(_view(reference, tap, tap.first[:1]) for tap in taps))


def power_of(attack: Attack, trials: Trials) -> Strength | None:
    """What an attack reads from the undefended reference; None where it cannot be tried.

    An attack that needs to write whole records is measured by those, any other by tokens, and where it
    writes a record that stands alone, by that as well.
    """
    kinds = trials.batches, trials.records, trials.layer
    solve = remembering(attack)
    views = [(place, observed) for place, group in enumerate(kinds) for observed in group[: attack.trials]]
    answers = [(place, (observed, solve(observed.view))) for place, observed in each(views, "trial")]
    groups = [[pair for at, pair in answers if at == place] for place in range(len(kinds))]
    read = [[(observed, guess) for observed, guess in group if isinstance(guess, Guess)] for group in groups]
    if not all(read):
        return None
    batches, records, layer = read
    shares: dict[str, tuple[float | None, Read]]
    if "records" in attack.needs:
        shares = {
            "the records of a batch, word for word": (_exact(batches), batches),
            "one record alone": (_exact(records), records),
            "one record from the layers of this adapter": (_exact(layer), layer),
        }
    else:
        shares = {
            "the tokens of a batch": (_recall(batches), batches),
            "its rare tokens": (recall([_score(*pair).rare for pair in batches]), batches),
            "the tokens of one record": (_recall(records), records),
            "those of one record from the layers of this adapter": (_recall(layer), layer),
        }
        if any(guess.sequences for _, guess in records):
            shares["one record alone, word for word"] = (_exact(records), records)
    values = {name: value for name, (value, _) in shares.items()}
    work = {name: worked([guess.work for _, guess in group]) for name, (_, group) in shares.items()}
    return Strength(text=_WHERE.format(len(batches)), shares=values, work=work)


Read = Sequence[tuple[Observed, Guess]]


def _view(reference: Reference, tap: Tap, records: TokenIds) -> Observed:
    truth = distinct(records, reference.knowledge)
    return Observed(tap.node, tap.round, reference.view(records, truth), truth, records)


def _recall(read: Read) -> float:
    return recall([_score(*pair).all for pair in read]) or 0.0


def _exact(read: Read) -> float:
    counts = [exact_records(*pair) for pair in read]
    return sum(hits for hits, _ in counts) / max(sum(total for _, total in counts), 1)


def _score(observed: Observed, guess: Guess) -> Score:
    known = observed.view.knowledge
    return score(guess, observed.truth, known.prior, known.special)

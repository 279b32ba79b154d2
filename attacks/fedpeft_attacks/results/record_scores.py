"""Whole records and personal data: what an attack that writes sequences has recovered of the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedpeft.data import Record
from fedpeft_attacks.evidence.collect_views import Observed
from fedpeft_attacks.results.measures import SECRETS, SEQUENCES, Baselines, Measure
from fedpeft_attacks.results.pii import secrets_of
from fedpeft_attacks.results.token_scores import wilson
from fedpeft_attacks.views import Guess

Place = tuple[str, int]


def record_measures(
    read: Sequence[Observed], guesses: Mapping[Place, Guess], tokenizer: Any
) -> list[Measure]:
    """Share of the records recovered exactly, and of their personal data recovered verbatim.

    The control is what the same attack wrote for another node's update of the same round; no chance or prior
    writes whole records, so both are 0 there. Personal data that recur among records of two nodes would be
    hit by the control as well.

    Args:
        read: views with the records behind them.
        guesses: what the attack wrote, by node and round.
        tokenizer: of the base.
    """
    if not any(guess.sequences for guess in guesses.values()):
        return []
    counts = [(_records(observed, guesses), _secrets(observed, guesses, tokenizer)) for observed in read]
    named = zip((SEQUENCES, SECRETS), zip(*counts, strict=True), strict=True)
    return [_measure(name, parts) for name, parts in named if sum(total for _, _, total in parts)]


def exact_records(observed: Observed, guess: Guess) -> tuple[int, int]:
    """How many records behind a view were written word for word, and of how many."""
    truth = {_bare(record, observed) for record in observed.records}
    return len(truth & {_bare(row, observed) for row in guess.sequences}), len(truth)


Part = tuple[int, int, int]
"""Hits of the attack, hits of the control, and how many there were to hit."""


def _records(observed: Observed, guesses: Mapping[Place, Guess]) -> Part:
    exact, total = exact_records(observed, guesses[observed.node, observed.round])
    truth = {_bare(record, observed) for record in observed.records}
    other = {_bare(row, observed) for guess in _others(observed, guesses) for row in guess.sequences}
    return exact, len(truth & other), total


def _secrets(observed: Observed, guesses: Mapping[Place, Guess], tokenizer: Any) -> Part:
    texts = [tokenizer.decode(list(_bare(record, observed))) for record in observed.records]
    truth = {secret for text in texts for secret in secrets_of(Record(text, ""))}
    written = _text(observed, [guesses[observed.node, observed.round]], tokenizer)
    other = _text(observed, list(_others(observed, guesses)), tokenizer)
    return sum(s in written for s in truth), sum(s in other for s in truth), len(truth)


def _text(observed: Observed, guesses: Sequence[Guess], tokenizer: Any) -> str:
    rows = [_bare(row, observed) for guess in guesses for row in guess.sequences]
    return "\n".join(tokenizer.decode(list(row)) for row in rows)


def _others(observed: Observed, guesses: Mapping[Place, Guess]) -> Iterator[Guess]:
    return (
        guess
        for (node, round_), guess in guesses.items()
        if round_ == observed.round and node != observed.node
    )


def _bare(tokens: Sequence[int], observed: Observed) -> tuple[int, ...]:
    special = observed.view.knowledge.special
    return tuple(int(token) for token in tokens if token not in special)


def _measure(name: str, parts: Sequence[Part]) -> Measure:
    hits, control, total = (sum(column) for column in zip(*parts, strict=True))
    baselines = Baselines(chance=0.0, prior=None, control=control / total)
    return Measure(
        name=name,
        unit="share",
        value=hits / total,
        interval=wilson(hits, total),
        baselines=baselines,
        count=total,
    )

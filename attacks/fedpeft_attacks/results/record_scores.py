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


def wholes(read: Sequence[Observed], guesses: Mapping[Place, Guess], tokenizer: Any) -> list[Measure]:
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
    counts = [(_records(one, guesses), _secrets(one, guesses, tokenizer)) for one in read]
    named = zip((SEQUENCES, SECRETS), zip(*counts, strict=True), strict=True)
    return [_measure(name, parts) for name, parts in named if sum(total for _, _, total in parts)]


def exact_records(one: Observed, guess: Guess) -> tuple[int, int]:
    """How many records behind a view were written word for word, and of how many."""
    truth = {_bare(record, one) for record in one.records}
    return len(truth & {_bare(row, one) for row in guess.sequences}), len(truth)


Part = tuple[int, int, int]
"""Hits of the attack, hits of the control, and how many there were to hit."""


def _records(one: Observed, guesses: Mapping[Place, Guess]) -> Part:
    own, total = exact_records(one, guesses[one.node, one.round])
    truth = {_bare(record, one) for record in one.records}
    other = {_bare(row, one) for guess in _others(one, guesses) for row in guess.sequences}
    return own, len(truth & other), total


def _secrets(one: Observed, guesses: Mapping[Place, Guess], tokenizer: Any) -> Part:
    texts = [tokenizer.decode(list(_bare(record, one))) for record in one.records]
    truth = {secret for text in texts for secret in secrets_of(Record(text, ""))}
    own = _text(one, [guesses[one.node, one.round]], tokenizer)
    other = _text(one, list(_others(one, guesses)), tokenizer)
    return sum(s in own for s in truth), sum(s in other for s in truth), len(truth)


def _text(one: Observed, guesses: Sequence[Guess], tokenizer: Any) -> str:
    rows = [_bare(row, one) for guess in guesses for row in guess.sequences]
    return "\n".join(tokenizer.decode(list(row)) for row in rows)


def _others(one: Observed, guesses: Mapping[Place, Guess]) -> Iterator[Guess]:
    return (guess for (node, round_), guess in guesses.items() if round_ == one.round and node != one.node)


def _bare(tokens: Sequence[int], one: Observed) -> tuple[int, ...]:
    given = one.view.knowledge.given
    return tuple(int(token) for token in tokens if token not in given)


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

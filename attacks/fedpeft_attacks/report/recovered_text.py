"""Recovered text beside the truth: for the organisation's own copy only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from fedpeft_attacks.evidence.collect_views import Observed
from fedpeft_attacks.registry import Solver
from fedpeft_attacks.results.findings import Example
from fedpeft_attacks.views import Guess

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HIDDEN = "□"
"""Stands for a run of tokens that the attack did not find."""


def example_of(
    name: str, attack: Solver, group: Sequence[Observed], tokenizer: PreTrainedTokenizerBase
) -> Example | None:
    """The record of which an attack recovers most beyond the base's guesses; None where it does not speak.

    Where the attack gives whole records, the nearest of them stands beside the truth. Where it gives a set of
    tokens, the record is written out with the tokens that are not in the set hidden: its order is granted.

    Args:
        name: the attack's name.
        attack: the attack; best one that remembers its answers.
        group: views of one stage, with the records behind them.
        tokenizer: of the base.
    """
    examples: list[tuple[float, Example]] = []
    for observed in group:
        answer = attack(observed.view)
        if isinstance(answer, Guess):
            examples += [_beside(name, observed, answer, record, tokenizer) for record in observed.records]
    return max(examples, key=lambda item: item[0])[1] if examples else None


def _beside(
    name: str, observed: Observed, answer: Guess, record: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[float, Example]:
    """Share recovered of a record beyond what the base would guess, and the example of it."""
    known = observed.view.knowledge
    truth = [token for token in record if token not in known.special]
    facts = {"stage": observed.view.stage, "attack": name, "truth": _text(truth, tokenizer)}
    if answer.sequences:
        share, best = max((_likeness(truth, sequence), sequence) for sequence in answer.sequences)
        return share, Example(**facts, recovered=_text(best, tokenizer))
    read = set(answer.ranking[: observed.view.tokens])
    common = [
        int(token) for token in np.argsort(-known.prior, kind="stable") if int(token) not in known.special
    ]
    guessed = set(common[: observed.view.tokens])
    shown, without = (_masked(truth, tokens, tokenizer) for tokens in (read, guessed))
    share = sum((token in read) - (token in guessed) for token in truth) / max(len(truth), 1)
    return share, Example(**facts, recovered=shown, without=without)


def _masked(truth: Sequence[int], recovered: Collection[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The record with every run of tokens hidden that are not held."""
    runs = ((known, list(run)) for known, run in groupby(truth, key=lambda token: token in recovered))
    return " ".join(_text(run, tokenizer).strip() if known else HIDDEN for known, run in runs)


def _likeness(truth: Sequence[int], guess: Sequence[int]) -> float:
    return SequenceMatcher(None, list(truth), list(guess), autojunk=False).ratio()


def _text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

"""Generated answers against the true ones: exact match and token F1 as SQuAD counts them, and ROUGE-L.

SQuAD: Rajpurkar et al., arXiv 1606.05250 and 1806.03822, with the normalisation of their evaluation script.
ROUGE-L: Lin 2004, F-measure, with the tokens of the package ``rouge-score`` without stemming.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_WORD = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class AnswerFigures:
    """Means over the records, each from 0 to 1.

    Attributes:
        exact_match: share of answers equal to the true one after `normalised`.
        token_f1: mean `token_f1`.
        rouge_l: mean `rouge_l`.
        unfinished: share of answers that reached the limit of new tokens.
    """

    exact_match: float
    token_f1: float
    rouge_l: float
    unfinished: float


def answer_figures(answers: Sequence[str], truths: Sequence[str], unfinished: int) -> AnswerFigures:
    """Figures of answers, in the order of the true ones; at least one.

    Args:
        answers: as generated.
        truths: as many.
        unfinished: how many answers reached the limit of new tokens.
    """
    pairs = list(zip(answers, truths, strict=True))
    return AnswerFigures(
        exact_match=float(np.mean([normalised(answer) == normalised(truth) for answer, truth in pairs])),
        token_f1=float(np.mean([token_f1(answer, truth) for answer, truth in pairs])),
        rouge_l=float(np.mean([rouge_l(answer, truth) for answer, truth in pairs])),
        unfinished=unfinished / len(pairs),
    )


def normalised(text: str) -> str:
    """Lower case without ASCII punctuation, English articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall of normalised words; where one has none, 1 if both have none."""
    words, wanted = normalised(answer).split(), normalised(truth).split()
    if not words or not wanted:
        return float(words == wanted)
    return _f1(sum((Counter(words) & Counter(wanted)).values()), len(words), len(wanted))


def rouge_l(answer: str, truth: str) -> float:
    """F-measure of the longest common subsequence of words; 0 without words.

    Words are runs of a-z and 0-9, as in ``rouge-score``: other letters separate them.
    """
    words, wanted = _words(answer), _words(truth)
    if not words or not wanted:
        return 0.0
    return _f1(_common(words, wanted), len(words), len(wanted))


def _words(text: str) -> list[str]:
    return _NO_WORD.sub(" ", text.lower()).split()


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for token in first:
        corner = 0  # of the row before, one column to the left
        for column, other in enumerate(second, 1):
            best = corner + 1 if token == other else max(row[column], row[column - 1])
            corner, row[column] = row[column], best
    return row[-1]


def _f1(common: int, length: int, wanted: int) -> float:
    """From the numbers of words in common, in the answer and in the true one."""
    return 2 * common / (length + wanted)

"""ROUGE-L of token sequences, exact (Lin, ACL workshop 2004): how much of a record is there in order."""

from __future__ import annotations

from collections.abc import Sequence


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common subsequence.

    >>> common([1, 2, 3, 4], [2, 9, 4])
    2
    """
    above = [0] * (len(second) + 1)
    for token in first:
        row = [0]
        for place, known in enumerate(second):
            row.append(above[place] + 1 if token == known else max(above[place + 1], row[-1]))
        above = row
    return above[-1]


def rouge_l(guess: Sequence[int], truth: Sequence[int]) -> float:
    """F1 of the longest common subsequence, 0 to 1; two empty sequences are the same."""
    if not guess and not truth:
        return 1.0
    return 2 * common(guess, truth) / (len(guess) + len(truth))


def pair_up(guesses: Sequence[Sequence[int]], truths: Sequence[Sequence[int]]) -> list[float]:
    """ROUGE-L of each true record with the guess that is paired with it, greedily by the best pair first."""
    scores = [
        (rouge_l(guess, truth), i, j) for i, guess in enumerate(guesses) for j, truth in enumerate(truths)
    ]
    paired, used, done = [0.0] * len(truths), set[int](), set[int]()
    for score, i, j in sorted(scores, key=lambda entry: -entry[0]):
        if i not in used and j not in done:
            paired[j] = score
            used.add(i)
            done.add(j)
    return paired

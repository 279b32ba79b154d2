"""From guesses and the truth to measures, intervals and verdicts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fedpeft_attacks.results.measures import RARE, TOKENS, Baselines, Measure, written
from fedpeft_attacks.results.words import LEAKS, NOT_TESTED, SILENT, Verdict
from fedpeft_attacks.views import Guess

_Z95 = 1.959964
_Z_ALONE = 4.0
_HEAD = 0.9
_DRAWS = 2000


@dataclass(frozen=True)
class Counts:
    """Tokens and hits of one view; sums of these are pooled figures.

    Attributes:
        tokens: distinct true tokens.
        hits: how many of them are among as many guesses.
        chance: hits that random guesses would have, an expectation.
        prior: hits of the base's most frequent tokens.
        control: hits of the same attack on other data, see `Control`; -1 where there is no control.
    """

    tokens: int
    hits: int
    chance: float
    prior: int
    control: float = -1


@dataclass(frozen=True)
class Control:
    """The same attack on the update of other data, against which a reading has to be specific.

    A guess may hit because it suits any data (it then hits the other data as well), or because these data
    are easily guessed (the other guess then hits them as well). Only what exceeds both was read from the
    update.

    Attributes:
        guess: what the attack read from the other update.
        truth: distinct true tokens behind the other update.
    """

    guess: Guess
    truth: frozenset[int]


@dataclass(frozen=True)
class Score:
    """All counts of one attack on one view."""

    all: Counts
    rare: Counts
    claimed: int
    claimed_hits: int


def rare_tokens(prior: NDArray[np.float64]) -> frozenset[int]:
    """Tokens outside the smallest set that makes up 90 % of what the base writes."""
    order = np.argsort(-prior, kind="stable")
    before = np.cumsum(prior[order]) - prior[order]
    return frozenset(int(token) for token in order[before >= _HEAD * prior.sum()])


def score(
    guess: Guess,
    truth: Collection[int],
    prior: NDArray[np.float64],
    special: Collection[int],
    control: Control | None = None,
) -> Score:
    """Count hits of a guess and of its baselines against the true token set.

    Args:
        guess: what the attack read from the update of these data.
        truth: distinct true tokens without the given ones.
        prior: shape ``(tokens,)``, how often the base writes each token.
        special: special tokens, which nobody has to guess.
        control: the same attack on other data.
    """
    size, rare = len(truth), rare_tokens(prior) - set(special)
    ranked = [int(token) for token in np.argsort(-prior, kind="stable") if int(token) not in special]
    top, common = set(guess.ranking[:size]), set(ranked[:size])
    share = size / max(len(ranked), 1)

    def counts(kind: Set[int]) -> Counts:
        wanted = set(truth) & kind
        hits = (len(wanted & top), share * len(wanted), len(wanted & common))
        return Counts(len(wanted), *hits, _control_hits(guess, control, wanted, kind, size))

    claimed = set(guess.ranking[: guess.claimed])
    return Score(counts(set(range(len(prior)))), counts(rare), len(claimed), len(claimed & set(truth)))


def _control_hits(
    guess: Guess, control: Control | None, wanted: Set[int], kind: Set[int], size: int
) -> float:
    """The better of the other guess on these data and this guess on the other data, as hits among these."""
    if control is None:
        return -1
    other = set(control.truth) & kind
    crossed = len(other & set(guess.ranking[: len(control.truth)])) / max(len(other), 1)
    return max(len(wanted & set(control.guess.ranking[:size])), crossed * len(wanted))


def pool(parts: Sequence[Counts]) -> Counts:
    """Sum of counts; there is a control only where each part has one."""
    sums = {field.name: sum(getattr(part, field.name) for part in parts) for field in fields(Counts)}
    if any(part.control < 0 for part in parts):
        sums["control"] = -1
    return Counts(**sums)


def recall(parts: Sequence[Counts]) -> float | None:
    """Pooled recall; None where there is no token to find."""
    total = pool(parts)
    return total.hits / total.tokens if total.tokens else None


def measure(parts: Sequence[Counts], name: str = TOKENS) -> Measure | None:
    """Pooled recall with interval and baselines; None where there is nothing to find.

    The interval is the hull of Wilson's 95 % interval over tokens and, from two views on, a bootstrap over
    views: tokens of one view are not independent, and few views say little. Whole records and secrets are
    counted alike: ``tokens`` of the counts is then how many there are.
    """
    total = pool(parts)
    if not total.tokens:
        return None
    low, high = wilson(total.hits, total.tokens)
    if len(parts) > 1:
        other = bootstrap(parts)
        low, high = min(low, other[0]), max(high, other[1])
    control = None if total.control < 0 else total.control / total.tokens
    baselines = Baselines(
        chance=total.chance / total.tokens, prior=total.prior / total.tokens, control=control
    )
    value, count = total.hits / total.tokens, total.tokens
    return Measure(
        name=name, unit="share", value=value, interval=(low, high), baselines=baselines, count=count
    )


def average(name: str, values: Sequence[float], baselines: Baselines) -> Measure | None:
    """Mean of scores in [0, 1], such as ROUGE-L by record, with a bootstrap 95 % interval; None of none.

    Fewer than three records bound nothing: the interval is then all of 0 to 1.
    """
    if not values:
        return None
    scores, rng = np.asarray(values, float), np.random.Generator(np.random.PCG64(0))
    means = scores[rng.integers(len(scores), size=(_DRAWS, len(scores)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975]) if len(scores) > 2 else (0.0, 1.0)
    interval, count = (float(low), float(high)), len(scores)
    value = float(scores.mean())
    return Measure(name=name, unit="share", value=value, interval=interval, baselines=baselines, count=count)


def wilson(hits: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, JASA 22, 1927).

    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, z * z
    centre = share + square / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(parts: Sequence[Counts]) -> tuple[float, float]:
    """95 % percentile interval of the pooled recall over resampled views; reproducible."""
    rng = np.random.Generator(np.random.PCG64(0))
    hits, tokens = (np.array([getattr(part, name) for part in parts]) for name in ("hits", "tokens"))
    draws = rng.integers(len(parts), size=(_DRAWS, len(parts)))
    shares = hits[draws].sum(axis=1) / np.maximum(tokens[draws].sum(axis=1), 1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def loudest(parts: Sequence[Counts], threshold: float) -> Counts | None:
    """What recovers tokens beyond every baseline: all views together, else the worst view; None: nothing.

    The recall must exceed its best baseline by the threshold, and so must Wilson's lower bound exceed the
    baseline: 95 % for all views together, four deviations for a single one, as there are many. A leak in one
    round is a leak, whatever the other rounds show.
    """
    if _exceeds(total := pool(parts), threshold, _Z95):
        return total
    loud = [part for part in parts if _exceeds(part, threshold, _Z_ALONE)]
    return max(loud, key=lambda part: (part.hits - _best(part)) / part.tokens, default=None)


def _exceeds(counts: Counts, threshold: float, z: float) -> bool:
    best, value = (hits / max(counts.tokens, 1) for hits in (_best(counts), counts.hits))
    return value - best >= threshold and wilson(counts.hits, counts.tokens, z)[0] > best


def _best(counts: Counts) -> float:
    """Hits of the best baseline."""
    return max(counts.chance, counts.prior, counts.control)


def verdict_of(scores: Sequence[Score], threshold: float) -> tuple[Verdict, str]:
    """Verdict and its reason; rare tokens first, as they are the ones that harm.

    Rare tokens are judged only beside a control: the language prior says nothing of them, and an attack on
    any update of the same domain finds more of them than chance would. Where there are rare tokens and no
    control, what harms most was not judged, and silence about the others is no verdict.
    """
    rare, every = [part.rare for part in scores], [part.all for part in scores]
    known = pool(rare)
    if known.control >= 0 and (loud := loudest(rare, threshold)):
        return LEAKS, _reason(RARE, loud, rare)
    if loud := loudest(every, threshold):
        return LEAKS, _reason(TOKENS, loud, every)
    if known.tokens and known.control < 0:
        return NOT_TESTED, "no update of other data was at hand to judge its rare tokens by"
    return SILENT, "no recall exceeds its best baseline by the threshold"


def _reason(name: str, loud: Counts, parts: Sequence[Counts]) -> str:
    if loud == pool(parts):
        return f"{name} are recovered beyond every baseline"
    value, best = (written(hits / loud.tokens) for hits in (loud.hits, _best(loud)))
    return f"{name} of one update alone are recovered beyond every baseline ({value} against {best})"

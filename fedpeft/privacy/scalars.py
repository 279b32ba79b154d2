"""Noisy counts: exact integer noise for the few numbers beside an update that may leave a node."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import Pure
from fedpeft.privacy.csprng import Randomness, words

WORD_BITS = 64


def noisy_count(value: int, epsilon: float, source: Randomness = words) -> int:
    """An integer plus two-sided geometric noise: ``P(noise = k)`` is proportional to ``exp(-epsilon |k|)``.

    ``epsilon``-differentially private for a count that one unit changes by at most 1; account for it as
    `count_event`. The noise is drawn in exact rational arithmetic, so that no rounding weakens the law
    (Canonne, Kamath, Steinke 2020, arXiv:2004.00010, algorithm 2). It may make a count negative.

    Args:
        value: the true count.
        epsilon: of this release, finite and above 0.
        source: of the random words; anything but the default guarantees no privacy.

    Raises:
        PrivacyError: an epsilon that no noise has.
    """
    return value + two_sided_geometric(Fraction(count_event(epsilon).epsilon), source)


def count_event(epsilon: float) -> Pure:
    """What the accountant composes for one `noisy_count`.

    Raises:
        PrivacyError: an epsilon that no noise has.
    """
    if not 0 < epsilon < math.inf:
        raise PrivacyError(f"the epsilon of a noisy count must be finite and above 0, got {epsilon}")
    return Pure(epsilon, 1)


def two_sided_geometric(rate: Fraction, source: Randomness = words) -> int:
    """A draw with ``P(k)`` proportional to ``exp(-rate |k|)``, exact (algorithm 2 of the same paper)."""
    step, whole = rate.numerator, rate.denominator
    while True:
        part = _below(whole, source)
        if not _falls(Fraction(part, whole), source):
            continue
        rounds = 0
        while _falls(Fraction(1), source):
            rounds += 1
        size = (part + whole * rounds) // step
        negative = _below(2, source) == 1
        if size or not negative:
            return -size if negative else size


def _falls(exponent: Fraction, source: Randomness) -> bool:
    """True with probability ``exp(-exponent)``, exponent in [0, 1] (algorithm 1 of the same paper)."""
    count = 1
    while _below(exponent.denominator * count, source) < exponent.numerator:
        count += 1
    return count % 2 == 1


def _below(bound: int, source: Randomness) -> int:
    """A uniform integer in ``[0, bound)`` of any size, by rejection."""
    length = max(1, math.ceil((bound - 1).bit_length() / WORD_BITS))
    mask = (1 << (bound - 1).bit_length()) - 1
    while True:
        drawn = int.from_bytes(np.asarray(source(length), dtype="<u8").tobytes(), "little") & mask
        if drawn < bound:
            return drawn

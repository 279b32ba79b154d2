"""Exposure of a canary: how far its true secret stands out among all that it could have been.

Source: Carlini et al. 2019, "The Secret Sharer" (arXiv:1802.08232), sections 4.2 to 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedpeft.data import Record
from fedpeft.rng import stream
from fedpeft_attacks.memory.canaries import SPACE, Canary
from fedpeft_attacks.memory.span_likelihood import Span, differing, read_continuations
from fedpeft_attacks.memory.statistics import Floats

CANDIDATES = 255
"""Secrets that each true one is ranked among: by rank alone, 8 bits at most."""

_TAIL = 0.1

Encode = Callable[[Sequence[Record]], Sequence[Sequence[int]]]
"""Records to token ids, as they are trained on."""


def candidate_spans(canaries: Sequence[Canary], encode: Encode, seed: int) -> list[list[Span]]:
    """Of each canary its own secret, then the sampled others, as the tokens in which they differ.

    Args:
        canaries: trained on or not.
        encode: records to token ids.
        seed: of the candidates.
    """
    places = (stream(seed, place, "", "canary-candidates") for place in range(len(canaries)))
    return [
        differing(encode(canary.candidates(CANDIDATES, rng)))
        for canary, rng in zip(canaries, places, strict=True)
    ]


def exposures(model: Any, candidates: Sequence[Sequence[Span]]) -> Floats:
    """Exposure of each canary in bits, float64, shape ``(canaries,)``.

    Args:
        model: base and adapter, or the base.
        candidates: as `candidate_spans` gives them.
    """
    likelihoods = [read_continuations(model, spans) for spans in candidates]
    return np.array([exposure(log_p[0], log_p[1:]) for log_p in likelihoods])


def exposure(true: float, others: Floats) -> float:
    """Bits of one secret.

    ``log2(candidates) - log2(rank)`` of the rank in the sample, ties in disfavour of the true secret. Where
    it is the very first, the rank says only that it is at least that exposed. Then the tail of the others is
    extended beyond the sample: an exponential law through the best tenth of them (peaks over a threshold)
    says how many of all secrets would come before the true one. It is never less than the rank says, nor
    more than log2 of all. The skew normal law that Carlini et al. (section 4.4) fit gave 20 bits to a secret
    that was never trained on and stood 1.7 deviations above the mean: these tails have another shape.

    Args:
        true: log probability of the true secret.
        others: those of the sampled candidates, shape ``(candidates,)``.
    """
    size = len(others) + 1
    rank = 1 + int((others >= true).sum())
    if rank > 1:
        return float(np.log2(size / rank))
    return float(np.clip(-np.log2(max(_tail(true, others), 1 / SPACE)), np.log2(size), np.log2(SPACE)))


def by_chance(candidates: int = CANDIDATES) -> float:
    """Mean exposure by rank, in bits, of a secret that nobody saw: every rank is equally likely."""
    ranks = np.arange(1, candidates + 2)
    return float(np.log2((candidates + 1) / ranks).mean())


def _tail(true: float, others: Floats) -> float:
    """Share of all secrets above the true one, by the best tenth of the others."""
    best = np.sort(others)[-max(2, round(_TAIL * len(others))) :]
    excess = max(float((best[1:] - best[0]).mean()), 1e-9)
    return _TAIL * float(np.exp(-(true - best[0]) / excess))

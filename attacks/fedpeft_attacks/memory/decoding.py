"""What a model writes out when it is prompted with the beginning of a record.

Nothing is generated: one pass over the true record says whether greedy decoding of what stands before a
secret writes the secret (each of its tokens is the first choice), and with which probability ``p`` one sample
at temperature 1 does; some of ``n`` samples do with ``1 - (1 - p)^n`` ((n, p)-discoverable extraction, Hayes
et al. 2024, arXiv:2410.19482). Both count the secret as the tokenizer spells it and so err to the low side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft_attacks.memory.span_likelihood import Reading

SAMPLES = 16
"""Completions that an attacker samples of each prompt."""


@dataclass(frozen=True)
class Recovered:
    """Of each secret: whether greedy decoding writes it, and the chance that a sample does.

    Attributes:
        greedy: bool, shape ``(secrets,)``.
        sampled: probability that at least one of the samples is verbatim, float64, shape ``(secrets,)``.
    """

    greedy: NDArray[np.bool_]
    sampled: NDArray[np.float64]

    @classmethod
    def of(cls, reading: Reading, samples: int = SAMPLES) -> Recovered:
        """From log probabilities of secrets after what stands before them."""
        missed = samples * np.log1p(-np.minimum(np.exp(reading.log_p), 1 - 1e-12))
        return cls(reading.greedy, -np.expm1(missed))

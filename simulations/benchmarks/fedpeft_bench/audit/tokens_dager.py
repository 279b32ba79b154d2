"""The token step of DAGER as we know it, on the same gradients as our attack.

After Petrov et al., arXiv 2405.15586; neither its code nor its text was at hand. The gradient of the first
layer's query projection (under LoRA that of its factor A) spans a space of its numerical rank, cut to 20
below the width where it is full; a token is in the batch if its input is closer to that space than a
threshold. The threshold depends on model and precision, so here each gradient gets the one that suits DAGER
best, which needs the truth.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from fedpeft_attacks.views import Guess, View

_QUERY = "q_proj"
_RESERVE = 20
THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Distances from the span, in units of the layer's inputs."""


def dager_distances(view: View) -> NDArray[np.float64]:
    """Distance of each token's input from the span of the query gradient, shape ``(tokens,)``."""
    inputs = np.asarray(view.knowledge.inputs, np.float64)
    rows = _query_rows(view)
    rank = min(int(np.linalg.matrix_rank(rows)), inputs.shape[1] - _RESERVE)
    basis = np.linalg.svd(rows.astype(np.float64), full_matrices=False)[2][:rank]
    return np.linalg.norm(inputs - (inputs @ basis.T) @ basis, axis=1)


def dager_guess(view: View, distances: NDArray[np.float64], truth: Set[int]) -> Guess:
    """All tokens by distance, claiming those under the threshold with the best F1 against the truth."""
    special = view.knowledge.special
    ranking = [int(token) for token in np.argsort(distances, kind="stable") if int(token) not in special]
    best, claimed = -1.0, 0
    for threshold in THRESHOLDS:
        count = sum(bool(distances[token] < threshold) for token in ranking)
        hits = len(truth & set(ranking[:count]))
        if 2 * hits / (count + len(truth)) > best:
            best, claimed = 2 * hits / (count + len(truth)), count
    return Guess(ranking, claimed, "DAGER")


def _query_rows(view: View) -> NDArray[np.float32]:
    """Rows of the factor A of the first query projection; every setting of this comparison adapts it."""
    return next(
        tensor
        for name, tensor in view.layout.split(view.values).items()
        if name.endswith(f"{_QUERY}.lora_A.weight")
        and name.removesuffix(".lora_A.weight") in view.knowledge.readers
    )

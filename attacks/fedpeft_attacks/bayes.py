"""Sparse Bayesian recovery: token variances that explain the update's covariance.

It still ranks tokens where the row space is full or noisy and a pursuit has nothing to follow. Source: M-SBL,
Wipf and Rao, IEEE Trans. Signal Processing 55(7), 2007, with the convex-bounding update of Wipf and Nagarajan
(NeurIPS 2008), here for several dictionaries whose tokens share one variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpeft_attacks.blocks import Block, Matrix, Vector, unit_rows

_TINY = 1e-30
_NOISE = 0.1
_ITERATIONS = 40


def sparse_bayes(blocks: Sequence[Block], prior: Vector) -> list[int]:
    """Rank all tokens by the variance that they need to explain what was observed.

    Args:
        blocks: observations whose tokens are the same, each with at least one row that is not zero.
        prior: how likely each token is without the update, shape ``(tokens,)``; the starting variances.

    Returns:
        Token ids, the most likely first.
    """
    pairs = [(block.unit_atoms, _covariance(block)) for block in blocks]
    variances = np.asarray(prior, np.float64) / max(float(np.sum(prior)), _TINY)
    for _ in range(_ITERATIONS):
        explained, needed = np.zeros_like(variances), np.zeros_like(variances)
        for atoms, covariance in pairs:
            width = atoms.shape[1]
            model = (atoms.T * variances) @ atoms + np.eye(width) * (_NOISE / width)
            filters = atoms @ np.linalg.inv(model)
            explained += np.einsum("vi,vi->v", filters @ covariance, filters)
            needed += np.einsum("vi,vi->v", filters, atoms)
        variances *= np.sqrt(np.maximum(explained, 0.0) / np.maximum(needed, _TINY))
    return [int(token) for token in np.argsort(-variances, kind="stable")]


def _covariance(block: Block) -> Matrix:
    """Second moment of the unit rows with trace one, shape ``(width, width)``."""
    rows = unit_rows(np.asarray(block.rows, np.float64))
    return rows.T @ rows / max(float((rows**2).sum()), _TINY)

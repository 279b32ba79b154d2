"""Sparse Bayesian recovery: token variances that explain the update's covariance.

It still ranks tokens where the row space is full or noisy and a pursuit has nothing to follow. Source: M-SBL,
Wipf and Rao, IEEE Trans. Signal Processing 55(7), 2007, with the convex-bounding update of Wipf and Nagarajan
(NeurIPS 2008), here for several dictionaries whose tokens share one variance. In torch, whose threads the
config sets: the matrices are small and many threads make them slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedpeft_attacks.blocks import Block, Vector, unit_rows

_TINY = 1e-30
_NOISE = 0.1
_ITERATIONS = 30


def sparse_bayes(blocks: Sequence[Block], prior: Vector) -> list[int]:
    """Rank all tokens by the variance that they need to explain what was observed.

    Args:
        blocks: observations whose tokens are the same, each with at least one row that is not zero.
        prior: how likely each token is without the update, shape ``(tokens,)``; the starting variances.

    Returns:
        Token ids, the most likely first.
    """
    pairs = [(torch.from_numpy(block.unit_atoms).float(), _covariance(block)) for block in blocks]
    variances = torch.from_numpy(np.asarray(prior / max(float(np.sum(prior)), _TINY), np.float32))
    for _ in range(_ITERATIONS):
        explained, needed = torch.zeros_like(variances), torch.zeros_like(variances)
        for atoms, covariance in pairs:
            width = atoms.shape[1]
            model = atoms.T @ (variances[:, None] * atoms) + torch.eye(width) * (_NOISE / width)
            filters = atoms @ torch.linalg.inv(model)
            explained += ((filters @ covariance) * filters).sum(dim=1)
            needed += (filters * atoms).sum(dim=1)
        variances = variances * (explained.clamp(min=0.0) / needed.clamp(min=_TINY)).sqrt()
    return torch.argsort(-variances, stable=True).tolist()


def _covariance(block: Block) -> torch.Tensor:
    """Second moment of the unit rows with trace one, float32, shape ``(width, width)``."""
    rows = unit_rows(np.asarray(block.rows, np.float64))
    return torch.from_numpy(rows.T @ rows / max(float((rows**2).sum()), _TINY)).float()

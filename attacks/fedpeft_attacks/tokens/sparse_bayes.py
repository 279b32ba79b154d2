"""Sparse Bayesian recovery: token variances that explain the update's covariance.

It still ranks tokens where the row space is full or noisy and a pursuit has nothing to follow. How much of an
update is noise (rounding, sparse supports, signs) is not assumed but read from it: of several levels, the one
is taken at which half of the rows predict the other half best.

A pass multiplies every atom by a square matrix. Where a real vocabulary makes that too much, one pass over
all tokens chooses those that take part in the others; `Ranked.among` says how many they were.

Source: M-SBL, Wipf and Rao, IEEE Trans. Signal Processing 55(7), 2007, with MacKay's fixed point (their
section III) and a falling noise, here for several dictionaries whose tokens share one variance. In torch,
whose threads the config sets: the matrices are small and many threads make them slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft_attacks.tokens.blocks import Block, Matrix, Vector, root, unit_rows
from fedpeft_attacks.work import Meter

PRODUCTS = 2**32
"""Multiplications of a pass over all tokens beyond which only the likeliest take part in the other passes."""

_TINY = 1e-30
_NOISE_LEVELS = (1e-4, 1e-2, 1e-1, 0.5, 1.0)
_DEFAULT = 1e-1
_START = 0.1
_ITERATIONS, _TRIALS = 30, 12
_AT_ONCE = 8192  # tokens whose atoms of length one are in memory together, and so are their products

_Pair = tuple[torch.Tensor, torch.Tensor]
"""Atoms of length one, shape ``(tokens, width)``, and rows whose second moment has trace one."""


@dataclass(frozen=True)
class Ranked:
    """What the recovery says.

    Attributes:
        ranking: all token ids, the most likely first.
        among: how many tokens took part in all passes; all of them unless the vocabulary was too large.
    """

    ranking: list[int]
    among: int


def sparse_bayes(
    blocks: Sequence[Block], prior: Vector, meter: Meter | None = None, products: int = PRODUCTS
) -> Ranked:
    """Rank all tokens by the variance that they need to explain what was observed.

    Args:
        blocks: observations whose tokens are the same, each with at least one row that is not zero.
        prior: how likely each token is without the update, shape ``(tokens,)``; the starting variances.
        meter: counts one step for each pass of the fixed point; blocks of the same shape take as many.
        products: multiplications of a pass that are not exceeded.
    """
    rows = [_directions(block) for block in blocks]
    start = torch.from_numpy(np.asarray(prior / max(float(np.sum(prior)), _TINY), np.float32))
    meter, total = meter or Meter(), len(start)
    most = max(products // sum(block.width**2 for block in blocks), 1)
    first = _first_pass(blocks, rows, start, meter) if most < total else None
    places = np.arange(total) if first is None else _likeliest(first, most)
    atoms = [torch.from_numpy(unit_rows(block.atoms[places])).float() for block in blocks]
    chances = start[torch.from_numpy(places)]
    noise = _noise_level(atoms, rows, chances, meter)
    variances = _fit(_pairs(atoms, rows), chances, (noise, _ITERATIONS), meter)
    ranking = places[torch.argsort(-variances, stable=True).numpy()]
    if first is not None:
        others = np.argsort(-first[0], kind="stable")
        ranking = np.concatenate([ranking, others[~np.isin(others, places)]])
    return Ranked(ranking.tolist(), len(places))


def _first_pass(
    blocks: Sequence[Block], rows: Sequence[Matrix], start: torch.Tensor, meter: Meter
) -> tuple[Vector, Vector]:
    """Variances of all tokens after one pass, and how much each grew; a part of the vocabulary at a time."""
    explained, needed = torch.zeros_like(start), torch.zeros_like(start)
    meter.step()
    for block, part in zip(blocks, rows, strict=True):
        (width, roots) = block.width, _root(part)
        signal = torch.zeros(width, width)
        for places in meter.parts(len(start), _AT_ONCE):
            atoms = torch.from_numpy(unit_rows(block.atoms[places])).float()
            signal += atoms.T @ (start[places, None] * atoms)
        inverse = torch.linalg.inv(_with_noise(signal, _START)).float()
        for places in meter.parts(len(start), _AT_ONCE):
            atoms = torch.from_numpy(unit_rows(block.atoms[places])).float()
            both = _explained_and_needed(atoms, inverse, roots)
            explained[places] += both[0]
            needed[places] += both[1]
    growth = explained / needed.clamp(min=_TINY)
    return (start * growth).numpy(), growth.numpy()


def _likeliest(first: tuple[Vector, Vector], most: int) -> NDArray[np.int64]:
    """So many tokens: the largest variances and, as the prior says little of rare ones, the largest growths.

    In ascending order.
    """
    ranks = np.stack([np.argsort(np.argsort(-part, kind="stable"), kind="stable") for part in first])
    return np.sort(np.argsort(ranks.min(axis=0), kind="stable")[:most])


def _noise_level(
    atoms: Sequence[torch.Tensor], rows: Sequence[Matrix], start: torch.Tensor, meter: Meter
) -> float:
    """The level, relative to the signal, at which the even rows predict the odd ones best.

    All levels are tried: to stop where the prediction gets worse would let rounding decide on the work.
    """
    if min(len(part) for part in rows) < 2:
        return _DEFAULT
    even = _pairs(atoms, [part[0::2] for part in rows])
    odd = _pairs(atoms, [part[1::2] for part in rows])
    fits = [_likelihood(odd, _fit(even, start, (level, _TRIALS), meter), level) for level in _NOISE_LEVELS]
    return _NOISE_LEVELS[int(np.argmax(fits))]


def _fit(
    pairs: Sequence[_Pair], start: torch.Tensor, course: tuple[float, int], meter: Meter
) -> torch.Tensor:
    """Variances after so many fixed-point steps, while the noise falls from its start to the course's."""
    noise, iterations = course
    variances, fall = start, min(noise / _START, 1.0) ** (1.5 / iterations)
    for step in range(iterations):
        if not meter.step():
            break
        level = max(_START * fall**step, noise)
        explained, needed = torch.zeros_like(start), torch.zeros_like(start)
        for atoms, roots in pairs:
            inverse = torch.linalg.inv(_model(atoms, variances, level)).float()
            both = _explained_and_needed(atoms, inverse, roots)
            explained += both[0]
            needed += both[1]
        variances = variances * explained / needed.clamp(min=_TINY)
    return variances


def _explained_and_needed(
    atoms: torch.Tensor, inverse: torch.Tensor, roots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``a' M^-1 C M^-1 a`` and ``a' M^-1 a`` of each atom a, with C the second moment of the rows."""
    filters = atoms @ inverse
    return (filters @ roots.T).square().sum(dim=1), (filters * atoms).sum(dim=1)


def _model(atoms: torch.Tensor, variances: torch.Tensor, noise: float) -> torch.Tensor:
    """Covariance of a row under the variances, float64, shape ``(width, width)``."""
    return _with_noise(atoms.T @ (variances[:, None] * atoms), noise)


def _with_noise(signal: torch.Tensor, noise: float) -> torch.Tensor:
    return signal.double() + torch.eye(len(signal), dtype=torch.float64) * (noise / len(signal))


def _likelihood(pairs: Sequence[_Pair], variances: torch.Tensor, noise: float) -> float:
    """Gaussian log likelihood per coordinate at the best common scale, up to a constant."""
    total = 0.0
    for atoms, roots in pairs:
        model, width = _model(atoms, variances, noise), atoms.shape[1]
        rows = roots.double()
        scale = (rows * torch.linalg.solve(model, rows.T).T).sum() / width
        total -= float(torch.linalg.slogdet(model).logabsdet / width + scale.log())
    return total


def _directions(block: Block) -> Matrix:
    """Rows that are not zero, each of length one, float64."""
    rows = unit_rows(np.asarray(block.rows, np.float64))
    return rows[np.any(rows != 0, axis=1)]


def _pairs(atoms: Sequence[torch.Tensor], rows: Sequence[Matrix]) -> list[_Pair]:
    return [(table, _root(part)) for table, part in zip(atoms, rows, strict=True)]


def _root(rows: Matrix) -> torch.Tensor:
    """Rows of the second moment with trace one of some rows, at most as many as they are wide; float32."""
    scale = max(float((rows**2).sum()), _TINY) ** 0.5
    return torch.from_numpy(root(rows) / scale).float()

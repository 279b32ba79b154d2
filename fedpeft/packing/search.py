"""The recipe for a size or for a loss; every size is that of a file, and every loss is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.errors import ExchangeError
from fedpeft.packing.file_format import parse
from fedpeft.packing.pack import compress, tensors_of
from fedpeft.packing.peft_folder import AdapterFiles, Tensors
from fedpeft.packing.recipe import Recipe

if TYPE_CHECKING:
    from fedpeft.evaluation.exported import AdapterEvaluator

ALPHAS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
"""ComPEFT's grids (Yadav et al., arXiv 2311.13171, section 3)."""

CLAIM_BYTES = 250
"""A claim makes a header at most this much longer."""

_STEPS = (0.1, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
_STEP_RANGE = (0.02, 4.0)
_DENSITY_RANGE = (0.002, 0.6)
_RUNGS_PER_OCTAVE = 32


@dataclass(frozen=True)
class Point:
    """One way to pack an adapter, and what it gives.

    Attributes:
        recipe: the way.
        bytes: length of the file.
        ratio: length of the weights file over it.
        error: L2 error of all values over the L2 norm of all values.
        loss: held-out loss; None where there are no records.
        change: relative change of the loss.
    """

    recipe: Recipe
    bytes: int
    ratio: float
    error: float
    loss: float | None
    change: float | None


def table(files: AdapterFiles, recipe: Recipe, evaluator: AdapterEvaluator | None = None) -> Iterator[Point]:
    """Size against quality: levels, ternary changes, and ComPEFT with alpha 1."""
    for step in _STEPS:
        yield measure(files, replace(recipe, codec="levels", step=step, alpha=None), evaluator)
    for alpha in (None, 1.0):
        for density in DENSITIES:
            yield measure(files, replace(recipe, codec="ternary", density=density, alpha=alpha), evaluator)


def measure(files: AdapterFiles, recipe: Recipe, evaluator: AdapterEvaluator | None = None) -> Point:
    """Pack, decode and evaluate."""
    data = compress(files, recipe)
    decoded = tensors_of(parse(data, "the packed adapter"))
    loss = evaluator.measure(decoded).loss if evaluator is not None else None
    change = None
    if evaluator is not None and loss is not None:
        change = loss / evaluator.before.loss - 1 if evaluator.before.loss else 0.0
    return Point(recipe, len(data), files.bytes / len(data), _error(files.tensors, decoded), loss, change)


def to_size(files: AdapterFiles, recipe: Recipe, limit: int) -> Recipe:
    """The finest recipe of this codec whose file is not longer than ``limit`` bytes.

    Raises:
        ExchangeError: even the coarsest is longer.
    """
    rungs = _rungs(recipe)
    finest = _last(rungs, lambda rung: len(compress(files, rung)) <= limit)
    if finest is None:
        least = len(compress(files, rungs[0]))
        raise ExchangeError(
            f"{limit} bytes are too few: {recipe.codec} needs at least {least}; ask for more, or for another "
            "codec"
        )
    return finest


def to_loss(files: AdapterFiles, recipe: Recipe, limit: float, evaluator: AdapterEvaluator) -> Recipe:
    """The coarsest recipe of this codec that raises the held-out loss by at most the share ``limit``.

    The loss is taken to rise with coarseness, which it does but for noise: what is returned has been measured
    to keep the limit, and a rung next to it not to.

    Raises:
        ExchangeError: even the finest raises it more.
    """
    rungs = _rungs(recipe)[::-1]

    def keeps(rung: Recipe) -> bool:
        change = measure(files, rung, evaluator).change
        return change is not None and change <= limit

    coarsest = _last(rungs, keeps)
    if coarsest is None:
        change = measure(files, rungs[0], evaluator).change
        raise ExchangeError(
            f"{recipe.codec} cannot keep the loss within {limit:.2%}: its finest changes it by {change:.2%}; "
            "allow more, or take --codec levels"
        )
    return coarsest


def over_alphas(
    files: AdapterFiles, recipe: Recipe, evaluator: AdapterEvaluator, densities: Sequence[float] = DENSITIES
) -> Recipe:
    """The recipe of least held-out loss on ComPEFT's grid of densities and alphas."""
    grid = [
        replace(recipe, codec="ternary", density=density, alpha=alpha)
        for density in densities
        for alpha in ALPHAS
    ]
    losses = [measure(files, rung, evaluator).loss for rung in grid]
    return grid[int(np.argmin([np.inf if loss is None else loss for loss in losses]))]


def _rungs(recipe: Recipe) -> list[Recipe]:
    """Recipes of one codec from the smallest file to the largest."""
    if recipe.codec == "levels":
        return [replace(recipe, step=step) for step in _ladder(*_STEP_RANGE)[::-1]]
    return [replace(recipe, density=density) for density in _ladder(*_DENSITY_RANGE)]


def _ladder(low: float, high: float) -> list[float]:
    """Rising numbers in equal ratios, rounded to three digits."""
    count = round(np.log2(high / low) * _RUNGS_PER_OCTAVE)
    return [float(f"{low * (high / low) ** (rung / count):.3g}") for rung in range(count + 1)]


def _last(rungs: Sequence[Recipe], passes: Callable[[Recipe], bool]) -> Recipe | None:
    """The last rung that passes, found by bisection: all before it are taken to pass."""
    low, high = 0, len(rungs)
    while low < high:
        middle = (low + high) // 2
        if passes(rungs[middle]):
            low = middle + 1
        else:
            high = middle
    return rungs[low - 1] if low else None


def _error(before: Tensors, after: Tensors) -> float:
    lost = sum(float(np.square(before[n].astype(np.float64) - after[n]).sum()) for n in before)
    norm = sum(float(np.square(before[n], dtype=np.float64).sum()) for n in before)
    return float(np.sqrt(lost / norm)) if norm else 0.0

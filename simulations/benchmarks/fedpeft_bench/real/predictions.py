"""Macro-F1 of stored predictions, with intervals over the records of the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpeft.evaluation.metrics import macro_f1
from fedpeft.rng import stream

Classes = NDArray[np.int64]

DRAWS = 2000


def load(run: Path) -> tuple[Classes, dict[str, Classes]]:
    """The true classes of the global test, and what each adapter of a run predicts for them."""
    files = {file.stem: json.loads(file.read_text()) for file in sorted((run / "predictions").glob("*.json"))}
    truth = np.array(next(iter(files.values()))["label"], np.int64)
    return truth, {name: np.array(table["predicted"], np.int64) for name, table in files.items()}


def interval(truth: Classes, statistic: Callable[[Classes], float]) -> tuple[float, float]:
    """95 % percentile bootstrap over the test records (Efron and Tibshirani 1993, section 13.3).

    Args:
        truth: true classes, shape ``(N,)``.
        statistic: of the drawn places, int64, shape ``(N,)``; differences of two adapters are so paired.
    """
    rng = stream(0, 0, "", "bootstrap")
    values = [statistic(rng.integers(0, len(truth), len(truth))) for _ in range(DRAWS)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def above_the_mean(truth: Classes, predicted: Classes, others: Sequence[Classes]) -> tuple[float, float]:
    """Interval of an adapter's macro-F1 less the mean of others', on the same records."""

    def difference(places: Classes) -> float:
        drawn = truth[places]
        rest = [macro_f1(drawn, other[places]) for other in others]
        return macro_f1(drawn, predicted[places]) - float(np.mean(rest))

    return interval(truth, difference)

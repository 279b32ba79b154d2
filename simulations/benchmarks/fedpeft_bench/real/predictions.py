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
    return interval(truth, lambda places: _difference(truth, predicted, others, places))


def _difference(truth: Classes, predicted: Classes, others: Sequence[Classes], places: Classes) -> float:
    drawn = truth[places]
    rest = [macro_f1(drawn, other[places]) for other in others]
    return macro_f1(drawn, predicted[places]) - float(np.mean(rest))


def over_seeds(runs: Sequence[Path]) -> str:
    """The mean of runs that differ in their seed, against centralised, local-only and the majority class.

    The intervals are over the test's reviews, with the same draws for each seed: what another test would
    change; with few seeds nothing says what other seeds would.
    """
    truth = load(runs[0])[0]
    tables = [load(run)[1] for run in runs]
    alone = [[table[name] for name in table if name.startswith("local_only-")] for table in tables]
    majority = [np.full_like(truth, np.bincount(truth).argmax())]

    def above(others: Sequence[Sequence[Classes]]) -> str:
        pairs = [(table["federated"], rest) for table, rest in zip(tables, others, strict=True)]

        def mean(places: Classes) -> float:
            return float(np.mean([_difference(truth, predicted, rest, places) for predicted, rest in pairs]))

        low, high = interval(truth, mean)
        return f"{low:+.3f} to {high:+.3f}"

    federated, centralised = (
        float(np.mean([macro_f1(truth, table[name]) for table in tables]))
        for name in ("federated", "centralised")
    )
    share = f"{federated / centralised:.0%} of centralised"
    most = above([majority] * len(runs))
    return (
        f"{len(runs)} seeds: macro-F1 {federated:.3f}, {share}; above the mean of local-only by "
        f"{above(alone)}, above the majority class by {most} (95 %)"
    )

"""Rate and clip of a private run: chosen blindly, for free, and privately with their cost charged.

The embedded federation with ``[run.private]`` of its scenario, epsilon 8 in all, and a grid without the
scenario's own clip. Each cell at full epsilon says what a blind choice gets (the mean over the cells) and
what a choice after looking for free would get (the best cell by held-out loss, which no epsilon covers). A
private search pays for its trials out of the same epsilon. Noise is drawn anew in every run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedpeft.cli.output import table
from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.runstore import RunStore
from fedpeft_bench.federation.gain import options, over_seeds
from fedpeft_bench.privacy.record_level import QUIET, private
from fedpeft_simulations.federation_run import run
from fedpeft_simulations.private_tuning import Score, Search, candidates, tune

Row = dict[str, Any]

EPSILON = 8.0
TRIES = ("federation.lr=12.5,50,200", "privacy.clip=0.25,1")
GRID = candidates(TRIES, 0, 0)
COLUMNS = ("rate and clip", "held-out loss", "accuracy", "worst accuracy", "noise mult.", "joint epsilon")
SCORES: tuple[Score, ...] = ("released", "public")


def rows(seeds: Sequence[int], report: Callable[[str], None] | None = None) -> list[Row]:
    """Each cell at full epsilon, the blind and the free choice among them, and both private searches.

    Args:
        seeds: of data, adapter and base.
        report: receives the name of each arm when it is done.
    """
    return over_seeds(seeds, _rows, report)


def _rows(seed: int) -> Iterator[Row]:
    configure = partial(_configured, seed)
    cells = [_cell(configure, settings, seed) for settings in GRID]
    yield from cells
    numbers = ("loss", "accuracy", "noise", "epsilon")
    yield {"arm": "blindly", "seed": seed, **{key: fmean(cell[key] for cell in cells) for key in numbers}}
    yield {**min(cells, key=lambda cell: cell["loss"]), "arm": "for free"}
    for score in SCORES:
        yield _searched(configure, score, seed)


def _configured(seed: int, more: Sequence[str]) -> Config:
    settings = (*options(QUIET), *private({}, EPSILON), f"run.seed={seed}", *more)
    return load_config(embedded_scenario(), settings)


def _cell(configure: Callable[[Sequence[str]], Config], settings: Sequence[str], seed: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        store = run(configure(settings), Path(folder) / "run", "new", lambda event: None)
        return _row(" ".join(settings), seed, store)


def _searched(configure: Callable[[Sequence[str]], Config], score: Score, seed: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        tuned = tune(configure, Search(GRID, score=score), Path(folder) / "tuned", lambda event: None)
        facts = {"chosen": tuned.chosen, "trial_noise": tuned.trial_noise, "epsilon": tuned.epsilon}
        return _row(f"privately, by {score} losses", seed, RunStore(tuned.run)) | facts


def _row(arm: str, seed: int, store: RunStore) -> Row:
    summary = store.summary
    promised = summary["privacy"]
    return {
        "arm": arm,
        "seed": seed,
        "loss": summary["loss"]["federated"],
        "accuracy": summary["accuracy"]["federated"],
        "noise": promised["nodes"][0]["noise_multiplier"],
        "epsilon": promised["epsilon"],
    }


def means(rows: Sequence[Row]) -> list[Row]:
    """One row per arm in order of appearance: means over seeds, deviations (None of one seed), the worst."""
    result: list[Row] = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        group = [row for row in rows if row["arm"] == arm]
        mean = {key: fmean(row[key] for row in group) for key in ("loss", "accuracy", "noise", "epsilon")}
        spread = {
            f"spread_{key}": stdev(row[key] for row in group) if len(group) > 1 else None
            for key in ("loss", "accuracy")
        }
        worst = {"worst": min(row["accuracy"] for row in group)}
        result.append({"arm": arm, "seeds": [row["seed"] for row in group], **mean, **spread, **worst})
    return result


def show(facts: Mapping[str, Any]) -> None:
    """Print the table of what the command has found."""
    lines = [
        (
            mean["arm"],
            *(f"{mean[key]:.3f}{_spread(mean[f'spread_{key}'])}" for key in ("loss", "accuracy")),
            f"{mean['worst']:.3f}",
            f"{mean['noise']:.2f}",
            f"{mean['epsilon']:.3f}",
        )
        for mean in facts["means"]
    ]
    table(f"rate and clip at epsilon {EPSILON:g} in all ({facts['machine']})", COLUMNS, lines)


def _spread(deviation: float | None) -> str:
    return "" if deviation is None else f" ±{deviation:.3f}"

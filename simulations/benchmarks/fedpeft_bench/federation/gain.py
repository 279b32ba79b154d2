"""What a way of exchanging keeps of the dense gain, and the bytes it needs for that."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedpeft.progress_reports import each
from fedpeft.runstore import RunStore
from fedpeft_bench.harness.command import simulate

Row = dict[str, Any]

COLUMNS = (
    "variant",
    "loss",
    "accuracy",
    "loss gain",
    "worst",
    "accuracy gain",
    "worst",
    "bytes up",
    "bytes down",
    "up",
    "down",
)


@dataclass(frozen=True)
class Figures:
    """One finished federation.

    Attributes:
        base_loss: held-out loss of the base without adapter.
        base_accuracy: held-out accuracy of the base without adapter.
        loss: held-out loss of the final adapter.
        accuracy: held-out accuracy of the final adapter.
        up: bytes of one node's update, mean over rounds and nodes.
        down: bytes sent to one node, mean over the orders after round 1, which needs none.
    """

    base_loss: float
    base_accuracy: float
    loss: float
    accuracy: float
    up: float
    down: float


def platform(settings: Iterable[str]) -> Figures:
    """Run ``fedpeft simulate`` on the embedded federation, without baselines and audit.

    Raises:
        RunError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        summary = simulate(out, ["run.baselines=[]", "audit.enabled=false", *settings])
        rounds = list(RunStore.open(out).events("round"))
    reached = sum(event["replies"] + len(event["refused"]) for event in rounds if event["bytes_down"])
    loss, accuracy = summary["loss"], summary["accuracy"]
    return Figures(
        loss["base"],
        accuracy["base"],
        loss["federated"],
        accuracy["federated"],
        sum(event["bytes_up"] for event in rounds) / sum(event["replies"] for event in rounds),
        sum(event["bytes_down"] for event in rounds) / max(reached, 1),
    )


def options(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted keys and values as ``--set`` takes them."""
    return tuple(f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in settings.items())


def row(variant: str, seed: int, figures: Figures, dense: Figures) -> Row:
    """Figures beside those of the same optimisers, rounds and seed with dense float32 in both directions.

    The gain is what training takes off the base's loss, or adds to its accuracy; ``loss_gain`` and
    ``accuracy_gain`` are shares of the dense gain.
    """
    return {
        "arm": variant,
        "seed": seed,
        "loss": figures.loss,
        "accuracy": figures.accuracy,
        "loss_gain": (figures.base_loss - figures.loss) / (figures.base_loss - dense.loss),
        "accuracy_gain": (figures.accuracy - figures.base_accuracy)
        / (dense.accuracy - figures.base_accuracy),
        "bytes_up": figures.up,
        "bytes_down": figures.down,
        "ratio_up": dense.up / figures.up,
        "ratio_down": dense.down / figures.down,
    }


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def over_seeds(
    seeds: Sequence[int], rows: Callable[[int], Iterable[Row]], report: Callable[[str], None] | None
) -> list[Row]:
    """The rows of all seeds; each row names its ``arm``.

    Args:
        seeds: one after the other.
        rows: makes the rows of a seed.
        report: receives seed and variant of each row when it is done.
    """
    results: list[Row] = []
    for seed in each(seeds, "seed"):
        for made in rows(seed):
            results.append(made)
            if report:
                report(f"seed {seed}: {made['arm']}")
    return results


def means(rows: Sequence[Row]) -> list[Row]:
    """One row per variant, in order of appearance: means over the seeds, and the worst shares of the gain."""
    result: list[Row] = []
    for variant in dict.fromkeys(row["arm"] for row in rows):
        group = [row for row in rows if row["arm"] == variant]
        mean = {key: fmean(row[key] for row in group) for key in group[0] if key not in ("arm", "seed")}
        worst = {f"worst_{key}": min(row[key] for row in group) for key in ("loss_gain", "accuracy_gain")}
        result.append({"arm": variant, "seeds": [row["seed"] for row in group], **mean, **worst})
    return result


def cells(mean: Row) -> list[str]:
    """A row of `means` as text, in the order of `COLUMNS`."""
    return [
        mean["arm"],
        f"{mean['loss']:.4f}",
        f"{mean['accuracy']:.3f}",
        *(
            f"{mean[key]:.1%}"
            for key in ("loss_gain", "worst_loss_gain", "accuracy_gain", "worst_accuracy_gain")
        ),
        *(f"{mean[key]:,.0f}" for key in ("bytes_up", "bytes_down")),
        *(f"{mean[key]:.1f}x" for key in ("ratio_up", "ratio_down")),
    ]

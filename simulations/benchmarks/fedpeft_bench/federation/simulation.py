"""What a federation gains, sends and costs, over seeds; compressed against dense in the same run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedpeft.progress_reports import each
from fedpeft_bench.harness.command import simulate

DENSE = (
    "exchange.up.codec=dense-fp32",
    "exchange.down.codec=dense-fp32",
    "exchange.up.error_feedback=false",
    "exchange.down.error_feedback=false",
    "audit.enabled=false",
    "run.baselines=[]",
)
BASELINES = "run.baselines=['local_only','centralised']"
COLUMNS = (
    "seed",
    "local-only",
    "federated",
    "centralised",
    "fed / local",
    "fed / central",
    "loss",
    "dense loss",
    "difference",
    "bytes",
    "over Shannon",
    "overhead",
)


def seeds(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Run the embedded federation for each seed, compressed with baselines and dense; one row each."""
    return [_row(seed) for seed in each(numbers, "seed")]


def _row(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        chosen = f"run.seed={seed}"
        compressed = simulate(Path(folder) / "compressed", (chosen, BASELINES, "audit.enabled=false"))
        dense = simulate(Path(folder) / "dense", (chosen, *DENSE))
    accuracy, sent, time = compressed["accuracy"], compressed["bytes"], compressed["time"]
    loss, dense_loss = compressed["loss"]["federated"], dense["loss"]["federated"]
    return {
        "seed": seed,
        "local-only": accuracy["local_only"],
        "federated": accuracy["federated"],
        "centralised": accuracy["centralised"],
        "fed / local": accuracy["federated"] / accuracy["local_only"],
        "fed / central": accuracy["federated"] / accuracy["centralised"],
        "loss": loss,
        "dense loss": dense_loss,
        "difference": loss / dense_loss - 1,
        "bytes": sent["ratio_total"],
        "over Shannon": sent["bits_per_parameter"] / sent["entropy_bits_per_parameter"] - 1,
        "overhead": time["overhead_s"] / time["total_s"],
    }


def cells(row: dict[str, Any]) -> list[str]:
    """A row of `seeds` as text."""
    shown = {"seed": "{:d}", "difference": "{:+.1%}", "bytes": "{:.1f}x fewer", "over Shannon": "{:+.2%}"}
    shown |= {"overhead": "{:.1%}", "loss": "{:.4f}", "dense loss": "{:.4f}"}
    return [shown.get(name, "{:.3f}").format(row[name]) for name in COLUMNS]

"""What released adapters remember: canaries, prompts and membership, with and without privacy.

One organisation of the embedded scenario by itself, whose adapter no other dilutes: 320 notes, and made-up
secrets in 1, 8 or 32 copies, of which a coin leaves half out. All variants but the last two take as many
steps of as many records:

* no privacy: the scenario's own optimiser and adapter, at the steps of its private baseline;
* no noise: the private baseline with noise of a billionth: sampling, clip and exchange as there;
* epsilon 8 and 2: the private baseline. A canary of 32 copies is 32 records, and a claim for one record says
  that much less of it.

Then 100 notes for 20 epochs, to show that the attacks find what is there, and the federation of four as it
ships. Noise and sampling of private runs are drawn anew in every run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedpeft.cli.output import table
from fedpeft.config import load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.progress_reports import each
from fedpeft_attacks.memory import Effort, memory_findings, released
from fedpeft_bench.federation.gain import options
from fedpeft_bench.harness.command import machine
from fedpeft_bench.privacy.record_level import MANY, MANY_AT, QUIET, private
from fedpeft_simulations.federation_run import run as run_federation

Row = dict[str, Any]

COMMON: Mapping[str, Any] = {
    **QUIET,
    "federation.nodes": 1,
    "federation.server.lr": 1.0,
    "data.test_samples": 448,
    "audit.canaries": 24,
    "privacy.max_noise_to_signal": 99.0,
}
BY_HEART: Mapping[str, Any] = {
    "federation.rounds": 8,
    "federation.local_steps": 24,
    "data.samples": 100,
    "audit.canaries": 12,
}
SHIPPED: Mapping[str, Any] = {
    "federation.nodes": 4,
    "federation.server.lr": 2.0,
    "audit.canaries": 12,
}
EQUAL = ("federation.rounds", "federation.local_steps", "federation.batch_size", "federation.lr_decay")
"""Settings of the private baseline that all variants of equal steps share."""

OPEN_LR = 2e-2
"""AdamW in as few steps as the private baseline takes."""

UNTRAINED = "untrained"
TABLES = {
    "exposure of canaries, in bits (the last column: of those left out)": (
        ("1 copy", "canaries, 1 copy"),
        ("8 copies", "canaries, 8 copies"),
        ("32 copies", "canaries, 32 copies"),
        ("all", "canaries"),
    ),
    "share of secrets extracted by prompting": (
        ("canaries, greedy", "canaries, greedy"),
        ("canaries, sampled", "canaries, sampled"),
        ("personal data, greedy", "personal data, greedy"),
        ("personal data, sampled", "personal data, sampled"),
    ),
    "membership: area under the curve": (
        ("loss", "loss"),
        ("reference", "reference"),
        ("shadows", "shadows"),
        ("RMIA", "relative"),
        ("canaries, loss", "loss, canaries"),
        ("canaries, reference", "reference, canaries"),
    ),
    "membership: members found at 10 % and at 1 % false alarms": (
        ("loss, 10 %", "loss at 10% false alarms"),
        ("1 %", "loss at 1% false alarms"),
        ("reference, 10 %", "reference at 10% false alarms"),
        ("1 %", "reference at 1% false alarms"),
        ("shadows, 10 %", "shadows at 10% false alarms"),
        ("1 %", "shadows at 1% false alarms"),
        ("RMIA, 10 %", "relative at 10% false alarms"),
        ("1 %", "relative at 1% false alarms"),
    ),
}
"""Titles of the tables, and their columns with the findings in them."""


@dataclass(frozen=True)
class Variant:
    """One line of the tables.

    Attributes:
        name: as printed.
        settings: options of the run beside `COMMON`.
        shadows: shadow adapters; 0: none.
    """

    name: str
    settings: tuple[str, ...]
    shadows: int = 0


def variants() -> list[Variant]:
    """All lines but the untrained one, in the order of the tables."""
    scenario = {**load_config(embedded_scenario()).run.private, **MANY}
    equal = {**{key: scenario[key] for key in EQUAL}, "federation.lr": OPEN_LR}
    return [
        Variant("no privacy", options(equal), shadows=4),
        Variant("no privacy, written canaries", options({**equal, "audit.canary_form": "written"})),
        Variant("no noise", private(MANY, None)),
        *(
            Variant(f"epsilon {epsilon:g}", private(settings, epsilon))
            for epsilon, settings in MANY_AT.items()
        ),
        Variant("no privacy, 20 epochs", options(BY_HEART)),
        Variant("federation of four", options(SHIPPED)),
    ]


def run(seeds: Sequence[int], report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """All variants for each seed.

    Args:
        seeds: of data, canaries and adapter; noise and sampling are drawn anew in every run.
        report: receives the name of each variant when it is done.
    """
    rows: list[Row] = []
    for seed in each(seeds, "seed"):
        for variant in variants():
            rows.append(measure(variant, seed))
            if report:
                report(f"seed {seed}: {variant.name}")
    return {"machine": machine(), "rows": rows, "means": means(rows)}


def measure(variant: Variant, seed: int) -> Row:
    """One whole run in this process without baselines and audit, and the attacks on its adapter."""
    chosen = (*options(COMMON), *variant.settings, f"run.seed={seed}")
    with tempfile.TemporaryDirectory() as folder:
        store = run_federation(load_config(embedded_scenario(), chosen), Path(folder) / "run", "new", _quiet)
        findings = memory_findings(store, released(store), Effort(shadows=variant.shadows))
        config, facts = store.config.federation, store.summary
    return {
        "arm": variant.name,
        "seed": seed,
        "steps": config.rounds * config.local_steps,
        "batch": config.batch_size,
        "loss": facts["loss"]["federated"],
        "base_loss": facts["loss"]["base"],
        "findings": {finding.name: asdict(finding) for finding in findings},
    }


def means(rows: Sequence[Row]) -> list[Row]:
    """One row per variant, in order of appearance, after that of the untrained adapter on its data.

    A figure is the mean over the seeds that have it: a coin may leave out all canaries of 32 copies. Its
    interval follows from those of the seeds, or from their spread where that is wider.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    result = [_mean([row for row in rows if row["arm"] == name]) for name in names]
    like = result[0]
    figures = {
        name: {**figure, "value": figure["base"], "interval": None}
        for name, figure in like["figures"].items()
    }
    untrained = {"arm": UNTRAINED, "seeds": like["seeds"], "steps": 0, "batch": 0, "loss": like["base_loss"]}
    return [{**untrained, "base_loss": like["base_loss"], "figures": figures}, *result]


def _mean(rows: Sequence[Row]) -> Row:
    first = rows[0]
    parts = [row["findings"] for row in rows]
    names = dict.fromkeys(name for findings in parts for name in findings)
    return {
        **{key: first[key] for key in ("arm", "steps", "batch")},
        "seeds": [row["seed"] for row in rows],
        **{key: fmean(row[key] for row in rows) for key in ("loss", "base_loss")},
        "figures": {name: _figure([part[name] for part in parts if name in part]) for name in names},
    }


def _figure(findings: Sequence[Row]) -> Row:
    values = [finding["value"] for finding in findings]
    widths = [finding["interval"][1] - finding["interval"][0] for finding in findings]
    within = math.sqrt(sum(width**2 for width in widths)) / 2 / len(findings)
    between = 1.96 * stdev(values) / math.sqrt(len(findings)) if len(findings) > 1 else 0.0
    value, half = fmean(values), max(within, between)
    high = math.inf if findings[0]["unit"] == "bits" else 1.0
    held_out = [finding["held_out"] for finding in findings if finding["held_out"] is not None]
    return {
        "value": value,
        "interval": (max(0.0, value - half), min(high, value + half)),
        "base": fmean(finding["base"] for finding in findings),
        "chance": fmean(finding["chance"] for finding in findings),
        "held_out": fmean(held_out) if held_out else None,
        "count": sum(finding["count"] for finding in findings),
        "others": sum(finding["others"] for finding in findings),
    }


def show(facts: Mapping[str, Any]) -> None:
    """Print the tables of what the command has found; the first also says what was trained."""
    rows = facts["means"]
    where = f"{len(rows[0]['seeds'])} seeds, {facts['machine']}"
    for number, (title, columns) in enumerate(TABLES.items()):
        names, lines = [name for name, _ in columns], [_cells(row, columns) for row in rows]
        if number == 0:
            names = ["steps x records", "held-out loss", *names, "left out"]
            lines = [[*_lead(row), *line, _left_out(row)] for row, line in zip(rows, lines, strict=True)]
        variants_of = [row["arm"] for row in rows]
        table(
            f"{title} ({where})",
            ("variant", *names),
            [[a, *r] for a, r in zip(variants_of, lines, strict=True)],
        )


def _lead(row: Row) -> list[str]:
    return [f"{row['steps']} x {row['batch']}" if row["steps"] else "", f"{row['loss']:.2f}"]


def _cells(row: Row, columns: Sequence[tuple[str, str]]) -> list[str]:
    return [_cell(row["figures"].get(name)) for _, name in columns]


def _cell(figure: Row | None) -> str:
    if figure is None:
        return ""
    digits = 1 if figure["chance"] > 1 else 2
    if figure["interval"] is None:
        return f"{figure['value']:.{digits}f}"
    low, high = figure["interval"]
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _left_out(row: Row) -> str:
    figure = row["figures"].get("canaries")
    return "" if figure is None or row["arm"] == UNTRAINED else f"{figure['held_out']:.1f}"


def _quiet(event: Row) -> None:
    """Nobody watches."""

"""What defends against membership from an update, and what it costs.

Whole runs of the embedded federation, each with one defence or several. The audit's attack
`update-membership` is run on what leaves (envelope and mean) in four rounds, spread evenly. Beside it stand
held-out accuracy and loss and the bytes of an update: what ends all learning is no defence.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.cli.output import quantity, table
from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.runstore import RunStore
from fedpeft_attacks.evidence.collect_views import gather
from fedpeft_attacks.evidence.taps import AGGREGATE, read_taps
from fedpeft_attacks.results.findings import Finding
from fedpeft_attacks.results.measures import MEMBERS
from fedpeft_attacks.results.verdicts import LEAKS
from fedpeft_attacks.update_membership.run_scores import ENVELOPE
from fedpeft_attacks.update_membership.verdicts_by_stage import LINKED, ROUND, membership_findings
from fedpeft_bench.federation.federation import DENSE
from fedpeft_bench.federation.gain import mean_of_known, options, over_seeds
from fedpeft_bench.harness.command import machine
from fedpeft_bench.privacy.record_level import MANY_AT
from fedpeft_simulations import federation_run

Row = dict[str, Any]
Settings = Mapping[str, Any]
"""Dotted keys and values."""

AUDITED = 4
"""Rounds that are audited, of those of a run the last of each quarter."""

SIGNS: dict[str, Any] = {"exchange.profile": "drop-in"}
SECURE: dict[str, Any] = {"exchange.secure.enabled": True}


def _steps(count: int, batch: int = 12) -> Settings:
    return {"federation.local_steps": count, "federation.batch_size": batch}


def _private(epsilon: float) -> dict[str, Any]:
    private = load_config(embedded_scenario()).run.private
    return {**private, "privacy.epsilon": epsilon, **MANY_AT.get(epsilon, MANY_AT[8.0])}


def defences() -> dict[str, Settings]:
    """What each row sets beside the embedded scenario."""
    return {
        "default: ternary 25 %": {},
        "dense": DENSE,
        "ternary 5 %": {"exchange.up.density": 0.05},
        "signs (`drop-in`)": SIGNS,
        "`thin`": {"exchange.profile": "thin"},
        "rank 8": {"adapter.rank": 8},
        "layers 0 and 1 left out": {"adapter.skip_layers": [0, 1]},
        "1 step of 12": _steps(1),
        "3 steps of 24": _steps(3, 24),
        "2 steps of 36": _steps(2, 36),
        "26 steps of 12": _steps(26),
        "secure sum of 4": SECURE,
        "secure sum of 4, signs": SECURE | SIGNS,
        "secure sum of 8": SECURE | {"federation.nodes": 8},
        "secure sum of 16": SECURE | {"federation.nodes": 16},
        "secure sum of 16, 3 steps of 24": {**SECURE, "federation.nodes": 16, **_steps(3, 24)},
        "epsilon 30": _private(30.0),
        "epsilon 8": _private(8.0),
        "epsilon 2": _private(2.0),
        "epsilon 8, secure sum of 4": {**_private(8.0), **SECURE, "exchange.up.codec": "sign"},
    }


FIGURES = ("area", "control", "found", "linked")
COLUMNS = (
    "defence",
    "accuracy",
    "loss",
    "bytes up",
    *(f"{stage}: {name}" for stage in (ENVELOPE, "mean") for name in FIGURES),
    "leaks",
)


def run(seeds: Sequence[int], report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run and attack the federation under every defence; one row of figures per run, and their means.

    Args:
        seeds: of data, adapter and batches.
        report: receives the name of each run when it is done.
    """
    rows = over_seeds(seeds, _rows, report)
    return {"machine": machine(), "rows": rows, "means": means(rows)}


def _rows(seed: int) -> Iterator[Row]:
    for name, settings in defences().items():
        yield {"arm": name, "seed": seed, **attacked({**settings, "run.seed": seed})}


def attacked(settings: Settings) -> Row:
    """One run in this process with these settings: its utility, its bytes, and membership at what leaves."""
    chosen = {"run.baselines": [], "federation.evaluate_every": 0, **settings}
    rounds = load_config(embedded_scenario(), options(chosen)).federation.rounds
    chosen["audit.rounds"] = [rounds * (quarter + 1) // AUDITED for quarter in range(AUDITED)]
    config = load_config(embedded_scenario(), options(chosen))
    with tempfile.TemporaryDirectory() as folder:
        store = federation_run.run(config, Path(folder) / "run", "new", lambda event: None)
        return {**_cost(store), **_membership(store, config)}


def _cost(store: RunStore) -> Row:
    facts = store.summary
    updates = sum(event["replies"] for event in store.events("round"))
    return {
        "accuracy": facts["accuracy"]["federated"],
        "loss": facts["loss"]["federated"],
        "bytes_up": facts["bytes"]["up"] / updates,
    }


def _membership(store: RunStore, config: Config) -> Row:
    taps = read_taps(store)
    evidence = gather(store, config, taps)
    findings = {finding.stage: finding for finding in membership_findings(store, evidence, taps)}
    leaving = {stage: findings.get(stage) for stage in (ENVELOPE, AGGREGATE)}
    leaks = [stage for stage, finding in leaving.items() if finding and finding.verdict == LEAKS]
    figures = {
        f"{stage} {name}": value
        for stage, finding in leaving.items()
        for name, value in _figures(finding).items()
    }
    return {"leaks": leaks, **figures}


def _figures(finding: Finding | None) -> Row:
    """The figures of a stage; None where it has none, such as the envelope of a secure sum."""
    area, members, linked = (finding.measure(name) if finding else None for name in (ROUND, MEMBERS, LINKED))
    return {
        "area": area and area.value,
        "interval": area and area.interval,
        "control": area and area.baselines.control,
        "found": members and members.value,
        "linked": linked and linked.value,
    }


def means(rows: Sequence[Row]) -> list[Row]:
    """One row per defence: means over the seeds, and in how many runs each stage leaked."""
    result: list[Row] = []
    for name in dict.fromkeys(row["arm"] for row in rows):
        group = [row for row in rows if row["arm"] == name]
        keys = ["accuracy", "loss", "bytes_up"]
        keys += [f"{stage} {figure}" for stage in (ENVELOPE, AGGREGATE) for figure in FIGURES]
        figures = {key: mean_of_known([row[key] for row in group]) for key in keys}
        leaks = {stage: sum(stage in row["leaks"] for row in group) for stage in (ENVELOPE, AGGREGATE)}
        result.append({"arm": name, "runs": len(group), **figures, "leaks": leaks})
    return result


def cells(mean: Row) -> list[str]:
    """A row of `means` as text, in the order of `COLUMNS`."""
    figures = [mean[f"{stage} {figure}"] for stage in (ENVELOPE, AGGREGATE) for figure in FIGURES]
    return [
        mean["arm"],
        f"{mean['accuracy']:.3f}",
        f"{mean['loss']:.3f}",
        quantity(mean["bytes_up"]),
        *("–" if figure is None else f"{figure:.2f}" for figure in figures),
        " / ".join(f"{count} of {mean['runs']}" for count in mean["leaks"].values()),
    ]


def show(facts: Mapping[str, Any]) -> None:
    """Print the table of what the command has found."""
    title = f"membership from an update: defences and their cost ({facts['machine']})"
    table(title, COLUMNS, map(cells, facts["means"]))

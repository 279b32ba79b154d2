"""Leakage by pipeline stage: what attacks read at every stage, by adapter format and exchange.

Runs of the embedded federation with two nodes and two rounds; the second is audited, as its adapter is no
longer at its start. Where layer 0 carries the adapter the attacks know its inputs exactly; the default leaves
it out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from fedpeft.cli.output import table
from fedpeft.config import load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft_attacks.audit_suite import update_findings
from fedpeft_attacks.evidence.collect_views import gather
from fedpeft_attacks.evidence.taps import read_taps
from fedpeft_attacks.registry import attack_named
from fedpeft_attacks.report.summaries import overall
from fedpeft_attacks.results.findings import Finding
from fedpeft_attacks.results.measures import RARE, SECRETS, SEQUENCES, TOKENS
from fedpeft_bench.federation.federation import DENSE
from fedpeft_bench.federation.gain import mean_of_known, options, over_seeds
from fedpeft_bench.harness.command import machine
from fedpeft_bench.privacy.record_level import MANY_AT
from fedpeft_simulations import federation_run

Row = dict[str, Any]
Settings = Mapping[str, Any]

ADAPTERS: Mapping[str, Settings] = {
    "LoRA, A trained": {"adapter.aggregation": "naive", "adapter.skip_layers": []},
    "LoRA, A frozen": {"adapter.skip_layers": []},
    "LoRA, A frozen, layer 0 left out (default)": {},
    "MiSS": {"adapter.method": "miss", "adapter.skip_layers": []},
    "(IA)3": {"adapter.method": "ia3"},
}
FEDERATION, RECORD = "embedded federation", "one record, one step of SGD"
LOADS: Mapping[str, Settings] = {
    FEDERATION: {},
    RECORD: {
        "federation.batch_size": 1,
        "federation.local_steps": 1,
        "federation.optimiser": "sgd",
        "data.prompt_weight": 1.0,
    },
}
"""What goes into an update: batches of 12 over six steps of AdamW, or the least there is."""
SMALL: Settings = {
    "run.baselines": [],
    "federation.nodes": 2,
    "federation.rounds": 2,
    "federation.evaluate_every": 0,
    "data.test_samples": 16,
    "audit.attacks": ["span"],
    "audit.rounds": [-1],
}
NOISE: Mapping[float, float] = {8.0: 0.9397, 2.0: 2.3002}
"""Noise multiplier of the whole private run (`fedpeft bench private`) by its epsilon."""
STAGES = ("gradient", "update", "envelope", "aggregate")
TOKEN_ATTACK, RECORD_ATTACK = "sparse-recovery", "sequences"
FIGURES = (TOKENS, RARE, SEQUENCES, SECRETS)
COLUMNS = (
    "adapter",
    "exchange",
    *(f"{stage}: rare" for stage in STAGES),
    "records",
    "personal data",
    "leaves",
)


def exchanges() -> Mapping[str, Settings]:
    """The exchanges by name; under privacy the settings, batches too, of the scenario's private baseline."""
    ternary = {f"ternary {density:.0%}": {"exchange.up.density": density} for density in (0.2, 0.05)}
    return {"dense": DENSE, **ternary, **{f"DP, epsilon {epsilon:g}": _private(epsilon) for epsilon in NOISE}}


def _private(epsilon: float) -> Settings:
    scenario = {**load_config(embedded_scenario()).run.private, **MANY_AT[epsilon]}
    settings = {key: value for key, value in scenario.items() if key.split(".")[0] != "adapter"}
    del settings["privacy.epsilon"], settings["federation.rounds"]
    return {
        **settings,
        "privacy.noise_multiplier": NOISE[epsilon],
        "privacy.max_noise_to_signal": 10.0,
    }


def run(seeds: Sequence[int], report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run and audit every adapter with every exchange; one row of figures per run, and their means.

    Args:
        seeds: of data, adapter and batches.
        report: receives the name of each run when it is done.
    """
    rows = over_seeds(seeds, _rows, report)
    return {"machine": machine(), "rows": rows, "means": means(rows)}


def _rows(seed: int) -> Iterator[Row]:
    for load, adapter, exchange in places():
        chosen = {**SMALL, **LOADS[load], **ADAPTERS[adapter], **exchanges()[exchange], "run.seed": seed}
        place = {"load": load, "adapter": adapter, "exchange": exchange, "seed": seed}
        place["arm"] = f"{load}, {adapter}, {exchange}"
        yield {**place, **facts(audited(options(chosen)))}


def places() -> Iterator[tuple[str, str, str]]:
    """Load, adapter and exchange of every run; one record has no private exchange, which needs batches."""
    for load, adapter, exchange in product(LOADS, ADAPTERS, exchanges()):
        if load == FEDERATION or not exchange.startswith("DP"):
            yield load, adapter, exchange


def audited(settings: Sequence[str]) -> list[Finding]:
    """One run in this process, and what the attacks read at its stages."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(embedded_scenario(), settings)
        store = federation_run.run(config, Path(folder) / "run", "new", lambda event: None)
        taps = read_taps(store)
        evidence = gather(store, config, taps)
        chosen = {stage: evidence.stages[stage] for stage in STAGES if stage in evidence.stages}
        attacks = {name: attack_named(name) for name in (TOKEN_ATTACK, RECORD_ATTACK)}
        return update_findings(store, replace(evidence, stages=chosen), taps, attacks)


def facts(findings: Sequence[Finding]) -> Row:
    """Figures and their best baselines by stage and kind; None where nothing could be read."""
    row: Row = {"verdict": overall(findings, ())}
    for stage, name in product(STAGES, FIGURES):
        attack = TOKEN_ATTACK if name in (TOKENS, RARE) else RECORD_ATTACK
        matches = [finding for finding in findings if (finding.stage, finding.attack) == (stage, attack)]
        figure = matches[0].measure(name) if matches else None
        row[f"{stage} {name}"] = figure.value if figure else None
        row[f"{stage} {name} baseline"] = figure.baselines.best if figure else None
    return row


def means(rows: Sequence[Row]) -> list[Row]:
    """One row per load, adapter and exchange: means over the seeds, and how many runs leaked."""
    result: list[Row] = []
    for place in dict.fromkeys(_place(row) for row in rows):
        group = [row for row in rows if _place(row) == place]
        keys = [f"{stage} {name}{end}" for stage in STAGES for name in FIGURES for end in ("", " baseline")]
        figures = {key: mean_of_known([row[key] for row in group]) for key in keys}
        leaks = sum(row["verdict"] == "leaks" for row in group)
        load, adapter, exchange = place
        named = {"load": load, "adapter": adapter, "exchange": exchange}
        result.append({**named, "runs": len(group), "leaks": leaks, **figures})
    return result


def _place(row: Row) -> tuple[str, str, str]:
    return row["load"], row["adapter"], row["exchange"]


def cells(mean: Row) -> list[str]:
    """A row of `means` as text, in the order of `COLUMNS`; whole records and data: gradient / envelope."""
    rare = [_beside(mean, stage, RARE) for stage in STAGES]
    records = [
        " / ".join(_share(mean[f"{stage} {name}"]) for stage in ("gradient", "envelope"))
        for name in FIGURES[2:]
    ]
    return [mean["adapter"], mean["exchange"], *rare, *records, f"{mean['leaks']} of {mean['runs']} leak"]


def _beside(mean: Row, stage: str, name: str) -> str:
    value, baseline = mean[f"{stage} {name}"], mean[f"{stage} {name} baseline"]
    return "–" if value is None else f"{_share(value)} ({_share(baseline)})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def show(facts: Mapping[str, Any]) -> None:
    """Print the ladders of what the command has found."""
    for load in LOADS:
        lines = [cells(mean) for mean in facts["means"] if mean["load"] == load]
        table(f"{load}: what attacks read, best baseline in brackets ({facts['machine']})", COLUMNS, lines)

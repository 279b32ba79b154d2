"""``fedpeft bench real``: federations of a real base on real text, and what each organisation reaches alone.

Each row is one run of ``fedpeft simulate``. A benchmark that was killed goes on where it stood: finished runs
are read, a run that was interrupted is resumed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import RunError
from fedpeft.evaluation.metrics import macro_f1
from fedpeft.progress_reports import each
from fedpeft.runstore import RunStore, read_json, write_json
from fedpeft_bench.federation.gain import options
from fedpeft_bench.harness.command import COMMAND
from fedpeft_bench.real.predictions import above_the_mean, interval, load, over_seeds
from fedpeft_bench.real.prepare import Material, prepare
from fedpeft_bench.real.rows import ROWS, Row, settings

Report = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        name: of the row, or of a baseline that ran beside it.
        seed: of adapter and batches.
        accuracy: share of the test's reviews that are classed right.
        macro_f1: unweighted mean of the three classes' F1.
        macro_f1_interval: 95 %, over the test's reviews.
        loss: held-out, per answer token; None for the majority class.
        up: bytes of all updates; None where nothing is sent.
        down: bytes of all broadcasts.
        ratio: dense float32 LoRA, both factors, over up and down together.
        seconds: of the whole command, baselines beside it included.
        peak_bytes: resident memory of the command's own process, at most.
        epsilon: claimed; None without privacy.
        above_local_only: interval of the macro-F1 above the mean of what the organisations reach alone.
        audit: verdict of the audit on what left the nodes; None where none was made.
    """

    name: str
    seed: int
    accuracy: float
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    loss: float | None = None
    up: int | None = None
    down: int | None = None
    ratio: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    epsilon: float | str | None = None
    above_local_only: tuple[float, float] | None = None
    audit: str | None = None


def run(work: Path, seeds: Sequence[int], names: Sequence[str], quick: bool, report: Report) -> list[Line]:
    """All rows; the first seed has them all, the others those that are run with every seed.

    Args:
        work: folder of base, text and runs; what it holds already is used.
        seeds: in this order.
        names: rows to run; none: all.
        quick: a few steps, to see that all works; its figures say nothing of quality.
        report: receives lines of progress.

    Raises:
        RunError: an unknown row, or a run failed.
    """
    if unknown := sorted(set(names) - {row.name for row in ROWS}):
        raise RunError(f"no row is called {unknown[0]!r}; there are {', '.join(row.name for row in ROWS)}")
    work.mkdir(parents=True, exist_ok=True)
    material = prepare(work, report)
    jobs = [
        (row, seed)
        for seed in seeds
        for row in ROWS
        if (not names or row.name in names) and (row.seeds or seed == seeds[0])
    ]
    lines: list[Line] = []
    for row, seed in each(jobs, "run"):
        folder = runs_below(work, quick) / f"{row.name}-{seed}"
        _simulate(material, row, seed, folder, quick, report)
        lines += _lines(row, seed, folder)
    return lines


def runs_below(work: Path, quick: bool) -> Path:
    """The folder of the runs, each of which is called ``<row>-<seed>``."""
    return work / ("quick" if quick else "runs")


def _simulate(material: Material, row: Row, seed: int, folder: Path, quick: bool, report: Report) -> None:
    if (folder / "run.json").exists():
        return
    baselines = ["local_only", "centralised"] if row.baselines else []
    chosen = {**settings(material, quick), **row.settings, "run.seed": seed, "run.baselines": baselines}
    begun = ["--resume"] if (folder / "config.toml").exists() else []
    wanted = [] if begun else [part for option in options(chosen) for part in ("--set", option)]
    command = [*COMMAND, "simulate", "--out", str(folder), *begun, *wanted]
    report(f"{row.name}, seed {seed}: {'resumed' if begun else 'begun'}")
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout
    last = ""
    with child.stdout as output:
        for line in output:
            last = line.strip() or last
            if line.startswith(("  [", "round")):
                report(f"{row.name}, seed {seed}: {line.strip()}")
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RunError(f"the run {folder} failed ({child.returncode}): {last[:300]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    write_json(folder / "bench.json", {"seconds": time.monotonic() - started, "peak_bytes": peak})


def _lines(row: Row, seed: int, folder: Path) -> Iterator[Line]:
    """The row itself, and before it the baselines that ran beside it."""
    facts, cost = RunStore.open(folder).summary, read_json(folder / "bench.json", {})
    truth, predicted = load(folder)

    def figures(name: str) -> dict[str, Any]:
        guesses = predicted[name]
        spread = interval(truth, lambda places: macro_f1(truth[places], guesses[places]))
        accuracy, f1 = float(np.mean(truth == guesses)), macro_f1(truth, guesses)
        return {"accuracy": accuracy, "macro_f1": f1, "macro_f1_interval": spread}

    alone = [name for name in predicted if name.startswith("local_only-")]
    if row.baselines:
        predicted["majority class"] = np.full_like(truth, Counter(truth.tolist()).most_common(1)[0][0])
        yield Line("majority class", seed, **figures("majority class"))
        for name in ("base", "centralised"):
            yield Line(name, seed, loss=facts["loss"][name], **figures(name))
        for name in alone:
            loss = facts["arms"]["local_only"]["nodes"][name.removeprefix("local_only-")]["loss"]
            yield Line(name, seed, loss=loss, **figures(name))
    sent = facts["bytes"]
    others = [predicted[name] for name in alone]
    yield Line(
        row.name,
        seed,
        loss=facts["loss"]["federated"],
        up=sent["up"],
        down=sent["down"],
        ratio=sent["ratio_total"],
        epsilon=facts["privacy"]["epsilon"] if facts["privacy"]["unit"] != "none" else None,
        audit=facts["audit"]["verdict"] if facts["audit"] else None,
        above_local_only=above_the_mean(truth, predicted["federated"], others) if others else None,
        **cost,
        **figures("federated"),
    )


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The lines as JSON values."""
    return [asdict(line) for line in lines]


COLUMNS = (
    "row",
    "seed",
    "accuracy",
    "macro-F1",
    "95 %",
    "loss",
    "bytes up",
    "down",
    "fewer",
    "time",
    "memory",
)


def cells(line: Line) -> list[str]:
    """A line as text, in the order of `COLUMNS`."""
    low, high = line.macro_f1_interval
    name = line.name if line.epsilon is None else f"{line.name} (epsilon {line.epsilon:.2f})"

    def text(value: float | None, shape: str) -> str:
        return "" if value is None else format(value, shape)

    return [
        name,
        str(line.seed),
        f"{line.accuracy:.3f}",
        f"{line.macro_f1:.3f}",
        f"{low:.2f} to {high:.2f}",
        text(line.loss, ".4f"),
        text(line.up, ",d"),
        text(line.down, ",d"),
        text(line.ratio, ".1f"),
        text(line.seconds, ",.0f"),
        text(line.peak_bytes and line.peak_bytes / 2**30, ".2f"),
    ]


def verdicts(lines: Sequence[Line], runs: Path) -> Iterator[str]:
    """The comparisons that the table is for, one line each.

    Args:
        lines: of the table.
        runs: the folder of their runs (`runs_below`).
    """
    for line in lines:
        beside = {other.name: other for other in lines if other.seed == line.seed}
        if line.above_local_only and (centralised := beside.get("centralised")):
            share, (low, high) = line.macro_f1 / centralised.macro_f1, line.above_local_only
            yield (
                f"seed {line.seed}: {line.name} reaches {share:.0%} of centralised macro-F1, "
                f"{low:+.3f} to {high:+.3f} (95 %) above the mean of local-only"
            )
        if line.name == "drop-in" and line.loss and (dense := beside.get("dense")) and dense.loss:
            change = line.loss / dense.loss - 1
            yield f"seed {line.seed}: drop-in's loss is {change:+.1%} of dense, {line.ratio:.0f}x fewer bytes"
        if line.audit:
            yield f"seed {line.seed}: audit of what left the nodes: {line.audit}"
    compared = [runs / f"{line.name}-{line.seed}" for line in lines if line.above_local_only]
    if len(compared) > 1:
        yield over_seeds(compared)

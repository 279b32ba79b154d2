"""``fedpeft bench audit tokens``: which tokens of notes with personal data each kind of update gives away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fedpeft_bench.harness.command import machine

Row = dict[str, Any]

PARTS = ("trained_a", "formats", "sparse", "against_dager", "aggregates", "local_steps")
"""The tables, as `run` takes them."""

_READ = ("tokens", "all", "rare (95 %)", "rare precision", "other data", "prior", "chance", "CPU-s", "solver")


def run(
    seeds: Sequence[int],
    report: Callable[[str], None] | None = None,
    parts: Sequence[str] = PARTS,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure on the bench base, which is trained first where it is not there.

    Args:
        seeds: of the notes; every figure is pooled over them.
        report: called with a line before each row.
        parts: which tables.
        folder: of the bench base; default: `audit_base.FOLDER`.
    """
    from fedpeft_bench.audit import tokens_tables as tables
    from fedpeft_bench.audit.base import FOLDER, bench_base
    from fedpeft_bench.audit.tokens_lab import Lab
    from fedpeft_bench.harness.timing import one_core

    one_core()
    lab = Lab.of(bench_base(folder or FOLDER, report))
    facts: dict[str, Any] = {"machine": machine(), "seeds": list(seeds)}
    for part in parts:
        rows: list[Row] = []
        for row in getattr(tables, part)(lab, seeds):
            rows.append(row)
            if report:
                report(f"{part}: row {len(rows)}")
        facts[part] = rows
    return facts


def show(facts: dict[str, Any]) -> None:
    """Print the tables."""
    from fedpeft.cli.output import table

    where = f"{facts['machine']}, seeds {facts['seeds']}"
    for part, (title, columns, cells) in _TABLES.items():
        if part in facts:
            table(f"{title} ({where})", columns, map(cells, facts[part]))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    low, high = figure["interval"]
    return f"{figure['value']:.2f} ({low:.2f}-{high:.2f})"


def _read(row: Row) -> list[str]:
    """What every table says of a row, in the order of `_READ`."""
    rare = row["rare"] or {"baselines": {}}
    beside = [_share(rare["baselines"].get(name)) for name in ("control", "prior", "chance")]
    return [
        f"{row['tokens']:.0f}",
        _share(row["all"]["value"]),
        _interval(row["rare"]),
        _share(row["rare_precision"]),
        *beside,
        f"{row['seconds']:.2f}",
        row["method"],
    ]


def _trained_cells(row: Row) -> list[str]:
    claim = f"{row['claimed']:.0f}: {_share(row['claimed_precision'])}/{_share(row['claimed_recall'])}"
    return [f"{row['notes']} {row['attack']}", *_read(row), claim]


def _format_cells(row: Row) -> list[str]:
    start = "warm" if row["warm"] else "start"
    rank = "" if row["format"] == "(IA)3" else f" r={row['rank']}"
    layer = "all layers" if row["layer_0"] else "without layer 0"
    return [f"{row['format']}{rank}, {layer}, {start}, {row['rounds']} x {row['notes']}", *_read(row)]


def _sparse_cells(row: Row) -> list[str]:
    return [f"r={row['rank']}, {row['values']}, {row['filling']}", *_read(row)]


def _step_cells(row: Row) -> list[str]:
    return [f"{row['optimiser']}, {row['steps']} steps, {row['seen']}", *_read(row)]


def _dager_cells(row: Row) -> list[str]:
    ours, dager = row["ours"], row["dager"]
    pairs: Iterable[str] = (
        f"{_share(dager[key] if key != 'all' else dager['all']['value'])} / "
        f"{_share(ours[key] if key != 'all' else ours['all']['value'])}"
        for key in ("all", "claimed_recall", "claimed_precision")
    )
    times = f"{dager['seconds'] * 1e3:.0f} / {ours['seconds'] * 1e3:.0f}"
    return [f"r={row['rank']}, {row['notes']} notes", f"{ours['tokens']:.0f}", *pairs, times, ours["method"]]


_DAGER = ("gradient", "tokens", "recall", "claimed recall", "claimed precision", "CPU-ms", "our solver")

_TABLES: dict[str, tuple[str, tuple[str, ...], Callable[[Row], list[str]]]] = {
    "trained_a": (
        "LoRA with trained A, warm, rank 8 on q and v, raw gradient",
        ("notes, attack", *_READ, "claimed: precision/recall"),
        _trained_cells,
    ),
    "formats": ("formats, raw gradients; rounds x notes", ("what is sent", *_READ), _format_cells),
    "sparse": ("one note, LoRA with trained A on q and v, sparse values", ("values", *_READ), _sparse_cells),
    "against_dager": ("DAGER / ours on the same gradients", _DAGER, _dager_cells),
    "aggregates": (
        "mean of raw gradients, two notes a node",
        ("nodes", *_READ),
        lambda row: [str(row["nodes"]), *_read(row)],
    ),
    "local_steps": ("four notes, several local steps", ("update", *_READ), _step_cells),
}

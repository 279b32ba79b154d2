"""``fedpeft bench exchange``: what it runs, the goals that it judges, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fedpeft.cli.output import table
from fedpeft_bench.exchange import deltas
from fedpeft_bench.exchange.exchange import DENSITY, SPARSE, TERNARY, Row, measure, sealed_bytes
from fedpeft_bench.exchange.peers import compeft_formula_bits
from fedpeft_bench.exchange.tensors import LARGE, SMALL, Vector, made_up
from fedpeft_bench.harness.command import machine

Report = Callable[[str], None]

SHOWN_ROUNDS = (1, 2, 4)
COMPARED = 2
"""The round of the larger adapter whose deltas all codecs are run on."""
LARGE_ENOUGH = 3_000_000
GOALS = {
    "over Shannon, densities 3 to 25 %": ("at most", 0.015),
    "over Shannon, densities 0.5 to 100 %": ("at most", 0.032),
    "encode up to 10 %, MB/s": ("at least", 500),
    "decode up to 10 %, MB/s": ("at least", 900),
    "encode at any density, MB/s": ("at least", 300),
    "of it coding and signing alone, MB/s": ("at least", 300),
    "decode at any density, MB/s": ("at least", 300),
}
FORMULA_GOAL = 0.75


def run(large: bool, trained: bool, report: Report) -> dict[str, Any]:
    """Measure everything.

    Args:
        large: also on 21 million values.
        trained: also on the deltas of real rounds, which takes a minute of training.
        report: receives a line at each step.

    Returns:
        ``machine``, ``vectors`` (`fedpeft_bench.exchange.exchange.measure`), ``rounds``
        (`against_formula`) and ``goals``.
    """
    vectors: list[dict[str, Any]] = []
    for shape in (SMALL, LARGE) if large else (SMALL,):
        for uneven in (False, True):
            vector = made_up(shape, uneven=uneven)
            report(f"measuring: {vector.name}")
            vectors.append(measure(vector))
    rounds: list[Row] = []
    for vector in _trained(rounds, report) if trained else ():
        report(f"measuring: {vector.name}")
        vectors.append(measure(vector, SPARSE))
    return {"machine": machine(), "vectors": vectors, "rounds": rounds, "goals": goals(vectors, rounds)}


def _trained(rounds: list[Row], report: Report) -> Iterator[Vector]:
    """Fill in the rows of the rounds, and yield the vectors to compare all codecs on."""
    for optimiser, adapter in deltas.RULES:
        report(f"training: {optimiser}, {adapter}")
        for round in deltas.train_rounds(optimiser, adapter, max(SHOWN_ROUNDS)):
            if round.number in SHOWN_ROUNDS:
                facts = {"optimiser": optimiser, "adapter": adapter}
                rounds.append(facts | against_formula(round))
            if (adapter, round.number) == (deltas.LARGE, COMPARED):
                yield Vector(f"real delta, {optimiser}, {adapter}", round.layout, round.deltas[0])


def against_formula(round: deltas.Round) -> Row:
    """Envelopes of one round's raw deltas at 5 % as a share of ComPEFT's formula: mean over nodes, and worst.

    ``sent_ratio`` is the same for what was really sent, with error feedback.
    """
    size = round.layout.size
    formula = compeft_formula_bits(size, DENSITY) / 8
    raw = [sealed_bytes(TERNARY, Vector("", round.layout, delta), DENSITY) for delta in round.deltas]
    return {
        "round": round.number,
        "parameters": size,
        "loss": round.loss,
        "formula": formula,
        "bytes": sum(raw) / len(raw),
        "ratio": sum(raw) / len(raw) / formula,
        "worst": max(raw) / formula,
        "sent_ratio": sum(round.sent) / len(round.sent) / formula,
    }


def goals(vectors: Iterable[dict[str, Any]], rounds: Iterable[Row]) -> list[Row]:
    """The project's goals for the codec and what was measured, worst case first judged."""
    large = [vector for vector in vectors if vector["parameters"] >= LARGE_ENOUGH]
    ours = [row for vector in large for row in vector["rows"] if row["codec"] == TERNARY.label]
    few, some = ([r for r in ours if r["density"] <= d] for d in (0.10, 1.0))
    usual = [r for r in ours if 0.03 <= r["density"] <= 0.25]
    measured = (
        max(r["excess"] for r in usual),
        max(r["excess"] for r in some),
        *(min(r[way] for r in few) for way in ("encode", "decode")),
        *(min(r[way] for r in some) for way in ("encode", "seal", "decode")),
    )
    result = [_judged(name, *GOALS[name], value) for name, value in zip(GOALS, measured, strict=True)]
    worst: dict[str, float] = {}
    for row in rounds:
        if row["optimiser"] == "SGD":
            worst[row["adapter"]] = max(row["worst"], worst.get(row["adapter"], 0.0))
    name = "bytes / ComPEFT's formula, SGD deltas at 5 %"
    return result + [
        _judged(f"{name}, {adapter}", "at most", FORMULA_GOAL, value) for adapter, value in worst.items()
    ]


def _judged(name: str, sense: str, limit: float, value: float) -> Row:
    met = value <= limit if sense == "at most" else value >= limit
    return {"goal": name, "sense": sense, "limit": limit, "measured": value, "met": met}


def show(facts: dict[str, Any]) -> None:
    """Print all tables."""
    for vector in facts["vectors"]:
        _show_peers(vector, facts["machine"])
        _show_densities(vector)
    if facts["rounds"]:
        _show_rounds(facts["rounds"])
    table("goals", ("goal", "limit", "measured", "met"), map(_goal_cells, facts["goals"]))


def _show_peers(vector: dict[str, Any], where: str) -> None:
    title = f"{vector['name']}: {vector['parameters']:,} values in {vector['tensors']} tensors ({where})"
    columns = ("codec", "bytes", "bits / param", "over Shannon", "x ours", "x formula")
    columns = (*columns, "encode MB/s", "seal alone", "decode MB/s", "error")
    order = {"ours": 0, "formula": 1, "peer": 2}
    chosen = [row for row in vector["rows"] if row["density"] in (None, DENSITY)]
    lines = [_cells(row) for row in sorted(chosen, key=lambda row: order[row["who"]])]
    names = {"threshold": "numpy: |x| and partition", "copy": "numpy: copy"}
    blank = ["-"] * 5
    floors = [[names[key], *blank, f"{rate:.0f}", "-", "-", "-"] for key, rate in vector["floors"].items()]
    table(title, columns, [*lines, *floors])


def _cells(row: Row) -> list[str]:
    density = f" {row['density']:.0%}" if row["density"] else ""
    chosen = f" ({row['chosen']})" if row["chosen"] else ""
    if row["note"]:
        return [row["codec"], row["note"], *["-"] * 8]
    return [
        row["codec"] + density + chosen,
        f"{row['bytes']:,.0f}",
        f"{row['bits']:.4f}",
        _shown(row["excess"], "{:+.2%}"),
        f"{row['against_ours']:.2f}",
        f"{row['against_formula']:.3f}",
        *(_shown(row[key], "{:.0f}") for key in ("encode", "seal", "decode")),
        _shown(row["error"], "{:.4f}"),
    ]


def _show_densities(vector: dict[str, Any]) -> None:
    columns = ("density", "bytes", "bits / param", "over Shannon", "x formula", "encode MB/s", "seal alone")
    columns = (*columns, "decode MB/s", "error", "ComPEFT masks over", "OpenFL STC over")
    others: dict[tuple[str, float], str] = {
        (row["codec"], row["density"]): _shown(row["excess"], "{:+.0%}") for row in vector["rows"]
    }
    lines: list[list[str]] = []
    for row in (row for row in vector["rows"] if row["codec"] == TERNARY.label):
        cells = _cells(row)
        peers = [
            others.get((peer, row["density"]), "-") for peer in ("ComPEFT masks, mean scale", "OpenFL STC")
        ]
        lines.append([f"{row['density']:.1%}", *cells[1:4], *cells[5:], *peers])
    table(f"{TERNARY.label} over densities, {vector['name']}", columns, lines)


def _show_rounds(rounds: list[Row]) -> None:
    columns = (
        "optimiser",
        "adapter",
        "round",
        "values",
        "held-out loss",
        "formula",
        "raw delta",
        "x formula",
        "worst node",
    )
    lines = [
        [
            row["optimiser"],
            row["adapter"],
            row["round"],
            f"{row['parameters']:,}",
            "{:.2f} to {:.2f}".format(*row["loss"]),
            f"{row['formula']:,.0f} B",
            f"{row['bytes']:,.0f} B",
            f"{row['ratio']:.3f}",
            f"{row['worst']:.3f}",
            f"{row['sent_ratio']:.3f}",
        ]
        for row in rounds
    ]
    table("real deltas at 5 % against ComPEFT's formula", (*columns, "sent, with feedback"), lines)


def _goal_cells(goal: Row) -> list[str]:
    form = "{:.2%}" if "Shannon" in goal["goal"] else "{:.0f}" if goal["limit"] > 1 else "{:.3f}"
    met = "yes" if goal["met"] else "NO"
    limit = f"{goal['sense']} {form.format(goal['limit'])}"
    return [goal["goal"], limit, form.format(goal["measured"]), met]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)

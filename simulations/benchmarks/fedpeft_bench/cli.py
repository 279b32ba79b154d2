"""``fedpeft bench``: one table each; commands of a checkout, which the wheel does not hold."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedpeft.cli.output import JSON_OPTION, emit, quantity, table

if TYPE_CHECKING:
    from fedpeft_bench.federation.gain import Row


SEEDS = typer.Option([0, 1, 2], "--seed", help="May be given many times.")

PART = typer.Argument(..., help="Which of the benchmarks of the audit.")


def register(app: typer.Typer) -> None:
    """Add the ``bench`` commands."""
    group = typer.Typer(help="Benchmarks; each prints one table with machine and date.", no_args_is_help=True)
    group.callback()(_show_progress)
    group.command("simulate")(simulate)
    group.command("memory")(memory)
    group.command("resume")(resume)
    group.command("exchange")(exchange)
    group.command("aggregate")(aggregate)
    group.command("federation")(federation)
    group.command("participation")(participation)
    group.command("privacy")(privacy)
    group.command("dp-step")(dp_step)
    group.command("secure")(secure)
    group.command("ledger")(ledger)
    group.command("nodes")(nodes)
    group.command("bands")(bands)
    group.command("private")(private)
    group.command("persons")(persons)
    group.command("frameworks")(frameworks)
    group.command("tune")(tune)
    group.command("audit")(audit)
    group.command("real")(real)
    group.command("all")(everything)
    app.add_typer(group, name="bench")


def _show_progress(context: typer.Context) -> None:
    from fedpeft.cli.show_progress import progress

    context.with_resource(progress(to_stderr=True, live=False))


def simulate(
    seeds: list[int] = SEEDS,
    as_json: bool = JSON_OPTION,
) -> None:
    """Gain, bytes and overhead of the embedded federation over seeds, compressed against dense."""
    from fedpeft_bench.federation import simulation
    from fedpeft_bench.harness.command import machine

    rows = simulation.seeds(seeds)

    def show() -> None:
        columns = zip(simulation.COLUMNS, *map(simulation.cells, rows), strict=True)
        header, *lines = [list(column) for column in columns]
        table(f"embedded federation ({machine()})", header, lines)

    emit({"machine": machine(), "rows": rows}, as_json, show)


def memory(as_json: bool = JSON_OPTION) -> None:
    """Peak memory of 50 simulated nodes against 2."""
    from fedpeft_bench.federation import durability
    from fedpeft_bench.harness.command import machine

    facts = durability.memory()
    rows = [(nodes, quantity(peak)) for nodes, peak in zip(facts["nodes"], facts["peak_bytes"], strict=True)]
    rows.append(("ratio", f"{facts['ratio']:.3f}"))
    emit(facts, as_json, lambda: table(f"peak memory ({machine()})", ("nodes", "resident"), rows))


def resume(
    kills: int = typer.Option(20, min=1, help="How often the run is killed."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Kill a run at random moments, resume it, and compare its values with an uninterrupted run."""
    from fedpeft_bench.federation import durability

    facts = durability.kills(kills, report=None if as_json else typer.echo)
    emit(facts, as_json, lambda: table("killed and resumed", ("what", "value"), facts.items()))
    if not (facts["same_adapter"] and facts["same_updates"] and facts["kills"] == kills):
        raise typer.Exit(1)


def exchange(
    large: bool = typer.Option(False, "--large", help="Also on 21 million values; takes minutes more."),
    real: bool = typer.Option(True, "--real/--no-real", help="Also on deltas of real rounds, trained here."),
    plots: Path | None = typer.Option(None, "--plots", help="Folder for rate.svg and bound.svg."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Our envelopes against the codecs of others on the same tensors: bytes, MB/s of one core, error."""
    from fedpeft_bench.harness.timing import one_core

    one_core()
    from fedpeft_bench.exchange import exchange_report
    from fedpeft_bench.exchange.exchange_plots import draw

    facts = exchange_report.run(large, real, _log)
    if plots:
        facts["plots"] = [str(path) for path in draw(facts, plots)]
    emit(facts, as_json, lambda: exchange_report.show(facts))


def aggregate(
    nodes: int = typer.Option(100, min=1, help="How many updates are summed."),
    distinct: int = typer.Option(10, min=1, help="How many of them differ; they are taken in turn."),
    as_json: bool = JSON_OPTION,
) -> None:
    """One core averages the signed updates of many nodes, 21 million values each."""
    from fedpeft_bench.harness.timing import one_core

    one_core()
    from fedpeft_bench.exchange import aggregate as benchmark

    facts = benchmark.aggregate(nodes, min(nodes, distinct))
    title = f"aggregation ({facts['machine']})"
    emit(facts, as_json, lambda: table(title, ("what", "value"), benchmark.rows(facts)))


def federation(seeds: list[int] = SEEDS, as_json: bool = JSON_OPTION) -> None:
    """Bandwidth profiles against dense exchange, FLASC and top-k; a quarter of an hour per seed."""
    from fedpeft_bench.federation import federation as benchmark

    _show_gain("profiles", benchmark.rows(seeds, _log), as_json)


def participation(seeds: list[int] = SEEDS, as_json: bool = JSON_OPTION) -> None:
    """Two of eight nodes a round, with and without feedback and cache; a quarter of an hour per seed."""
    from fedpeft_bench.federation import participation as benchmark

    _show_gain("two of eight nodes a round", benchmark.rows(seeds, report=_log), as_json)


def privacy(as_json: bool = JSON_OPTION) -> None:
    """Accountants, noise and an audit of the mechanism, beside others' figures."""
    from fedpeft_bench.harness.timing import one_core

    one_core()
    from fedpeft_bench.privacy import accountants as benchmark

    facts = benchmark.run()
    emit(facts, as_json, lambda: benchmark.show(facts))


def dp_step(as_json: bool = JSON_OPTION) -> None:
    """A DP-SGD step against one without privacy and against Opacus: seconds and memory; ten minutes."""
    from fedpeft_bench.harness.command import machine
    from fedpeft_bench.privacy import dp_step as dpsteps

    rows = dpsteps.rows(report=_log)
    title = f"DP-SGD steps ({machine()})"
    emit(
        {"machine": machine(), "rows": rows},
        as_json,
        lambda: table(title, dpsteps.COLUMNS, map(dpsteps.cells, rows)),
    )


def secure(
    values: int = typer.Option(1_000_000, "--values", min=1, help="Values of a sum."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Secure sums: processor time of a node and of the coordinator, beside Flower's SecAgg+."""
    from fedpeft_bench.harness.timing import one_core

    one_core()
    from fedpeft_bench.secure import secure as benchmark

    facts = benchmark.secure(size=values, report=_log)
    title = f"secure sums of {facts['size']:,} ternary values ({facts['machine']})"
    emit(facts, as_json, lambda: table(title, benchmark.COLUMNS, benchmark.cells(facts)))


def ledger(
    kills: int = typer.Option(0, "--kills", min=0, help="Also kill racing workers this often."),
    as_json: bool = JSON_OPTION,
) -> None:
    """The privacy ledger: milliseconds of a reservation, and what is lost when its users are killed."""
    from fedpeft_bench.privacy import ledger as benchmark

    facts = benchmark.run(kills, _log)
    title = f"privacy ledger ({facts['machine']})"
    emit(facts, as_json, lambda: table(title, ("what", "value"), benchmark.rows(facts)))
    if not benchmark.intact(facts):
        raise typer.Exit(1)


def nodes(as_json: bool = JSON_OPTION) -> None:
    """Node-level privacy: noise for each schedule, and a convex problem trained under it; a minute."""
    from fedpeft_bench.privacy import node_level as benchmark

    facts = benchmark.run(_log)
    emit(facts, as_json, lambda: benchmark.show(facts))


def bands(as_json: bool = JSON_OPTION) -> None:
    """Correlated noise of local steps: error beside jax-privacy's, gain at equal epsilon; a minute."""
    from fedpeft_bench.privacy import bands as benchmark

    facts = benchmark.run(_log)
    emit(facts, as_json, lambda: benchmark.show(facts))


def private(
    seeds: list[int] = SEEDS,
    only: str = typer.Option("", "--only", help="Only variants whose names hold this."),
    as_json: bool = JSON_OPTION,
) -> None:
    """The cost of record-level privacy for each exchange; twelve minutes per seed."""
    from fedpeft_bench.harness.command import machine
    from fedpeft_bench.privacy import record_level as benchmark

    rows = benchmark.rows(seeds, _log, only)
    facts = {"machine": machine(), "rows": rows, "means": benchmark.means(rows)}
    emit(facts, as_json, lambda: benchmark.show(facts))


def persons(seeds: list[int] = SEEDS, as_json: bool = JSON_OPTION) -> None:
    """Persons of several records at epsilon 8: drawn persons against drawn records; ten minutes a seed."""
    from fedpeft_bench.harness.command import machine
    from fedpeft_bench.privacy import person_level

    facts = {"machine": machine(), "rows": person_level.rows(seeds, _log)}
    emit(facts, as_json, lambda: person_level.show(facts))


def frameworks(
    jax_privacy: str = typer.Option("", "--jax-privacy", help="Python of an environment with jax-privacy 2."),
    pfl: str = typer.Option("", "--pfl", help="Python of an environment with torch and pfl."),
    epsilons: list[float] = typer.Option([8.0, 2.0], "--epsilon", help="May be given many times."),
    repeats: int = typer.Option(3, "--repeats", min=1, help="Trainings of each."),
    as_json: bool = JSON_OPTION,
) -> None:
    """One private problem by fedpeft, Opacus, jax-privacy and pfl: epsilon, accuracy, time."""
    from fedpeft_bench.frameworks import comparison_rows as compare
    from fedpeft_bench.harness.command import machine

    others = {name: python for name, python in (("jax-privacy", jax_privacy), ("pfl", pfl)) if python}
    rows = compare.rows(others, epsilons, repeats, _log)
    lines = [compare.cells(row) for row in rows]
    title = f"DP-SGD by four frameworks ({machine()})"
    emit({"machine": machine(), "rows": rows}, as_json, lambda: table(title, compare.COLUMNS, lines))


def tune(seeds: list[int] = SEEDS, as_json: bool = JSON_OPTION) -> None:
    """Rate and clip chosen blindly, for free and privately, at one epsilon; ten minutes per seed."""
    from fedpeft_bench.harness.command import machine
    from fedpeft_bench.privacy import tuning as benchmark

    rows = benchmark.rows(seeds, _log)
    facts = {"machine": machine(), "rows": rows, "means": benchmark.means(rows)}
    emit(facts, as_json, lambda: benchmark.show(facts))


class AuditPart(StrEnum):
    """What ``fedpeft bench audit`` can measure."""

    TOKENS = "tokens"
    SEQUENCES = "sequences"
    WHOLE_BATCHES = "whole_batches"
    RECIT = "recit"
    MEMORY = "memory"
    EPSILON = "epsilon"
    LADDER = "ladder"
    DEFENCES = "defences"
    COST = "cost"
    BROADCAST = "broadcast"
    ENCODERS = "encoders"


def audit(part: AuditPart = PART, seeds: list[int] = SEEDS, as_json: bool = JSON_OPTION) -> None:
    """The audit's attacks on undefended and on defended updates, with controls; ten minutes and more."""
    from fedpeft_bench.harness.timing import one_core

    one_core()
    benchmark = import_module(f"fedpeft_bench.audit.{part.value}")
    facts = benchmark.run(seeds, _log)
    emit(facts, as_json, lambda: benchmark.show(facts))


def _log(line: str) -> None:
    typer.echo(line, err=True)


def _show_gain(title: str, rows: list[Row], as_json: bool) -> None:
    from fedpeft_bench.federation import gain
    from fedpeft_bench.harness.command import machine

    means = gain.means(rows)
    facts = {"machine": machine(), "rows": rows, "means": means}
    emit(facts, as_json, lambda: table(f"{title} ({machine()})", gain.COLUMNS, map(gain.cells, means)))


def real(
    work: Path = typer.Option(Path("runs/real"), "--work", help="Folder of base, text and runs."),
    rows: list[str] = typer.Option([], "--row", help="Only this row; may be given many times."),
    seeds: list[int] = SEEDS,
    quick: bool = typer.Option(False, "--quick", help="A few steps, to see that all works: 15 minutes."),
    as_json: bool = JSON_OPTION,
) -> None:
    """A real base on real text: federated, local-only, centralised; a night on two cores, resumable."""
    from fedpeft_bench.harness.command import machine
    from fedpeft_bench.real import base_costs, benchmark

    lines = benchmark.run(work, seeds[:1] if quick else seeds, rows, quick, _log)
    costs = base_costs.compare(work, _log) if not rows or "nf4" in rows else None
    facts = {"machine": machine(), "rows": benchmark.as_json(lines), "base": costs}

    def show() -> None:
        cells = [benchmark.cells(line) for line in lines]
        table(f"real base, real text ({machine()})", benchmark.COLUMNS, cells)
        for line in benchmark.verdicts(lines, benchmark.runs_below(work, quick)):
            typer.echo(line)
        if costs:
            table("nf4 beside no quantisation", base_costs.COLUMNS, base_costs.cells(costs))

    emit(facts, as_json, show)


def everything() -> None:
    """Run all benchmarks, one after the other; four hours."""
    simulate([0, 1, 2], False)
    memory(False)
    resume(20, False)
    exchange(large=False, real=True, plots=None, as_json=False)
    aggregate(nodes=100, distinct=10, as_json=False)
    privacy(False)
    dp_step(False)
    secure(1_000_000, False)
    ledger(kills=1000, as_json=False)
    nodes(False)
    private([0, 1, 2], only="", as_json=False)
    tune([0, 1, 2], False)
    for part in AuditPart:
        audit(part, [0, 1, 2], False)
    federation([0, 1, 2], False)
    participation([0, 1, 2], False)

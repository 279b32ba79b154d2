"""``fedpeft privacy``: what a configuration's privacy plan promises, and whether it can learn at all."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.cli.scenario import SCENARIO, SET, scenario_config
from fedpeft.epsilons import UNBOUNDED, shown, written
from fedpeft.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from fedpeft.config import Config
    from fedpeft.privacy.plan import PrivacyPlan
    from fedpeft.run_plan import RunPlan


ADJACENCY = {
    "add-or-remove-one": "add-or-remove-one",
    "replace-by-zero": "replace-by-zero: the same roster, one node's update replaced by zero",
}


def register(app: typer.Typer) -> None:
    """Add the ``privacy`` commands."""
    group = typer.Typer(help="Differential privacy: plans before anything runs.", no_args_is_help=True)
    group.callback()(_group)
    group.command("plan")(plan)
    app.add_typer(group, name="privacy")


def _group() -> None:
    """Keep the name of a single command."""


def plan(
    scenario: str | None = SCENARIO,
    set_: list[str] = SET,
    values: int = typer.Option(0, "--values", min=0, help="Values that get noise; 0: load base and adapter."),
    caps: bool = typer.Option(False, "--caps", help="Unit person: also compare caps and what is drawn."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Print unit, trust, noise, epsilon and noise over signal of a scenario; exit code 6: too much noise."""
    config = scenario_config(scenario, set_, as_json=as_json)
    if config.privacy.unit == "none":
        facts: dict[str, Any] = {"private": False, "epsilon": UNBOUNDED, "reason": "privacy.unit = 'none'"}
        facts |= _sums(config)
        emit(facts, as_json, lambda: _show_none(facts))
        return
    run_plan = _run_plan(config, values)
    facts = _facts(run_plan) | {"caps": _caps(run_plan) if caps else None}
    emit(facts, as_json, lambda: _show(facts))
    if not facts["allowed"]:
        raise typer.Exit(PrivacyError.exit_code)


def _run_plan(config: Config, values: int) -> RunPlan:
    """The plan of a config; the base is loaded where nobody says how many values get noise."""
    from fedpeft.run_plan import RunPlan

    if values:
        return RunPlan.from_config(config, values, noisy=values)
    if config.base.task != "causal-lm":
        raise ConfigError(f"base.task = {config.base.task!r} depends on the nodes' labels: give --values")
    from fedpeft.bases import load_base

    return RunPlan.from_base(config, load_base(config.base, longest=config.data.max_length))


def _facts(plan: RunPlan) -> dict[str, Any]:
    from fedpeft.privacy.noise_to_signal import remedies

    config, privacy, figures = plan.config, plan.privacy, plan.signal
    assert privacy is not None and figures is not None
    nodes, most = config.federation.nodes, config.privacy.max_noise_to_signal
    allowed = figures.whole_run <= most
    advice = [] if allowed else remedies(privacy, plan.noisy_values, nodes)
    return {
        "private": not privacy.reproducible,
        **privacy.describe(),
        "drawn": privacy.drawn,
        "epsilon_by_rdp": _rdp_epsilon(privacy),
        "steps": privacy.steps,
        "groups": privacy.groups,
        "step_rate": privacy.step_rate,
        "values": plan.noisy_values,
        "nodes": nodes,
        "noise_over_signal_per_release": figures.per_release,
        "noise_over_signal_whole_run": figures.whole_run,
        "remedies": [{"change": each.change, "whole_run": each.whole_run} for each in advice],
        "most_noise": most,
        "allowed": allowed,
        "loss_standard_error": privacy.loss_error or None,
        "epsilon_in_nodes": _in_nodes(privacy, nodes),
        **_sums(config),
    }


def _caps(plan: RunPlan) -> list[dict[str, Any]]:
    """Noise over signal of drawn persons and drawn records under several caps, at the plan's epsilon."""
    from fedpeft.privacy.persons import caps

    assert plan.privacy is not None
    nodes = plan.config.federation.nodes
    return [
        {**asdict(cap), "break_even": cap.break_even} for cap in caps(plan.privacy, plan.noisy_values, nodes)
    ]


def _in_nodes(plan: PrivacyPlan, nodes: int) -> list[dict[str, Any]]:
    """Joint epsilon of a record or person that is in several nodes."""
    from fedpeft.privacy.persons import epsilon_in_nodes

    if plan.unit == "node" or plan.reproducible:
        return []
    return [{"nodes": count, "epsilon": written(value)} for count, value in epsilon_in_nodes(plan, nodes)]


def _sums(config: Config) -> dict[str, Any]:
    """What secure sums withstand, where there are some."""
    from fedpeft.cohort import Cohort

    if not config.exchange.secure.enabled:
        return {"sums": None}
    cohort = Cohort.of(config)
    numbers = {name: getattr(cohort, name) for name in ("nodes", "quorum", "honest", "colluders", "dropouts")}
    return {"sums": {"threshold": cohort.threshold, **numbers}}


def _sum_rows(sums: dict[str, int] | None) -> list[tuple[str, str]]:
    if sums is None:
        return []
    return [
        ("colluding nodes withstood", f"{sums['colluders']} of {sums['nodes']}, beside the coordinator"),
        ("nodes in a sum, at least", f"{sums['quorum']}, so {sums['honest']} that do not collude"),
        ("dropouts tolerated", f"{sums['dropouts']} in a round"),
        ("holds if", "every node has pinned the others' keys (fedpeft node roster)"),
    ]


def _rdp_epsilon(plan: PrivacyPlan) -> float | None:
    """What most other platforms' accountant (RDP of dp-accounting) would say of the same noise."""
    from fedpeft.privacy.accounting import Steps

    event = plan.event()
    if not isinstance(event, Steps) or event.noise_multiplier <= 0:
        return None
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    orders = [2 + tenth / 10 for tenth in range(80)] + [*range(10, 65), 128, 256, 512]
    step = PoissonSampledDpEvent(event.sampling_probability, GaussianDpEvent(event.noise_multiplier))
    accountant = RdpAccountant(orders).compose(SelfComposedDpEvent(step, event.repeats))
    return float(accountant.get_epsilon(plan.delta))


def _of_units(facts: dict[str, Any]) -> str:
    """Delta beside one in the number of records or persons, at which one of them could be published whole."""
    if facts["unit"] == "node":
        return ""
    shared = facts["nodes"] if facts["trust"] == "distributed" else 1
    units = facts["expected_batch_size"] / facts["sampling_probability"] * shared
    drawn = "record" if facts["drawn"] == "record" else facts["unit"]
    return f", {facts['delta'] * units:.2g} of one in the {units:,.0f} {drawn}s"


def _of_persons(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What is drawn and clipped where the unit is a person."""
    if facts["unit"] != "person":
        return []
    most = f"{facts['records_per_unit']} records of a person in a step, at most"
    if facts["drawn"] == "record":
        return [("drawn and clipped", f"single records (ELS); {most}")]
    return [("drawn and clipped", f"persons (ULS), the mean of their records' gradients; {most}")]


def _leaving(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What a node sends beside what it was asked, all of it within epsilon."""
    if facts["trust"] != "local":
        return []
    if (error := facts["loss_standard_error"]) is None:
        return [("leaves, and is covered", "the update; no loss (privacy.loss_share = 0)")]
    loss = facts["loss"]
    return [
        ("leaves, and is covered", f"the update, and a training loss a round and node, ± {error:.2g} nats"),
        ("what the loss costs", f"{math.hypot(1, loss['share']) - 1:.2%} more noise, in the figures here"),
    ]


def _band_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if facts["bands"] == 1:
        return []
    rows = [("bands b", f"{facts['bands']}: the noise of so many releases is correlated")]
    if facts["groups"] > 1:
        drawn = f"{facts['groups']}, each drawn from in one step of {facts['groups']} at rate b q"
        rows.append(("groups of units", f"{drawn} = {facts['step_rate']:.6g}"))
    return rows


def _show_none(facts: dict[str, Any]) -> None:
    typer.echo("no differential privacy: privacy.unit = 'none'")
    if facts["sums"] is not None:
        table("secure sums", ("what", "value"), _sum_rows(facts["sums"]))


def _show(facts: dict[str, Any]) -> None:
    from fedpeft.privacy.plan import AGAINST

    epsilon, rdp = facts["epsilon"], facts["epsilon_by_rdp"]
    compared = rdp and epsilon != UNBOUNDED
    whole, most = facts["noise_over_signal_whole_run"], facts["most_noise"]
    rows = [
        ("unit", f"{facts['unit']}, {ADJACENCY[facts['adjacency']]}"),
        *_of_persons(facts),
        ("trust", facts["trust"]),
        ("holds against", AGAINST[facts["trust"]]),
        ("horizon", "this run; all runs on the same records compose in each node's ledger"),
        *_sum_rows(facts["sums"]),
        ("sampling probability q", f"{facts['sampling_probability']:.6g}"),
        *_band_rows(facts),
        ("expected batch size B", facts["expected_batch_size"]),
        ("noisy releases T", f"{facts['steps']} ({facts['rounds']} rounds)"),
        ("clip C", f"{facts['clip']:g}"),
        (
            "noise multiplier z",
            f"{facts['noise_multiplier']:g}" + (", discrete" if facts["grid"] is not None else ""),
        ),
        ("epsilon", shown(epsilon, ".4g") + ("" if facts["private"] else ": the noise is reproducible")),
        ("delta", f"{facts['delta']:g}{_of_units(facts)}"),
        ("accountant", facts["accountant"]),
        *([("epsilon by RDP", f"{rdp:.4g} ({rdp / epsilon - 1:+.1%})")] if compared else []),
        *_leaving(facts),
        ("not charged", "moments of replies, and settings that were chosen by looking at the records"),
        ("values with noise", facts["values"]),
        ("noise / signal, one release", f"{facts['noise_over_signal_per_release']:.3g}"),
        ("noise / signal, whole run", f"{whole:.3g}"),
        (
            "verdict",
            f"{'within' if facts['allowed'] else 'REFUSED: above'} privacy.max_noise_to_signal = {most:g}",
        ),
    ]
    table("privacy plan", ("what", "value"), rows)
    _show_persons(facts)
    if facts["remedies"]:
        changes = [(each["change"], f"{each['whole_run']:.3g}") for each in facts["remedies"]]
        table("one change alone would give", ("change", "noise / signal"), changes)


def _show_persons(facts: dict[str, Any]) -> None:
    """Joint epsilon over several nodes, and caps where they were asked for."""
    unit, rows = facts["unit"], facts["epsilon_in_nodes"]
    if len(rows) > 1:
        lines = [(str(row["nodes"]), shown(row["epsilon"], ".4g")) for row in rows]
        table(f"a {unit} whose data are in several nodes", ("nodes", "joint epsilon"), lines)
    if not facts["caps"]:
        return
    lines = [
        (str(cap["records"]), *(f"{cap[name]:.3g}" for name in ("by_record", "by_person", "break_even")))
        for cap in facts["caps"]
    ]
    header = ("records of a person", "ELS: noise / signal", "ULS", "ULS wins below")
    table("caps at equal epsilon, persons and records a step", header, lines)
    best = min(facts["caps"], key=lambda cap: cap["by_record"])
    typer.echo(
        f"least noise: {best['records']} of a person's records a step, drawn one by one. Drawing persons "
        "wins where the mean gradient of a person is shorter than the last column, in gradients of a record "
        "(independent ones: 1 / sqrt(records))."
    )

"""``fedpeft privacy``: what a configuration's privacy plan promises, and whether it can learn at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.cli.scenario import SCENARIO, SET, scenario_config
from fedpeft.epsilons import UNBOUNDED, shown
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
    as_json: bool = JSON_OPTION,
) -> None:
    """Print unit, trust, noise, epsilon and noise over signal of a scenario; exit code 6: too much noise."""
    config = scenario_config(scenario, set_, as_json=as_json)
    if config.privacy.unit == "none":
        facts: dict[str, Any] = {"private": False, "epsilon": UNBOUNDED, "reason": "privacy.unit = 'none'"}
        facts |= _sums(config)
        emit(facts, as_json, lambda: _show_none(facts))
        return
    facts = _facts(_run_plan(config, values))
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
        "epsilon_by_rdp": _rdp_epsilon(privacy),
        "steps": privacy.steps,
        "values": plan.noisy_values,
        "nodes": nodes,
        "noise_over_signal_per_release": figures.per_release,
        "noise_over_signal_whole_run": figures.whole_run,
        "remedies": [{"change": each.change, "whole_run": each.whole_run} for each in advice],
        "most_noise": most,
        "allowed": allowed,
        "loss_standard_error": privacy.loss_error or None,
        **_sums(config),
    }


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
    return f", {facts['delta'] * units:.2g} of one in the {units:,.0f} {facts['unit']}s"


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
        ("trust", facts["trust"]),
        ("holds against", AGAINST[facts["trust"]]),
        ("horizon", "this run; all runs on the same records compose in each node's ledger"),
        *_sum_rows(facts["sums"]),
        ("sampling probability q", f"{facts['sampling_probability']:.6g}"),
        ("expected batch size B", facts["expected_batch_size"]),
        ("noisy releases T", f"{facts['steps']} ({facts['rounds']} rounds)"),
        ("clip C", f"{facts['clip']:g}"),
        ("noise multiplier z", f"{facts['noise_multiplier']:g}"),
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
    if facts["remedies"]:
        changes = [(each["change"], f"{each['whole_run']:.3g}") for each in facts["remedies"]]
        table("one change alone would give", ("change", "noise / signal"), changes)

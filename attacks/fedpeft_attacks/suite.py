"""The audit of a run: every attack on every tapped stage, with baselines, power and verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedpeft.runstore import RunStore
from fedpeft_attacks.findings import Finding, Report
from fedpeft_attacks.gathering import gather
from fedpeft_attacks.judging import find
from fedpeft_attacks.registry import attack_named, remembering
from fedpeft_attacks.reporting import assemble, write_report
from fedpeft_attacks.taps import read_taps
from fedpeft_attacks.trials import power_of, trials_of

Progress = Callable[[str], None]


def audit_run(
    run_dir: Path,
    attacks: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Attack a run's updates stage by stage and write ``report.json`` and ``report.html``.

    Whatever adapter was attached to the run's base in this process is taken off.

    Args:
        run_dir: a run directory whose config had ``audit.enabled``.
        attacks: names of attacks; default: ``audit.attacks`` of the run's config.
        out: folder of the report; default: ``RUN/audit``.
        progress: called with one line before each step.

    Raises:
        RunError: not a run directory.
        AuditError: an unknown attack, nothing tapped, or a damaged tap.
    """
    store = RunStore.open(run_dir)
    config = store.config
    solvers = {name: remembering(attack_named(name)) for name in (attacks or config.audit.attacks)}
    taps = read_taps(store)
    _say(progress, "audit: the base and what was tapped")
    evidence = gather(store, config, taps)
    _say(progress, "audit: the undefended reference")
    trials, findings = trials_of(evidence, config.adapter, taps), list[Finding]()
    for name, attack in solvers.items():
        power = power_of(attack, trials)
        for stage, group in evidence.stages.items():
            _say(progress, f"audit: {name} on {stage}")
            findings.append(find(name, attack, group, power, config.audit.threshold))
    report = assemble(store, evidence, taps, findings)
    write_report(report, out or store.path / "audit")
    return report


def _say(progress: Progress | None, line: str) -> None:
    if progress is not None:
        progress(line)

"""The audit of a run: every attack on every tapped stage, with baselines, power and verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from fedpeft.plugins import AUDIT_PARTS
from fedpeft.progress_reports import at
from fedpeft.runstore import RunStore
from fedpeft_attacks.dp_audit.report_checks import claim_checks
from fedpeft_attacks.evidence.attack_power import Trials, power_of, trials_of
from fedpeft_attacks.evidence.collect_views import Evidence, Observed, gather
from fedpeft_attacks.evidence.taps import Tap, read_taps
from fedpeft_attacks.finished_parts import FinishedParts, PartResult, joined
from fedpeft_attacks.label_inference.findings import TEXT as LABELS_TEXT
from fedpeft_attacks.label_inference.findings import label_findings
from fedpeft_attacks.memory.report_findings import TEXTS, released_findings
from fedpeft_attacks.registry import Attack, attack_named, remembering
from fedpeft_attacks.report.assemble import Delivery, Results, assemble, write_report
from fedpeft_attacks.report.recovered_text import example_of
from fedpeft_attacks.report.signing import signer_in
from fedpeft_attacks.results.evaluate_attack import Trial, find
from fedpeft_attacks.results.findings import Finding, Report
from fedpeft_attacks.update_membership.verdicts_by_stage import TEXT, membership_findings

Progress = Callable[[str], None]

MEMBERSHIP, LABELS, RELEASED, EPSILON = AUDIT_PARTS

PART = "part of the audit"
"""What the progress counts: reading what was tapped, then each attack."""


def audit(
    run_dir: Path,
    attacks: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    delivery: Delivery | None = None,
) -> Report:
    """Attack a run's updates stage by stage and write ``report.json``, ``report.html`` and ``model-card.md``.

    Whatever adapter was attached to the run's base in this process is taken off. Parts that are finished are
    kept in the run directory: the same audit of the same run goes on behind them (`finished_parts`).

    Args:
        run_dir: a run directory whose config had ``audit.enabled``.
        attacks: names of attacks, or of `AUDIT_PARTS`; default: ``audit.attacks`` of the run's config.
        out: folder of the report; default: ``RUN/audit``.
        progress: called with one line before each step.
        delivery: whether recovered text is kept and who signs; default: redacted and not signed.

    Raises:
        RunError: not a run directory.
        AuditError: an unknown attack, nothing tapped, a damaged tap, or no key to sign with.
    """
    store, delivery = RunStore.open(run_dir), delivery or Delivery()
    if delivery.sign_with is not None:
        signer_in(delivery.sign_with)
    names = tuple(attacks or store.config.audit.attacks)
    for name in names:
        if name not in AUDIT_PARTS:
            attack_named(name)
    taps = read_taps(store)
    _say(progress, "audit: the base and what was tapped")
    at(PART, 0, len(names) + 1)
    evidence = gather(store, store.config, taps)
    finished = FinishedParts.of(store, names, delivery.own_copy, evidence.base.sha256)
    suite = _Suite(store, evidence, taps, finished, progress, delivery.own_copy)
    parts: list[PartResult] = []
    for place, name in enumerate(sorted(names, key=_order)):
        at(PART, place + 1, len(names) + 1)
        parts.append(suite.part(name))
    at(PART, len(names) + 1, len(names) + 1)
    whole, texts = joined(parts), TEXTS | {MEMBERSHIP: TEXT, LABELS: LABELS_TEXT}
    results = Results(list(whole.findings), whole.checks, whole.examples, texts)
    report = assemble(store, evidence, taps, results, delivery)
    write_report(report, out or store.path / "audit", delivery.sign_with)
    return report


def update_findings(
    store: RunStore, evidence: Evidence, taps: Sequence[Tap], solvers: Mapping[str, Attack]
) -> list[Finding]:
    """Every attack on every stage of the exchange; nothing is kept beside the run.

    Args:
        store: the run.
        evidence: its views.
        taps: what they were taken from.
        solvers: attacks by name.
    """
    suite = _Suite(store, evidence, taps)
    return [f for name, attack in solvers.items() for f in suite.of_updates(name, attack).findings]


def _order(name: str) -> int:
    """Attacks on updates come first, in the order in which they were named."""
    return 1 + AUDIT_PARTS.index(name) if name in AUDIT_PARTS else 0


@dataclass(frozen=True)
class _Suite:
    """The parts of one audit, each made once."""

    store: RunStore
    evidence: Evidence
    taps: Sequence[Tap]
    finished: FinishedParts = field(default_factory=FinishedParts)
    progress: Progress | None = None
    own_copy: bool = False

    def part(self, name: str) -> PartResult:
        """An attack on updates, or one of `AUDIT_PARTS`."""
        if name not in AUDIT_PARTS:
            return self.of_updates(name, attack_named(name))
        return self.finished.part(name, partial(self._other, name))

    def _other(self, name: str) -> PartResult:
        store, threshold = self.store, self.store.config.audit.threshold
        if name == EPSILON:
            _say(self.progress, "audit: the claimed epsilon")
            return PartResult(checks=tuple(claim_checks(store, self.taps)))
        if name == RELEASED:
            return PartResult(findings=tuple(released_findings(store, threshold, self.progress)))
        attack = membership_findings if name == MEMBERSHIP else label_findings
        return PartResult(findings=tuple(attack(store, self.evidence, self.taps, self.progress)))

    def of_updates(self, name: str, attack: Attack) -> PartResult:
        """One attack on every stage of the exchange."""
        solve, stages = remembering(attack), list(self.evidence.stages.items())
        at("stage", 0, len(stages) + 1)
        power = self.finished.part(f"{name}, power", lambda: PartResult(power=power_of(attack, self._trials)))
        threshold = self.store.config.audit.threshold
        trial = Trial(name, solve, power.power, threshold, self.evidence.base.tokenizer)
        parts: list[PartResult] = []
        for place, (stage, group) in enumerate(stages):
            _say(self.progress, f"audit: {name} on {stage}")
            at("stage", place + 1, len(stages) + 1)
            parts.append(self.finished.part(f"{name} on {stage}", partial(self._stage, trial, group)))
        at("stage", len(stages) + 1, len(stages) + 1)
        return joined(parts)

    def _stage(self, trial: Trial, group: Sequence[Observed]) -> PartResult:
        finding = find(trial, group)
        example = example_of(trial.name, trial.attack, group, trial.tokenizer) if self.own_copy else None
        return PartResult(findings=(finding,), examples=() if example is None else (example,))

    @cached_property
    def _trials(self) -> Trials:
        _say(self.progress, "audit: the undefended reference")
        return trials_of(self.evidence, self.store.config.adapter, self.taps)


def _say(progress: Progress | None, line: str) -> None:
    if progress is not None:
        progress(line)

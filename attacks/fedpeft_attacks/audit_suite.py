"""The audit of a run: every attack on every tapped stage, with baselines, power and verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedpeft.plugins import AUDIT_PARTS
from fedpeft.progress_reports import at
from fedpeft.runstore import RunStore
from fedpeft_attacks.dp_audit.report_checks import claim_checks
from fedpeft_attacks.evidence.attack_power import power_of, trials_of
from fedpeft_attacks.evidence.collect_views import Evidence, gather
from fedpeft_attacks.evidence.taps import Tap, read_taps
from fedpeft_attacks.label_inference.findings import TEXT as LABELS_TEXT
from fedpeft_attacks.label_inference.findings import label_findings
from fedpeft_attacks.memory.report_findings import TEXTS, released_findings
from fedpeft_attacks.registry import Attack, attack_named, remembering
from fedpeft_attacks.report.assemble import Delivery, Results, assemble, write_report
from fedpeft_attacks.report.recovered_text import example_of
from fedpeft_attacks.report.signing import signer_in
from fedpeft_attacks.results.evaluate_attack import Trial, find
from fedpeft_attacks.results.findings import Example, Finding, Report
from fedpeft_attacks.update_membership.verdicts_by_stage import TEXT, membership_findings

Progress = Callable[[str], None]

MEMBERSHIP, LABELS, RELEASED, EPSILON = AUDIT_PARTS


def audit(
    run_dir: Path,
    attacks: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    delivery: Delivery | None = None,
) -> Report:
    """Attack a run's updates stage by stage and write ``report.json``, ``report.html`` and ``model-card.md``.

    Whatever adapter was attached to the run's base in this process is taken off.

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
    solvers = {name: attack_named(name) for name in names if name not in AUDIT_PARTS}
    taps = read_taps(store)
    _say(progress, "audit: the base and what was tapped")
    at("loading the base")
    evidence = gather(store, store.config, taps)
    findings, examples = update_findings(store, evidence, taps, solvers, (progress, delivery.own_copy))
    if MEMBERSHIP in names:
        findings += membership_findings(store, evidence, taps, progress)
    if LABELS in names:
        findings += label_findings(store, evidence, taps, progress)
    if RELEASED in names:
        findings += released_findings(store, store.config.audit.threshold, progress)
    if EPSILON in names:
        _say(progress, "audit: the claimed epsilon")
        at("auditing the claimed epsilon")
    checks = claim_checks(store, taps) if EPSILON in names else ()
    results = Results(findings, checks, examples, TEXTS | {MEMBERSHIP: TEXT, LABELS: LABELS_TEXT})
    report = assemble(store, evidence, taps, results, delivery)
    write_report(report, out or store.path / "audit", delivery.sign_with)
    return report


def update_findings(
    store: RunStore,
    evidence: Evidence,
    taps: Sequence[Tap],
    solvers: Mapping[str, Attack],
    manner: tuple[Progress | None, bool] = (None, False),
) -> tuple[list[Finding], list[Example]]:
    """Every attack on every stage of the exchange.

    Args:
        store: the run.
        evidence: its views.
        taps: what they were taken from.
        solvers: attacks by name.
        manner: what is called before each step, and whether to keep the best that each attack recovered.
    """
    progress, own_copy = manner
    _say(progress, "audit: the undefended reference")
    at("measuring the attacks' strength")
    trials, config = trials_of(evidence, store.config.adapter, taps), store.config
    findings, examples = list[Finding](), list[Example | None]()
    total = len(solvers) * len(evidence.stages)
    for name, attack in solvers.items():
        solve, tokenizer = remembering(attack), evidence.base.tokenizer
        trial = Trial(name, solve, power_of(attack, trials), config.audit.threshold, tokenizer)
        for stage, group in evidence.stages.items():
            _say(progress, f"audit: {name} on {stage}")
            at("attack on a stage", len(findings), total)
            findings.append(find(trial, group))
            examples.append(example_of(name, solve, group, tokenizer) if own_copy else None)
    at("attack on a stage", total, total)
    return findings, [example for example in examples if example is not None]


def _say(progress: Progress | None, line: str) -> None:
    if progress is not None:
        progress(line)

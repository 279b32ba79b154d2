"""The report as a whole: what was found, what is claimed, and all that is needed to check it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.config import Config, config_hash
from fedpeft.epsilons import shown, written
from fedpeft.plugins import ATTACKS, AUDIT_PARTS
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import RunStore, write_atomic
from fedpeft.runstore.overview import flat_settings
from fedpeft_attacks.evidence.collect_views import Evidence
from fedpeft_attacks.evidence.taps import Tap
from fedpeft_attacks.report.assessment import Run, dpia, run_facts, sp_800_226
from fedpeft_attacks.report.exchange_facts import envelopes_of, exchange_of
from fedpeft_attacks.report.html import render
from fedpeft_attacks.report.limits import LIMITS, not_tested
from fedpeft_attacks.report.model_card import model_card
from fedpeft_attacks.report.remedies import changes_of
from fedpeft_attacks.report.risks import risks_of, summary
from fedpeft_attacks.report.signing import SIGNATURE_FILE, sign_report, signature_of, signer_in
from fedpeft_attacks.report.summaries import overall, threats
from fedpeft_attacks.results.findings import (
    AuditedEnvelope,
    Claim,
    EpsilonCheck,
    Example,
    Finding,
    Report,
)
from fedpeft_attacks.results.verdicts import thresholds

if TYPE_CHECKING:
    from fedpeft.privacy import PrivacyPlan

_PACKAGES = ("fedpeft", "torch", "transformers", "peft", "numpy", "scipy", "dp-accounting")


@dataclass(frozen=True)
class Delivery:
    """How a report is handed over.

    Attributes:
        own_copy: keep recovered text; for the organisation whose data they are, and nobody else.
        sign_with: folder of the node or coordinator whose key signs; None: not signed.
    """

    own_copy: bool = False
    sign_with: Path | None = None


@dataclass(frozen=True)
class Results:
    """What the suite hands over.

    Attributes:
        findings: of all attacks.
        epsilon: measured lower bounds.
        examples: recovered text beside the truth; left out unless the delivery is the own copy.
        methods: what each attack does that is not in the registry, by name.
    """

    findings: Sequence[Finding]
    epsilon: Sequence[EpsilonCheck] = field(default_factory=tuple[EpsilonCheck, ...])
    examples: Sequence[Example] = field(default_factory=tuple[Example, ...])
    methods: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Audited:
    """What was audited, whoever holds it: a whole run, or one organisation's part of it.

    Attributes:
        run: what is known of it.
        base_sha256: content hash of the base.
        nodes: whose updates were attacked.
        rounds: of which rounds.
        threshold: excess of a share over its best baseline that counted as a leak.
        envelopes: files of bytes that were looked at.
        not_tested: what was not tried, in plain sentences.
        command: what repeats the audit.
    """

    run: Run
    base_sha256: str
    nodes: tuple[str, ...]
    rounds: tuple[int, ...]
    threshold: float
    envelopes: Sequence[AuditedEnvelope]
    not_tested: tuple[str, ...]
    command: str


def assemble(
    store: RunStore, evidence: Evidence, taps: Sequence[Tap], results: Results, delivery: Delivery
) -> Report:
    """Put the results of a run together with all that is needed to check them."""
    config, findings, checks = store.config, results.findings, results.epsilon
    plan = RunPlan.from_config(config, store.values)
    exchange = exchange_of(store, plan, tuple(evidence.stages))
    nodes, rounds = tuple(sorted({tap.node for tap in taps})), tuple(sorted({tap.round for tap in taps}))
    audited = Audited(
        run=run_facts(store, short_name(evidence.base.name), claim_of(plan.privacy), exchange),
        base_sha256=evidence.base.sha256,
        nodes=nodes,
        rounds=rounds,
        threshold=config.audit.threshold,
        envelopes=envelopes_of(store, taps),
        not_tested=not_tested(config, (nodes, rounds), findings, checks),
        command=_command(findings, checks, delivery),
    )
    return report_of(audited, results, delivery)


def report_of(audited: Audited, results: Results, delivery: Delivery) -> Report:
    """The report on what was audited."""
    run, findings, checks = audited.run, results.findings, results.epsilon
    config = run.config
    risks = risks_of(findings, checks, run.claim)
    changes, adversaries = changes_of(config, risks), threats(findings)
    return Report(
        run=config.run.name,
        config_hash=config_hash(config),
        base=run.base,
        base_sha256=audited.base_sha256,
        adapter=findings[0].adapter if findings else config.adapter.method,
        nodes=audited.nodes,
        rounds=audited.rounds,
        threshold=audited.threshold,
        thresholds=thresholds(audited.threshold),
        verdict=overall(findings, checks),
        summary=summary(risks, changes),
        risks=risks,
        changes=changes,
        threats=adversaries,
        claim=run.claim,
        findings=tuple(findings),
        methods=_methods(results),
        epsilon=tuple(checks),
        settings=_settings(config),
        exchange=run.exchange,
        envelopes=tuple(audited.envelopes),
        own_copy=delivery.own_copy,
        examples=tuple(results.examples) if delivery.own_copy else (),
        assessments=(dpia(run, findings, risks, changes), sp_800_226(run, adversaries, checks)),
        not_tested=audited.not_tested,
        limits=LIMITS,
        versions={name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        command=audited.command,
        signature=None if delivery.sign_with is None else signature_of(delivery.sign_with),
    )


def write_report(report: Report, folder: Path, sign_with: Path | None = None) -> None:
    """Write ``report.json``, ``report.html`` and ``model-card.md``, each atomically, and sign them.

    A signature that an older report left behind is taken away.

    Raises:
        AuditError: the folder to sign with holds no key.
    """
    signer = None if sign_with is None else signer_in(sign_with)
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    write_atomic(folder / "report.json", (report.model_dump_json(indent=2) + "\n").encode())
    write_atomic(folder / "report.html", render(report).encode())
    write_atomic(folder / "model-card.md", model_card(report).encode())
    if signer is not None:
        sign_report(folder, signer)


def _methods(results: Results) -> dict[str, str]:
    """What each attack of the findings does."""
    names = dict.fromkeys(finding.attack for finding in results.findings)
    known = {name: ATTACKS[name].text for name in names if name in ATTACKS} | dict(results.methods)
    return {name: known[name] for name in names if name in known}


_PATHS = ("base.model", "data.source", "data.test")


def _settings(config: Config) -> dict[str, Any]:
    """All settings of a run; a path to somewhere on a machine is shortened to its last part."""
    settings = flat_settings(config.model_dump(mode="json"))
    paths = {key: Path(settings[key]).name for key in _PATHS if settings[key]}
    return settings | paths


def short_name(name: str) -> str:
    """A base's name without the folders of the machine that it lies on."""
    return Path(name).name if Path(name).exists() else name


def _command(findings: Sequence[Finding], checks: Sequence[EpsilonCheck], delivery: Delivery) -> str:
    known = (*ATTACKS, *AUDIT_PARTS)
    names = [finding.attack if finding.attack in known else "released" for finding in findings]
    attacks = ",".join(dict.fromkeys([*names, *(["epsilon"] if checks else [])]))
    own_copy = " --own-copy" if delivery.own_copy else ""
    sign = " --sign-with HOME" if delivery.sign_with is not None else ""
    return f"fedpeft audit RUN --attacks {attacks}{own_copy}{sign}"


def claim_of(plan: PrivacyPlan | None) -> Claim:
    """What a run claims, in words and as its constants."""
    if plan is None or plan.reproducible:
        text = "This run claims no differential privacy."
        return Claim(unit="none", epsilon=None, delta=None, text=text, plan=None)
    epsilon = written(plan.epsilon())
    text = (
        f"This run claims differential privacy with epsilon {shown(epsilon)} at delta {plan.delta:g} for "
        f"each {plan.unit} ({plan.adjacency}); the noise is added {_ADDED[plan.trust]}."
    )
    return Claim(unit=plan.unit, epsilon=epsilon, delta=plan.delta, text=text, plan=plan.describe())


_ADDED = {
    "local": "in the node",
    "central": "by the coordinator, which sees updates without it",
    "distributed": "by all nodes together, under secure aggregation",
}


def _version(name: str) -> str:
    if name == "fedpeft":
        from fedpeft import __version__

        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

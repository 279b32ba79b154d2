"""The report as a whole: verdict in plain words, privacy claim, hashes, limits; JSON and HTML."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedpeft.config import Config, config_hash
from fedpeft.runstore import RunStore, write_atomic
from fedpeft_attacks.findings import AuditedEnvelope, Claim, Finding, Report, Verdict
from fedpeft_attacks.gathering import Evidence
from fedpeft_attacks.page import render
from fedpeft_attacks.taps import Tap

_PACKAGES = ("fedpeft", "torch", "transformers", "peft", "numpy")

LIMITS = (
    "It shows what these attacks found, not what no attack can find: a stronger one may find more.",
    "It measures which tokens occur, not their order: whether whole sentences can be rebuilt was not tried.",
    "Memorisation is not measured here: whether a secret can be drawn out of the trained adapter, or whether "
    "a person's record was part of the training, is another question with other attacks.",
    "Only the first layer that carries the adapter is read; where that is not layer 0, its inputs are known "
    "to the attack only approximately. What later layers give away was not tried.",
    "Rare tokens are judged only where another node's update was at hand to compare with: not in the mean.",
    "A malicious coordinator that sends a base or adapter of its own choice is not simulated, except in the "
    "undefended reference, whose adapter is warm as such a coordinator would send it.",
    "Only the listed nodes and rounds were audited. Updates of one node over many rounds were not combined.",
    "The attacker is granted the number of distinct tokens in each batch, which it would have to estimate.",
    "Nothing here is a proof of privacy. A proof is what differential privacy gives, within its epsilon.",
)
"""What the report does not show; printed in every report."""


def assemble(store: RunStore, evidence: Evidence, taps: Sequence[Tap], findings: Sequence[Finding]) -> Report:
    """Put the findings of a run together with all that is needed to check them."""
    config, verdict = store.config, _overall(findings)
    return Report(
        run=config.run.name,
        config_hash=config_hash(config),
        base=_short(evidence.base.name),
        base_sha256=evidence.base.sha256,
        adapter=findings[0].adapter if findings else config.adapter.method,
        exchange=tuple(evidence.stages),
        nodes=tuple(sorted({tap.node for tap in taps})),
        rounds=tuple(sorted({tap.round for tap in taps})),
        threshold=config.audit.threshold,
        verdict=verdict,
        summary=_summary(verdict, findings),
        claim=_claim(config, store.values),
        findings=tuple(findings),
        envelopes=tuple(_envelopes(store, taps)),
        limits=LIMITS,
        versions={name: _version(name) for name in _PACKAGES},
    )


def _short(name: str) -> str:
    """A base's name without the folders of the machine that it lies on."""
    return Path(name).name if Path(name).exists() else name


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.html``, each atomically."""
    write_atomic(folder / "report.json", (report.model_dump_json(indent=2) + "\n").encode())
    write_atomic(folder / "report.html", render(report).encode())


def leaving(findings: Sequence[Finding]) -> list[Finding]:
    """Findings about what leaves a node: the envelope and the aggregate."""
    return [finding for finding in findings if finding.role != "insider"]


def _overall(findings: Sequence[Finding]) -> Verdict:
    verdicts = {finding.verdict for finding in leaving(findings)}
    if "leaks" in verdicts:
        return "leaks"
    return "no leak found at this power" if verdicts - {"not applicable"} else "not applicable"


def _summary(verdict: Verdict, findings: Sequence[Finding]) -> str:
    seen = leaving(findings)
    if verdict == "not applicable":
        reason = seen[0].reason if seen else "no envelope was tapped"
        return f"These attacks have nothing to read in what leaves the nodes: {reason}. That is not a proof."
    judged = [finding for finding in seen if finding.baselines is not None]
    worst = max(judged, key=_excess)
    figures = _figures(worst)
    if verdict == "leaks":
        leak = next(finding for finding in seen if finding.verdict == "leaks")
        where = f"at {leak.stage}, {leak.reason}"
        return f"What leaves the nodes gives training text away: {where}. {_figures(leak)}"
    return f"No leak was found in what leaves the nodes. {figures} {_power_words(worst)}"


def _excess(finding: Finding) -> float:
    return (finding.value or 0.0) - (finding.baselines.best if finding.baselines else 0.0)


def _figures(finding: Finding) -> str:
    best = finding.baselines.best if finding.baselines else 0.0
    text = f"The attack {finding.attack} recovers {_percent(finding.value)} of the distinct tokens"
    text += f", where {_percent(best)} can be had without this update"
    if finding.rare is not None:
        rare, other = finding.rare.value, finding.rare.baselines.best
        text += f"; of the rare tokens {_percent(rare)} against {_percent(other)}"
    return text + "."


def _power_words(finding: Finding) -> str:
    if finding.power is None:
        return "The attack could not be tried on an undefended update, so its power is not known."
    return (
        f"Without any protection it recovers {_percent(finding.power.batch)} of the same batches and "
        f"{_percent(finding.power.record)} of a single record; from the layers that carry this adapter "
        f"{_percent(finding.power.layer)} of a single record."
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _claim(config: Config, values: int) -> Claim:
    from fedpeft.exchange import noisy_values
    from fedpeft.privacy import plan_from_config

    plan = plan_from_config(config, noisy_values(config.exchange, values))
    if plan is None or plan.reproducible:
        text = "This run claims no differential privacy."
        return Claim(unit="none", epsilon=None, delta=None, text=text, plan=None)
    epsilon = plan.epsilon()
    text = (
        f"This run claims differential privacy with epsilon {epsilon:.3g} at delta {plan.delta:g} for each "
        f"{plan.unit} ({plan.adjacency}); the noise is added {_ADDED[plan.trust]}."
    )
    return Claim(unit=plan.unit, epsilon=epsilon, delta=plan.delta, text=text, plan=plan.describe())


_ADDED = {
    "local": "in the node",
    "central": "by the coordinator, which sees updates without it",
    "distributed": "by all nodes together, under secure aggregation",
}


def _envelopes(store: RunStore, taps: Sequence[Tap]) -> list[AuditedEnvelope]:
    """Files of bytes of the audited rounds: those of the audited nodes and the coordinator's broadcasts."""
    found: list[AuditedEnvelope] = []
    for number in sorted({tap.round for tap in taps}):
        names = [tap.node for tap in taps if tap.round == number] + ["broadcast"]
        for path in (store.path / "updates" / f"r{number:02d}" / f"{name}.fpd" for name in names):
            if path.is_file():
                data, file = path.read_bytes(), path.relative_to(store.path).as_posix()
                found.append(
                    AuditedEnvelope(file=file, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
                )
    return found


def _version(name: str) -> str:
    if name == "fedpeft":
        from fedpeft import __version__

        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

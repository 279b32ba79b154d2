"""Findings on the released adapter: memorisation and membership, as an outsider can test them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedpeft.runstore import RunStore
from fedpeft_attacks.memory import Effort, MemoryFinding, memory_findings, released
from fedpeft_attacks.results.findings import Finding
from fedpeft_attacks.results.measures import Baselines, Measure, Unit
from fedpeft_attacks.results.verdicts import Subject, finding_of

STAGE = "released"

TEXTS: dict[str, str] = {
    "canary-exposure": "Canary exposure (Carlini et al. 2019). Made-up secrets were put among the records; "
    "how far up does the adapter rank them among all of their kind, against those that a coin left out?",
    "prompt-extraction": "Extraction by prompting (Carlini et al. 2021). The adapter is given what stands "
    "before a secret and writes on; does the secret come out, and does it for people it was not trained on?",
    "membership": "Membership inference (Yeom et al. 2018; Carlini et al. 2022). Can one tell records that "
    "were trained on from others, by their loss, alone or beside that of the base?",
}
"""What each attack does, for the report."""

_UNITS: Mapping[str, Unit] = {"area": "auc", "bits": "bits", "share": "share"}


def released_findings(
    store: RunStore,
    threshold: float,
    progress: Callable[[str], None] | None = None,
    effort: Effort | None = None,
) -> list[Finding]:
    """Attack the released adapter of a finished run; none where the run has none.

    Args:
        store: the run.
        threshold: on a share; `verdicts.thresholds` says what it means in other units.
        progress: called with one line before each attack.
        effort: how much is tried.
    """
    if not (store.path / "state" / "final.npz").is_file():
        return []
    attached = released(store)
    findings = memory_findings(store, attached, effort, progress)
    adapter = attached.method.name
    return [
        _finding(name, [f for f in findings if f.attack == name], adapter, threshold)
        for name in dict.fromkeys(finding.attack for finding in findings)
    ]


def _finding(name: str, findings: list[MemoryFinding], adapter: str, threshold: float) -> Finding:
    kind = "membership" if name == "membership" else "memorisation"
    subject = Subject(name, kind, STAGE, "outsider", adapter)
    return finding_of(subject, [_measure(finding) for finding in findings], threshold)


def _measure(finding: MemoryFinding) -> Measure:
    baselines = Baselines(chance=finding.chance, prior=finding.base, control=finding.held_out)
    return Measure(
        name=finding.name,
        unit=_UNITS[finding.unit],
        value=finding.value,
        interval=finding.interval,
        baselines=baselines,
        count=finding.count,
    )

"""The verdict in plain words: of the run, and of each adversary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from fedpeft_attacks.report.wording import WHO
from fedpeft_attacks.results.findings import EpsilonCheck, Finding, Threat
from fedpeft_attacks.results.measures import (
    MEMBERS,
    RARE,
    SECRETS,
    SEQUENCES,
    TOKENS,
    Measure,
    WorkDone,
    written,
)
from fedpeft_attacks.results.verdicts import SCALE
from fedpeft_attacks.results.words import (
    LEAKS,
    NOT_COVERED,
    NOT_TESTED,
    SILENT,
    UNFINISHED,
    Verdict,
    verdict_words,
    worst,
)
from fedpeft_attacks.views import Role

_COUNTED = {
    TOKENS: "the distinct tokens",
    RARE: "the rare tokens",
    SEQUENCES: "the records word for word",
    SECRETS: "the personal data",
    MEMBERS: "the members at 1 % false alarms",
}


def leaving(findings: Sequence[Finding]) -> list[Finding]:
    """Findings about what leaves a node: all but those of an insider."""
    return [finding for finding in findings if finding.role != "insider"]


def overall(findings: Sequence[Finding], checks: Sequence[EpsilonCheck]) -> Verdict:
    """The verdict of the run: the worst of what was attacked on its way out, and of the claimed epsilon."""
    broken = [check.verdict for check in checks if check.verdict == LEAKS]
    return worst([*broken, *(finding.verdict for finding in leaving(findings))])


def work_in_words(done: WorkDone) -> str:
    """What a search did, and what ended it, as one clause.

    >>> work_in_words(WorkDone(views=4, steps=90, allowed=30, cut=2, stopped=0))
    '90 steps in 4 views, at most 30 in each: 2 cut by this budget, 2 searched to the end'
    """
    views = f"{done.views} view{'' if done.views == 1 else 's'}"
    if done.allowed is None and not done.stopped:
        return f"{done.steps} steps in {views}, to the end"
    most = "" if done.allowed is None else f", at most {done.allowed} in each"
    ends = {"cut by this budget": done.cut, "ended by the safety stop": done.stopped}
    ends["searched to the end"] = done.views - done.cut - done.stopped
    endings = ", ".join(f"{count} {how}" for how, count in ends.items() if count)
    return f"{done.steps} steps in {views}{most}: {endings}"


def threats(findings: Sequence[Finding]) -> tuple[Threat, ...]:
    """One row per adversary, those that nobody simulated included."""
    return tuple(
        _threat(role, [finding for finding in findings if finding.role == role]) for role in get_args(Role)
    )


def figures(finding: Finding) -> str:
    """What an attack recovers, beside its best baseline, as one sentence."""
    first = finding.headline
    if first is None:
        return f"The attack {finding.attack} does not apply: {finding.reason}."
    text = f"The attack {finding.attack} {_recovers(first)}"
    if (rare := finding.measure(RARE)) is not None:
        text += f"; of the rare tokens {written(rare.value)} against {written(rare.baselines.best)}"
    return text + "."


def strength_words(finding: Finding) -> str:
    """What the same attack recovers with all protections off, as one sentence."""
    power = finding.power
    if power is None:
        return "The attack was not tried with all protections off, so its strength is not known."
    shares = ", ".join(f"{written(value)} of {name}" for name, value in power.shares.items())
    return f"With all protections off ({power.text}) it recovers {shares}."


def epsilon_words(checks: Sequence[EpsilonCheck]) -> str:
    """The largest measured lower bound beside the claim, and what contradicts it, as one or two sentences."""
    if not checks:
        return "No lower bound of epsilon was measured."
    best = max(checks, key=lambda check: check.lower or 0.0)
    claimed = "no epsilon is claimed" if best.claimed is None else f"{best.claimed:.2f} is claimed"
    confidence = f"{100 * best.confidence:.0f} % confidence"
    text = f"Epsilon is at least {best.lower or 0.0:.2f} ({best.method}, {confidence}); {claimed}."
    broken = [check.method for check in checks if check.verdict == LEAKS]
    return f"{text} The claim is contradicted by: {', '.join(broken)}." if broken else text


def _ended(findings: Sequence[Finding]) -> str:
    """Which attacks did not finish, and why."""
    return "; ".join(f"{finding.attack} at {finding.stage}, {finding.reason}" for finding in findings)


def _recovers(measure: Measure) -> str:
    value, best = written(measure.value, measure.unit), written(measure.baselines.best, measure.unit)
    if measure.unit == "share":
        counted = _COUNTED.get(measure.name, measure.name)
        return f"recovers {value} of {counted}; guessing without the update gives {best}"
    return f"reaches {value} ({measure.name}); without the update it reaches {best}"


def _threat(role: Role, findings: Sequence[Finding]) -> Threat:
    judged = [finding for finding in findings if finding.headline is not None]
    leak = max((finding for finding in judged if finding.verdict == LEAKS), key=closeness, default=None)
    if not findings:
        reason = "not simulated in this audit"
    elif leak is not None:
        reason = f"At {leak.stage}: {figures(leak)}"
    elif open_ := [finding for finding in judged if finding.verdict == UNFINISHED]:
        reason = f"Not finished: {_ended(open_)}"
    elif uncovered := [finding for finding in findings if finding.verdict in (NOT_COVERED, NOT_TESTED)]:
        first = min(uncovered, key=lambda finding: finding.verdict != NOT_COVERED)
        reason = f"{first.verdict.capitalize()}: {first.reason}"
    else:
        reason = figures(max(judged, key=closeness)) if judged else findings[0].reason
    verdict = worst(finding.verdict for finding in findings)
    return Threat(
        role=role,
        who=WHO[role],
        sees=tuple(dict.fromkeys(finding.stage for finding in findings)),
        attacks=tuple(dict.fromkeys(finding.attack for finding in findings)),
        verdict=verdict,
        label=verdict_words(verdict, strength_at(findings)),
        reason=reason,
    )


def strength_at(findings: Sequence[Finding]) -> float | None:
    """How strong the silent attacks are: of each kind at each stage the strongest, and of these the least.

    None where none was silent, or that of any kind at any stage is not known.
    """
    strongest = dict[tuple[str, str], float]()
    for finding in findings:
        if finding.verdict == SILENT:
            key, share = (finding.kind, finding.stage), -1.0 if finding.strength is None else finding.strength
            strongest[key] = max(strongest.get(key, -1.0), share)
    least = min(strongest.values(), default=-1.0)
    return None if least < 0 else least


def closeness(finding: Finding) -> float:
    """How near a finding comes to a leak, on the scale of a share."""
    head = finding.headline
    return -1.0 if head is None else head.excess / (SCALE[head.unit] or 1.0)

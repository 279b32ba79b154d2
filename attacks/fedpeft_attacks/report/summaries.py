"""The verdict in plain words: of the run, and of each adversary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from fedpeft_attacks.report.wording import REMEDY, WHO, role_in_words
from fedpeft_attacks.results.findings import EpsilonCheck, Finding, Threat, Verdict
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
from fedpeft_attacks.results.verdicts import LEAKS, NOT_APPLICABLE, NOT_COVERED, SCALE, SILENT, UNFINISHED
from fedpeft_attacks.views import Role

_COUNTED = {
    TOKENS: "the distinct tokens",
    RARE: "the rare tokens",
    SEQUENCES: "the records word for word",
    SECRETS: "the personal data",
    MEMBERS: "the members at 1 % false alarms",
}
_HEADS: Mapping[Verdict, str] = {
    "leaks": "Leak detected",
    "no leak detected": "No leak detected",
    "not finished": "The audit is not finished",
    "not covered": "The audit does not cover all of it",
    "not applicable": "These attacks do not apply",
}


def leaving(findings: Sequence[Finding]) -> list[Finding]:
    """Findings about what leaves a node: all but those of an insider."""
    return [finding for finding in findings if finding.role != "insider"]


def overall(findings: Sequence[Finding], checks: Sequence[EpsilonCheck]) -> Verdict:
    """The verdict of the run: a leak in what leaves the nodes, or an epsilon that is larger than claimed.

    Without one, an attack that did not finish leaves the run not finished, and one that does not cover the
    adapter leaves it not covered: nobody knows what they would find.
    """
    if any(check.verdict == LEAKS for check in checks):
        return LEAKS
    return _worst([finding.verdict for finding in leaving(findings)])


def verdict_head(findings: Sequence[Finding], checks: Sequence[EpsilonCheck]) -> str:
    """The verdict of the run in a few words; a leak of membership alone is called by its name."""
    loud = [finding for finding in leaving(findings) if finding.verdict == LEAKS]
    if loud and not any(check.verdict == LEAKS for check in checks) and loud == _of_updates(loud):
        return "Leaks membership"
    return _HEADS[overall(findings, checks)]


def summary(findings: Sequence[Finding], checks: Sequence[EpsilonCheck]) -> str:
    """What was found of what leaves the nodes, and what contradicts the claim, in a few plain sentences."""
    broken = [check for check in checks if check.verdict == LEAKS]
    claim = f"The privacy claim does not hold. {epsilon_words(broken)} " if broken else ""
    return claim + _in_sentences(leaving(findings))


def _in_sentences(
    seen: Sequence[Finding], silence: str = "No leak was detected in what leaves the nodes."
) -> str:
    judged = [finding for finding in seen if finding.headline is not None]
    loud = [finding for finding in judged if finding.verdict == LEAKS]
    if members := _of_updates(loud):
        rest = [finding for finding in seen if finding.attack != members[0].attack]
        return " ".join([_membership(members), *([_in_sentences(rest, _QUIET)] if rest else [])])
    if (uncovered := [finding for finding in seen if finding.verdict == NOT_COVERED]) and not loud:
        names = ", ".join(dict.fromkeys(finding.attack for finding in uncovered))
        return (
            f"The audit does not cover all of it: {uncovered[0].reason}. Nothing can be said of what "
            f"these attacks would find: {names}."
        )
    if not judged:
        reason = seen[0].reason if seen else "no envelope was tapped"
        return f"These attacks have nothing to read in what leaves the nodes: {reason}. That is not a proof."
    telling = [finding for finding in judged if finding.power is not None]
    worst = max(loud or telling or judged, key=_closeness)
    if open_ := [finding for finding in judged if finding.verdict == UNFINISHED and not loud]:
        return f"The audit is not finished: {_ended(open_)}. Nothing can be said of what it would have found."
    if not loud:
        return f"{silence} {figures(worst)} {strength(worst)}"
    readers = ", ".join(dict.fromkeys(role_in_words(finding.role) for finding in loud))
    return (
        f"What leaves the nodes reveals training data to: {readers}. "
        f"Most is revealed at {worst.stage}: {worst.reason}. {figures(worst)}"
    )


def _of_updates(findings: Sequence[Finding]) -> list[Finding]:
    """Findings on membership that were made on updates, not on the released adapter."""
    return [finding for finding in findings if finding.kind == "membership" and finding.role != "outsider"]


def _membership(findings: Sequence[Finding]) -> str:
    """Who can tell a record's use from what, how well, and what is known to limit it."""
    seen = "; ".join(map(_by_whom, findings))
    return (
        "What leaves the nodes leaks membership: whoever holds a record, and the updates, can tell whether "
        f"it was trained on, more often than by guessing. {seen[:1].upper()}{seen[1:]}. {REMEDY}"
    )


def _by_whom(finding: Finding) -> str:
    """Who tells members from what, and how well, as one clause."""
    who = f"{role_in_words(finding.role)}, from {_FROM.get(finding.stage, finding.stage)}"
    return f"{who}: {', '.join(map(_beside_chance, finding.measures[:2]))}"


def _beside_chance(measure: Measure) -> str:
    unit, baselines = measure.unit, measure.baselines
    beside = "" if baselines.control is None else f", {written(baselines.control, unit)} with other data"
    return (
        f"{measure.name} {written(measure.value, unit)} (guessing {written(baselines.chance, unit)}{beside})"
    )


_FROM = {"envelope": "an envelope", "aggregate": "the mean of all nodes"}
_QUIET = "The other attacks did not exceed their baselines by enough to count."


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


def strength(finding: Finding) -> str:
    """What the same attack recovers with all protections off, as one sentence."""
    power = finding.power
    if power is None:
        return "The attack could not be tried with all protections off, so its strength is not known."
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
    leak = max((finding for finding in judged if finding.verdict == LEAKS), key=_closeness, default=None)
    if not findings:
        reason = "not simulated in this audit"
    elif leak is not None:
        reason = f"At {leak.stage}: {leak.reason}. {figures(leak)}"
    elif open_ := [finding for finding in judged if finding.verdict == UNFINISHED]:
        reason = f"Not finished: {_ended(open_)}"
    elif uncovered := [finding for finding in findings if finding.verdict == NOT_COVERED]:
        reason = f"Not covered: {uncovered[0].reason}"
    else:
        reason = figures(max(judged, key=_closeness)) if judged else findings[0].reason
    return Threat(
        role=role,
        who=WHO[role],
        sees=tuple(dict.fromkeys(finding.stage for finding in findings)),
        attacks=tuple(dict.fromkeys(finding.attack for finding in findings)),
        verdict=_worst([finding.verdict for finding in findings]) if findings else None,
        reason=reason,
    )


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    if LEAKS in verdicts:
        return LEAKS
    if UNFINISHED in verdicts:
        return UNFINISHED
    if NOT_COVERED in verdicts:
        return NOT_COVERED
    return SILENT if SILENT in verdicts else NOT_APPLICABLE


def _closeness(finding: Finding) -> float:
    """How near a finding comes to a leak, on the scale of a share."""
    head = finding.headline
    return -1.0 if head is None else head.excess / (SCALE[head.unit] or 1.0)

"""The questions of the first page: what was found at each place, and the worst of it in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedpeft.epsilons import shown
from fedpeft_attacks.report.summaries import closeness, epsilon_words, figures, leaving, strength_words
from fedpeft_attacks.report.wording import PLACES, role_in_words
from fedpeft_attacks.results.assessments import RiskName
from fedpeft_attacks.results.findings import (
    Change,
    Claim,
    EpsilonCheck,
    Finding,
    Kind,
    Risk,
    RiskPart,
)
from fedpeft_attacks.results.measures import Measure, written
from fedpeft_attacks.results.words import LEAKS, NOT_TESTED, SILENT, Verdict, verdict_words, worst

QUESTIONS: Mapping[RiskName, str] = {
    "membership": "Could somebody tell that a person's record was used?",
    "text": "Could text of the records be read?",
    "labels": "Could their labels be told, or how often each occurs?",
    "memory": "Does the finished adapter remember personal data?",
    "epsilon": "Does the claimed epsilon hold?",
}
_KINDS: Mapping[Kind, RiskName] = {
    "membership": "membership",
    "inversion": "text",
    "property": "labels",
    "memorisation": "memory",
}
_PLACES: Mapping[RiskName, tuple[str, ...]] = {
    "membership": ("envelope", "aggregate", "released"),
    "text": ("envelope", "aggregate"),
    "labels": ("envelope", "aggregate"),
    "memory": ("released",),
}
"""Where a risk has to be tested before anybody may call it not detected."""
_LEAKING: Mapping[RiskName, str] = {
    "membership": "Yes: whoever holds a record and {} can tell that it was used, better than by guessing",
    "text": "Yes: more of what the records say can be read from {} than guessing gives",
    "labels": "Yes: {} shows more of the labels behind it than guessing gives",
    "memory": "Yes: {} gives away more of the records that it was trained on than guessing does",
    "epsilon": "No: what was measured contradicts {}",
}
_QUIET: Mapping[RiskName, str] = {
    "membership": "The attacks told records that were used from others no better than guessing does, from {}",
    "text": "The attacks read no more from {} than guessing gives",
    "labels": "The attacks told labels, and how often each occurs, no better than guessing does, from {}",
    "memory": "Asked in the ways that were tried, {} gave away no more than guessing does",
    "epsilon": "What was measured does not contradict {}, which proves nothing: the proof has to",
}
_NOUNS: Mapping[RiskName, str] = {
    "membership": "membership",
    "text": "text",
    "labels": "labels",
    "memory": "what the adapter remembers",
    "epsilon": "more than the claimed epsilon",
}


def risks_of(findings: Sequence[Finding], checks: Sequence[EpsilonCheck], claim: Claim) -> tuple[Risk, ...]:
    """All of them, in the order of `QUESTIONS`; the verdict of each is the worst of its places."""
    seen = leaving(findings)
    parts = {
        name: _parts(name, [finding for finding in seen if _KINDS[finding.kind] == name]) for name in _PLACES
    }
    parts["epsilon"] = [_epsilon(checks, claim)]
    return tuple(_risk(name, parts[name]) for name in QUESTIONS)


def headline(verdict: Verdict, risks: Sequence[Risk]) -> str:
    """The verdict of the run in a few words: what leaks by name, or what keeps the audit from saying so."""
    if verdict == LEAKS:
        return "Leaks " + _listed([_NOUNS[risk.name] for risk in risks if risk.verdict == LEAKS])
    words = verdict_words(verdict, _least([part for risk in risks for part in risk.parts]))
    return words[:1].upper() + words[1:]


def summary(risks: Sequence[Risk], changes: Sequence[Change]) -> str:
    """All answers, with the figures of what leaks, and what to change, as a few plain sentences."""
    sentences = list[str]()
    for risk in risks:
        leaking = [f"From {part.place}: {part.text}" for part in risk.parts if part.verdict == LEAKS]
        sentences += [f"{risk.question} {risk.label}.", risk.answer, *leaking]
    if changes:
        sentences.append("What to change, the most effective first:")
        sentences += [f"{change.setting}: {change.effect}." for change in changes]
    return " ".join(sentences)


def _risk(name: RiskName, parts: Sequence[RiskPart]) -> Risk:
    verdict = worst(part.verdict for part in parts)
    deciding = [part for part in parts if part.verdict == verdict]
    return Risk(
        name=name,
        question=QUESTIONS[name],
        verdict=verdict,
        label=_label(verdict, deciding, [part for part in parts if part not in deciding]),
        answer=_answer(name, verdict, deciding),
        parts=tuple(parts),
    )


def _label(verdict: Verdict, deciding: Sequence[RiskPart], others: Sequence[RiskPart]) -> str:
    """The verdict; where it does not hold everywhere, for which places it does, and that of the others."""
    words = verdict_words(verdict, _least(deciding))
    if not others:
        return words
    rest = worst(part.verdict for part in others)
    least = _least([part for part in others if part.verdict == rest])
    return f"{words}: {_listed([part.place for part in deciding])}; elsewhere {verdict_words(rest, least)}"


def _answer(name: RiskName, verdict: Verdict, deciding: Sequence[RiskPart]) -> str:
    names = [part.place for part in deciding]
    if verdict in (LEAKS, SILENT):
        return (_LEAKING if verdict == LEAKS else _QUIET)[name].format(_listed(names, "or")) + "."
    reasons = "; ".join(dict.fromkeys(part.text.rstrip(".") for part in deciding))
    if name == "epsilon":
        return f"{reasons}."
    return f"Not known for {_listed(names)}: {reasons}."


def _least(parts: Sequence[RiskPart]) -> float | None:
    """The strength that all silent parts have at least; None where that of any is not known."""
    strengths = [part.strength for part in parts if part.verdict == SILENT]
    known = [strength for strength in strengths if strength is not None]
    return min(known) if known and len(known) == len(strengths) else None


def _parts(name: RiskName, findings: Sequence[Finding]) -> list[RiskPart]:
    stages = dict.fromkeys([*_PLACES[name], *(finding.stage for finding in findings)])
    return [_part(stage, [finding for finding in findings if finding.stage == stage]) for stage in stages]


def _part(stage: str, findings: Sequence[Finding]) -> RiskPart:
    verdict = worst(finding.verdict for finding in findings)
    deciding = [finding for finding in findings if finding.verdict == verdict]
    strength: float | None = None
    if verdict == SILENT:
        first = max(deciding, key=lambda finding: (finding.strength or 0.0, closeness(finding)))
        strength, text = first.strength, f"{figures(first)} {strength_words(first)}"
    elif verdict == LEAKS:
        text = _leak(deciding)
    else:
        text = _reasons(deciding or findings)
    label = verdict_words(verdict, strength)
    place = PLACES.get(stage, stage)
    return RiskPart(place=place, verdict=verdict, strength=strength, label=label, text=text)


def _leak(findings: Sequence[Finding]) -> str:
    """Who succeeds, how well, and against what guessing gives."""
    first = max(findings, key=closeness)
    readers = _listed(list(dict.fromkeys(role_in_words(finding.role) for finding in findings)))
    seen = ", ".join(map(_beside_guessing, first.measures[:2]))
    return f"Read by: {readers}. The attack {first.attack} reaches: {seen}."


def _beside_guessing(measure: Measure) -> str:
    unit, baselines = measure.unit, measure.baselines
    prior = "" if baselines.prior is None else f", {written(baselines.prior, unit)} by the base alone"
    beside = "" if baselines.control is None else f", {written(baselines.control, unit)} with other data"
    return (
        f"{measure.name} {written(measure.value, unit)} "
        f"(guessing {written(baselines.chance, unit)}{prior}{beside})"
    )


def _reasons(findings: Sequence[Finding]) -> str:
    """Why there is no verdict, with the attacks that each reason is about."""
    reasons = dict[str, list[str]]()
    for finding in findings:
        reasons.setdefault(finding.reason, []).append(finding.attack)
    words = [f"{reason} ({_listed(attacks)})" for reason, attacks in reasons.items()]
    return "; ".join(words) or "no attack of this kind was run on it"


def _epsilon(checks: Sequence[EpsilonCheck], claim: Claim) -> RiskPart:
    """The claim as the only place of its risk."""
    if claim.epsilon is None:
        place, verdict, text = "no claim", NOT_TESTED, "The run claims no epsilon: nothing is proved"
    elif not checks:
        place, verdict, text = _claimed(claim), NOT_TESTED, f"{claim.text} No lower bound was measured"
    else:
        place, text = _claimed(claim), f"{epsilon_words(checks)}{_faults(checks)}"
        verdict = worst(check.verdict for check in checks)
    strength = _caught(checks) if verdict == SILENT else None
    label = verdict_words(verdict, strength)
    return RiskPart(place=place, verdict=verdict, strength=strength, label=label, text=text)


def _claimed(claim: Claim) -> str:
    return f"the claim of epsilon {shown(claim.epsilon)}"


def _best(checks: Sequence[EpsilonCheck]) -> tuple[float, str] | None:
    """The largest share of runs in which a check would catch its fault, with the fault."""
    powers = [(share, fault) for check in checks for fault, share in check.power.items() if share is not None]
    return max(powers, default=None)


def _caught(checks: Sequence[EpsilonCheck]) -> float | None:
    return None if (best := _best(checks)) is None else best[0]


def _faults(checks: Sequence[EpsilonCheck]) -> str:
    """What the strongest check would have caught, as a sentence; empty where that is not known."""
    if (best := _best(checks)) is None:
        return ""
    return f" The strongest check would catch a fault ({best[1]}) in {written(best[0])} of runs."


def _listed(words: Sequence[str], last: str = "and") -> str:
    """Words as a sentence lists them.

    >>> _listed(["an envelope", "the mean", "the adapter"])
    'an envelope, the mean and the adapter'
    """
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)

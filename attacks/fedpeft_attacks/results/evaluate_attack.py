"""From views to findings: run an attack on all views of a stage, compare, and judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.progress_reports import each
from fedpeft_attacks.evidence.collect_views import Observed
from fedpeft_attacks.registry import Solver
from fedpeft_attacks.results.findings import Finding, ViewScore
from fedpeft_attacks.results.measures import RARE, Strength
from fedpeft_attacks.results.record_scores import record_measures
from fedpeft_attacks.results.token_scores import Control, Score, measure, recall, score, verdict_of
from fedpeft_attacks.results.verdicts import Subject, finding_of, is_leak, with_unread
from fedpeft_attacks.results.words import LEAKS, NOT_COVERED, NOT_TESTED, SILENT, UNFINISHED
from fedpeft_attacks.views import Guess, NotApplicable, NotCovered
from fedpeft_attacks.work import worked

Place = tuple[str, int]


@dataclass(frozen=True)
class Trial:
    """An attack that is tried on every stage.

    Attributes:
        name: as in the registry.
        attack: the attack.
        power: what it reads from the undefended reference; None: not tried there.
        threshold: excess over the best baseline that counts as a leak.
        tokenizer: of the base.
    """

    name: str
    attack: Solver
    power: Strength | None
    threshold: float
    tokenizer: Any


def find(trial: Trial, group: Sequence[Observed]) -> Finding:
    """One attack at one stage, over all nodes and rounds.

    Where it writes whole records these are judged first, then its tokens. What it read may show a leak though
    the safety stop ended it; what it did not read shows nothing then.
    """
    name, attack, threshold = trial.name, trial.attack, trial.threshold
    view = group[0].view
    subject = Subject(name, "inversion", view.stage, view.role, view.adapter)
    answers = {(seen.node, seen.round): attack(seen.view) for seen in each(group, "view")}
    guesses = {place: answer for place, answer in answers.items() if isinstance(answer, Guess)}
    unread = view.knowledge.unread
    if not guesses:
        return _uncovered(_without_guess(subject, list(answers.values()), threshold), unread)
    read = [observed for observed in group if (observed.node, observed.round) in guesses]
    scores = [_score(observed, read, guesses) for observed in read]
    written = sorted(
        record_measures(read, guesses, trial.tokenizer), key=lambda observed: not is_leak(observed, threshold)
    )  # what leaks is the headline
    figures = measure([part.all for part in scores]), measure([part.rare for part in scores], RARE)
    measures = [*written, *(figure for figure in figures if figure is not None)]
    finding = finding_of(subject, measures, threshold, trial.power)
    details = _details(read, scores, guesses, threshold)
    if written and finding.verdict == LEAKS:
        details |= {"verdict": finding.verdict, "reason": finding.reason}
    finding = finding.model_copy(update=details)
    reason = _unfinished(finding)
    finding = finding.model_copy(update={"verdict": UNFINISHED, "reason": reason}) if reason else finding
    return _uncovered(finding, unread)


def _uncovered(finding: Finding, unread: str) -> Finding:
    return finding.model_copy(update=with_unread(finding.verdict, finding.reason, unread))


def _without_guess(subject: Subject, answers: Sequence[Guess | NotApplicable], threshold: float) -> Finding:
    """A finding where no view could be attacked; what is not covered outweighs what does not apply."""
    reasons = [answer for answer in answers if isinstance(answer, NotApplicable)]
    uncovered = [answer for answer in reasons if isinstance(answer, NotCovered)]
    finding = finding_of(subject, (), threshold, reason=(uncovered or reasons)[0].reason)
    return finding.model_copy(update={"verdict": NOT_COVERED}) if uncovered else finding


def _unfinished(finding: Finding) -> str:
    """Why the silence of a finding says nothing; empty where it does."""
    if finding.verdict not in (SILENT, NOT_TESTED):
        return ""
    if finding.work is not None and finding.work.stopped:
        return f"the safety stop ended {finding.work.stopped} of {finding.work.views} searches"
    if finding.power is not None and not finding.power.is_finished:
        return "the safety stop ended the trials of its power"
    return ""


def _details(
    read: Sequence[Observed], scores: Sequence[Score], guesses: Mapping[Place, Guess], threshold: float
) -> dict[str, object]:
    """What only token attacks have: precision, a row per view, a verdict that puts rare tokens first."""
    claimed = sum(part.claimed for part in scores)
    verdict, reason = verdict_of(scores, threshold)
    rows = zip(read, scores, strict=True)
    return {
        "precision": sum(part.claimed_hits for part in scores) / claimed if claimed else None,
        "verdict": verdict,
        "reason": reason,
        "work": worked([guess.work for guess in guesses.values()]),
        "note": "; ".join(dict.fromkeys(guess.note for guess in guesses.values() if guess.note)) or None,
        "views": tuple(
            _row(observed, part, guesses[observed.node, observed.round]) for observed, part in rows
        ),
    }


def _score(observed: Observed, group: Sequence[Observed], guesses: Mapping[Place, Guess]) -> Score:
    """Compare with the truth; the control is the same attack on the next other node of the same round."""
    others = sorted(
        (x for x in group if x.round == observed.round and x.node != observed.node), key=lambda x: x.node
    )
    later = [other for other in others if other.node > observed.node] + others
    control = Control(guesses[later[0].node, observed.round], frozenset(later[0].truth)) if later else None
    known = observed.view.knowledge
    return score(guesses[observed.node, observed.round], observed.truth, known.prior, known.special, control)


def _row(observed: Observed, part: Score, guess: Guess) -> ViewScore:
    return ViewScore(
        node=observed.node,
        round=observed.round,
        tokens=part.all.tokens,
        recall=recall([part.all]) or 0.0,
        precision=part.claimed_hits / part.claimed if part.claimed else None,
        rare_tokens=part.rare.tokens,
        rare_recall=recall([part.rare]),
        method=guess.method,
    )

"""The quick profile: attack one envelope in the node, on the very bytes, before they leave.

It runs the token attacks of the registry on what a coordinator would decode. Their work depends on the update
alone; a safety stop of seconds ends an attack that hangs, and what it ends is not finished. The control is
the node's own other records: a guess that hits them as well was not read from this update.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedpeft.plugins import ATTACKS
from fedpeft_attacks.results.token_scores import Control, Score, recall, score, verdict_of
from fedpeft_attacks.results.verdicts import with_unread
from fedpeft_attacks.results.words import LEAKS, NOT_APPLICABLE, NOT_COVERED, UNFINISHED
from fedpeft_attacks.views import Guess, NotCovered, View
from fedpeft_attacks.work import Work

QUICK = ("span", "sparse-recovery")
"""The attacks of the profile, the cheapest first."""


@dataclass(frozen=True)
class QuickFinding:
    """One attack on one envelope; shares only, no token.

    Attributes:
        attack: its name.
        verdict: as in the report.
        reason: why, in one clause.
        tokens: distinct tokens of the records behind the update.
        recall: share of them among as many guesses; None where nothing was read.
        baseline: the best of chance, language prior and the node's other records.
        rare_recall: the same of tokens that the base seldom writes.
        chance: share that guesses at random hit; None where nothing was read.
        prior: share that the base's commonest tokens hit.
        control: share that the same guess hits of the node's other records.
        rare_tokens: distinct ones of those that the base seldom writes.
        rare_control: the control of these.
        steps: of its search, the same on every machine.
        seconds: of CPU that it took here; nothing depends on them.
    """

    attack: str
    verdict: str
    reason: str
    tokens: int
    recall: float | None = None
    baseline: float | None = None
    rare_recall: float | None = None
    chance: float | None = None
    prior: float | None = None
    control: float | None = None
    rare_tokens: int = 0
    rare_control: float | None = None
    steps: int = 0
    seconds: float = 0.0

    @property
    def leaks(self) -> bool:
        """Whether tokens are recovered beyond every baseline."""
        return self.verdict == LEAKS

    @property
    def is_finished(self) -> bool:
        """Whether its silence says anything."""
        return self.verdict != UNFINISHED

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def examine(
    view: View, truth: Collection[int], others: Collection[int], seconds: float, threshold: float
) -> list[QuickFinding]:
    """Attack an envelope before it is sent.

    Args:
        view: what the coordinator will hold.
        truth: distinct tokens of the records behind it, without special ones.
        others: distinct tokens of other records of this node; the control.
        seconds: CPU seconds of the safety stop of each attack.
        threshold: excess over the best baseline that counts as a leak.
    """
    findings = list[QuickFinding]()
    for name in QUICK:
        started = time.process_time()
        answer = ATTACKS[name](view, seconds)
        if isinstance(answer, Guess):
            known, control = view.knowledge, Control(Guess([], 0, ""), frozenset(others))
            judged = score(answer, truth, known.prior, known.special, control)
            findings.append(_finding(name, judged, threshold, (answer.work, time.process_time() - started)))
        else:
            verdict = NOT_COVERED if isinstance(answer, NotCovered) else NOT_APPLICABLE
            findings.append(QuickFinding(name, verdict, answer.reason, len(truth)))
    unread = view.knowledge.unread
    return [replace(finding, **with_unread(finding.verdict, finding.reason, unread)) for finding in findings]


def _finding(name: str, judged: Score, threshold: float, effort: tuple[Work, float]) -> QuickFinding:
    (work, seconds), every = effort, judged.all
    verdict, reason = verdict_of([judged], threshold)
    if work.is_stopped and verdict != LEAKS:
        verdict, reason = UNFINISHED, f"the safety stop ended it after {work.steps} steps"
    count, rare = max(every.tokens, 1), judged.rare
    baselines = {name: getattr(every, name) / count for name in ("chance", "prior", "control")}
    return QuickFinding(
        attack=name,
        verdict=verdict,
        reason=reason,
        tokens=every.tokens,
        recall=recall([every]),
        baseline=max(baselines.values()),
        rare_recall=recall([rare]),
        **baselines,
        rare_tokens=rare.tokens,
        rare_control=rare.control / max(rare.tokens, 1),
        steps=work.steps,
        seconds=seconds,
    )

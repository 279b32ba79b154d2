"""The quick profile: attack one envelope in the node, on the very bytes, before they leave.

It runs the token attacks of the registry on what a coordinator would decode, within a time budget. The
control is the node's own other records: a guess that hits them as well was not read from this update.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from fedpeft_attacks.registry import ATTACKS
from fedpeft_attacks.scoring import Control, Score, recall, score, verdict_of
from fedpeft_attacks.views import Guess, View

QUICK = ("span", "sparse-recovery")
"""The attacks of the profile, the cheapest first."""


@dataclass(frozen=True)
class QuickFinding:
    """One attack on one envelope; shares only, no token.

    Attributes:
        attack: its name.
        verdict: as in the report, or ``not tried`` where the time was spent.
        reason: why, in one clause.
        tokens: distinct tokens of the records behind the update.
        recall: share of them among as many guesses; None where nothing was read.
        baseline: the best of chance, language prior and the node's other records.
        rare_recall: the same of tokens that the base seldom writes.
        seconds: of CPU.
    """

    attack: str
    verdict: str
    reason: str
    tokens: int
    recall: float | None = None
    baseline: float | None = None
    rare_recall: float | None = None
    seconds: float = 0.0

    @property
    def leaks(self) -> bool:
        """Whether tokens are recovered beyond every baseline."""
        return self.verdict == "leaks"

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
        seconds: CPU seconds after which no further attack starts.
        threshold: excess over the best baseline that counts as a leak.
    """
    begun, found = time.process_time(), list[QuickFinding]()
    for name in QUICK:
        started = time.process_time()
        if started - begun > seconds:
            reason = f"{seconds:g} CPU seconds were spent"
            found.append(QuickFinding(name, "not tried", reason, len(truth)))
            continue
        answer = ATTACKS[name](view)
        if not isinstance(answer, Guess):
            found.append(QuickFinding(name, "not applicable", answer.reason, len(truth)))
            continue
        known, control = view.knowledge, Control(Guess([], 0, ""), frozenset(others))
        judged = score(answer, truth, known.prior, known.given, control)
        found.append(_finding(name, judged, threshold, time.process_time() - started))
    return found


def _finding(name: str, judged: Score, threshold: float, seconds: float) -> QuickFinding:
    verdict, reason = verdict_of([judged], threshold)
    every = judged.all
    best = max(every.chance, every.prior, every.control) / max(every.tokens, 1)
    shares = recall([every]), best, recall([judged.rare])
    return QuickFinding(name, verdict, reason, every.tokens, *shares, seconds)

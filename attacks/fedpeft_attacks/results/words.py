"""The words for verdicts, and which of several outweighs the others: one table for all that shows them.

Nothing heavy is imported here: the command line of a node shows these words in every listing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

Verdict = Literal["leaks", "not finished", "not covered", "not tested", "not detected", "not applicable"]

LEAKS: Verdict = "leaks"
UNFINISHED: Verdict = "not finished"
NOT_COVERED: Verdict = "not covered"
"""There may be something to read, and the attack does not know how: unlike silence it promises nothing."""
NOT_TESTED: Verdict = "not tested"
"""Nobody attacked it, or the figures have nothing to be judged by."""
SILENT: Verdict = "not detected"
NOT_APPLICABLE: Verdict = "not applicable"
"""Of one attack on one view in which it has nothing to read; other attacks on the same view decide."""

ORDER: tuple[Verdict, ...] = (LEAKS, UNFINISHED, NOT_COVERED, NOT_TESTED, SILENT)
"""Which verdict outweighs which, the worst first."""

MEANINGS: Mapping[Verdict, str] = {
    LEAKS: "an attack succeeds beyond every baseline",
    UNFINISHED: "an attack was ended before it could tell",
    NOT_COVERED: "the attacks do not know how to read it",
    NOT_TESTED: "nobody attacked it, or there is nothing to compare with",
    SILENT: "the attacks that were run did not succeed; with what strength, stands beside it",
    NOT_APPLICABLE: "this attack has nothing to read there",
}
"""What each word says."""

_LOGGED: Mapping[str, str] = {
    "off": "not tested (audit off)",
    "masked": "not tested (masked)",
    "missing": "not tested (no audit)",
    "clean": SILENT,
    "no leak detected": SILENT,
}
"""What a node's log says of updates that it did not attack, and what earlier versions said."""


def worst(verdicts: Iterable[str]) -> Verdict:
    """The verdict that outweighs the others; what does not apply counts only where there is nothing else.

    >>> worst(["not detected", "not applicable"]), worst(["not applicable"]), worst([])
    ('not detected', 'not tested', 'not tested')
    """
    present = {_LOGGED.get(verdict, verdict) for verdict in verdicts}
    for candidate in ORDER:
        if candidate in present:
            return candidate
    return NOT_TESTED


def verdict_words(verdict: str, strength: float | None = None) -> str:
    """A verdict as people read it; silence always states how strong the attack was.

    Args:
        verdict: of a finding, a risk or an entry of a log, also one of an earlier version.
        strength: share that the same attack recovers with all protections off; None: not known.

    >>> verdict_words("not detected", 0.335), verdict_words("clean"), verdict_words("leaks")
    ('not detected (attack strength 34 %)', 'not detected (attack strength not known)', 'leaks')
    """
    current = _LOGGED.get(verdict, verdict)
    if current != SILENT:
        return current
    return f"{SILENT} (attack strength {'not known' if strength is None else f'{100 * strength:.0f} %'})"

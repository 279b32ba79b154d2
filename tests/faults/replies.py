"""What became of a hostile node's replies: its own log, held against what the coordinator wrote down."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployment import rounds_of
from hostile import CHEAP, COSTLY, GOOD, NOT_SENT, noted

HARMLESS = (GOOD, "sign-flip")
"""Well-formed updates, which become part of an adapter."""
TAKEN, NOT_ASKED = "taken in", "not asked"
Place = tuple[Path, int]
"""A run's directory and a round."""


@dataclass(frozen=True)
class Replies:
    """All that a hostile node did.

    Attributes:
        sent: how often, by kind; ``not sent: ...`` where its own app failed.
        told: by kind, what the coordinator wrote down and how often; of a repeated round, once.
    """

    sent: Counter[str]
    told: Mapping[str, Counter[str]]

    @property
    def hostile(self) -> int:
        """Replies that an honest node does not send."""
        return sum(self.sent[kind] for kind in (*CHEAP, *COSTLY))

    def wrong(self, scheduled: Iterable[str]) -> list[str]:
        """What does not hold: each kind that was scheduled has to be sent, and judged as it should be."""
        return [f"{kind}: {why}" for kind in dict.fromkeys(scheduled) if (why := self._wrong(kind))]

    def _wrong(self, kind: str) -> str:
        told = self.told.get(kind, Counter[str]())
        if not self.sent[kind]:
            return "never sent"
        if not told.keys() - {NOT_ASKED}:
            return "the coordinator wrote nothing down"
        if kind in HARMLESS:
            return "" if told[TAKEN] else "never taken in"
        return "taken in, and should not have been" if told[TAKEN] else ""

    def table(self) -> str:
        """One line for each kind."""
        lines = ["| hostile reply | sent | what the coordinator wrote down |", "|---|--:|---|"]
        for kind, count in sorted(self.sent.items()):
            causes = self.told.get(kind, Counter[str]()).most_common(4)
            said = "; ".join(f"{cause} ({n})" for cause, n in causes)
            lines.append(f"| {kind} | {0 if kind.startswith(NOT_SENT) else count} | {said} |")
        return "\n".join(lines)


def judged(done: Sequence[tuple[Place, str]], told: Mapping[Place, Mapping[str, Any]], name: str) -> Replies:
    """Hold what a node did against what the coordinator wrote down.

    Args:
        done: where the node did something, and what, in order.
        told: the newest event of each round.
        name: of the node.
    """
    causes: dict[str, Counter[str]] = defaultdict(Counter)
    for place, kind in dict(done).items():
        if (event := told.get(place)) is not None:
            cause = TAKEN if name in event["ledger"] else event["refused"].get(name, NOT_ASKED)
            causes[kind][re.sub(r"\d+(\.\d+e\+\d+)?", "N", cause)] += 1
    return Replies(Counter(kind for _, kind in done), causes)


def replies_of(home: Path, runs: Sequence[Path]) -> Replies:
    """What became of all that the hostile node of a home did in some runs."""
    attempts = _attempts(home, runs)
    asked = [one for one in noted(home) if one["flower_run"] in attempts]
    done = [((attempts[one["flower_run"]], one["round"]), one["kind"]) for one in asked]
    told = {(run, event["round"]): event for run in runs for event in rounds_of(run)}
    return judged(done, told, home.name)


def _attempts(home: Path, runs: Sequence[Path]) -> dict[int, Path]:
    """Run directories by Flower's number of each attempt, from the hostile node's own file."""
    from fedpeft.config import load_config
    from fedpeft.protocol.messages import run_id

    ids = {run_id(load_config(run / "config.toml", [])).hex(): run for run in runs}
    (grant,) = home.glob("coordinators/*/flower.json")
    return {int(number): ids[run] for number, run in json.loads(grant.read_text()).items() if run in ids}

"""From views to findings: run an attack on all views of a stage, compare, and judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft_attacks.findings import Finding, Power, ViewScore
from fedpeft_attacks.gathering import Observed
from fedpeft_attacks.registry import Solver
from fedpeft_attacks.scoring import Control, Score, measure, recall, score, verdict_of
from fedpeft_attacks.views import THREAT_MODELS, Guess, NotApplicable

Place = tuple[str, int]


def find(
    name: str, attack: Solver, group: Sequence[Observed], power: Power | None, threshold: float
) -> Finding:
    """One attack at one stage, over all nodes and rounds.

    Args:
        name: the attack's name.
        attack: the attack.
        group: views of one stage.
        power: what the attack reads from the undefended reference.
        threshold: excess over the best baseline that counts as a leak.
    """
    answers = {(one.node, one.round): attack(one.view) for one in group}
    guesses = {place: answer for place, answer in answers.items() if isinstance(answer, Guess)}
    if not guesses:
        reasons = [answer.reason for answer in answers.values() if isinstance(answer, NotApplicable)]
        return Finding(**_head(name, group), **_NOTHING, reason=reasons[0])
    read = [one for one in group if (one.node, one.round) in guesses]
    scores = [_score(one, read, guesses) for one in read]
    every, claimed = measure([part.all for part in scores]), sum(part.claimed for part in scores)
    verdict, reason = verdict_of(scores, threshold)
    rows = zip(read, scores, strict=True)
    return Finding(
        **_head(name, group),
        value=every.value if every else None,
        interval=every.interval if every else None,
        baselines=every.baselines if every else None,
        precision=sum(part.claimed_hits for part in scores) / claimed if claimed else None,
        rare=measure([part.rare for part in scores]),
        power=power,
        verdict=verdict,
        reason=reason,
        note=read[0].view.knowledge.approximation,
        views=tuple(_row(one, part, guesses[one.node, one.round]) for one, part in rows),
    )


_NOTHING: dict[str, Any] = {
    "value": None,
    "interval": None,
    "baselines": None,
    "precision": None,
    "rare": None,
    "power": None,
    "verdict": "not applicable",
    "views": (),
}


def _head(name: str, group: Sequence[Observed]) -> dict[str, Any]:
    view = group[0].view
    threat = THREAT_MODELS[view.role]
    return {
        "attack": name,
        "stage": view.stage,
        "role": view.role,
        "threat_model": threat,
        "adapter": view.adapter,
    }


def _score(one: Observed, group: Sequence[Observed], guesses: Mapping[Place, Guess]) -> Score:
    """Compare with the truth; the control is the same attack on the next other node of the same round."""
    others = sorted((x for x in group if x.round == one.round and x.node != one.node), key=lambda x: x.node)
    later = [other for other in others if other.node > one.node] + others
    control = Control(guesses[later[0].node, one.round], frozenset(later[0].truth)) if later else None
    known = one.view.knowledge
    return score(guesses[one.node, one.round], one.truth, known.prior, known.given, control)


def _row(one: Observed, part: Score, guess: Guess) -> ViewScore:
    return ViewScore(
        node=one.node,
        round=one.round,
        tokens=part.all.tokens,
        recall=recall([part.all]) or 0.0,
        precision=part.claimed_hits / part.claimed if part.claimed else None,
        rare_tokens=part.rare.tokens,
        rare_recall=recall([part.rare]),
        method=guess.method,
    )

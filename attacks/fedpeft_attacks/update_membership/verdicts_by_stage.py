"""Findings on membership in updates, one for each stage, as the report shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.adapters import attach
from fedpeft.privacy import PrivacyPlan
from fedpeft.rng import stream
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import RunStore
from fedpeft_attacks.evidence.collect_views import Evidence
from fedpeft_attacks.evidence.taps import AGGREGATE, Tap
from fedpeft_attacks.results.findings import Finding
from fedpeft_attacks.results.measures import Measure, Strength, WorkDone
from fedpeft_attacks.results.verdicts import Subject, finding_of, is_leak
from fedpeft_attacks.results.words import LEAKS, NOT_COVERED
from fedpeft_attacks.update_membership.candidates import material_of
from fedpeft_attacks.update_membership.claimed_bound import within_claim
from fedpeft_attacks.update_membership.contrasts import FALSE_ALARMS, Contrast, Pooled, pooled
from fedpeft_attacks.update_membership.round_scores import ALIGNMENT, COSINE, PROJRES
from fedpeft_attacks.update_membership.run_scores import (
    ENVELOPE,
    LEAVING,
    ScoredRun,
    score_run,
    untrained,
)
from fedpeft_attacks.update_membership.undefended import power
from fedpeft_attacks.views import NotCovered, role_of

if TYPE_CHECKING:
    from fedpeft.data import Example

NAME = "update-membership"

TEXT = (
    "Membership from an update (gradient alignment; beside it ProjRes, Deng et al. 2026). Whoever holds a "
    "candidate record computes its own gradient and looks whether the update points away from it, more than "
    "from records that the round did not use. A step is the gradient of a record."
)
"""What the attack does, for the report."""

ROUND, LINKED = "members of a round", "records of the node, rounds linked"


def membership_findings(
    store: RunStore,
    evidence: Evidence,
    taps: Sequence[Tap],
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Try to tell, from each stage, whose records made the updates of the tapped rounds.

    Whatever adapter was attached to the base is taken off.

    Args:
        store: the run.
        evidence: its base and views.
        taps: what its nodes wrote down.
        progress: called with one line before each step.
    """
    config, say = store.config, progress or (lambda _: None)
    say("audit: the records behind updates")
    attached = attach(evidence.base, config.adapter, config.run.seed, taps[0].node)
    adapter, material = attached.method.name, material_of(store, attached, taps)
    if isinstance(material, NotCovered):
        return [_uncovered(ENVELOPE, adapter, material.reason)]
    run = score_run(evidence, attached, material, taps)
    say("audit: the records behind updates, with all protections off")
    rng = stream(config.run.seed, 0, "", "audit-undefended-batch")
    records = {name: _shuffled(group.of_the_node, rng) for name, group in material.groups.items()}
    verdicts = _Verdicts(run, power(run.last, records, config.federation.batch_size), store)
    return [verdicts.finding(stage, adapter) for stage in evidence.stages]


class _Verdicts:
    """Turns the scores of a run into findings."""

    def __init__(self, run: ScoredRun, power: Strength | None, store: RunStore) -> None:
        self._run, self._power = run, power
        self._threshold = store.config.audit.threshold
        plan = RunPlan.from_config(store.config, store.values).privacy
        self._claim = None if plan is None or plan.reproducible else plan

    def finding(self, stage: str, adapter: str) -> Finding:
        """One stage, over all audited nodes and rounds."""
        contrasts = self._run.contrasts(stage, ALIGNMENT)
        single, linked = pooled(contrasts), pooled(self._run.linked(stage, ALIGNMENT))
        if single is None:
            reason = "the audited rounds drew no candidate, or there are none to compare with"
            return _uncovered(stage, adapter, reason)
        judged = _judged(single, linked, self._threshold)
        measures = [*judged, *self._beside(stage)]
        if linked is not None and linked.control is None:
            measures.append(linked.area(LINKED))
        finding = finding_of(_subject(stage, adapter), measures, self._threshold, self._power)
        work = WorkDone(views=len(contrasts), steps=self._run.gradients, allowed=None, cut=0, stopped=0)
        update: dict[str, object] = {"work": work}
        if finding.verdict != LEAKS and single.finds_members():
            reason = f"{judged[0].name}: more than false alarms and the uncertainty explain"
            update |= {"verdict": LEAKS, "reason": reason}
        return finding.model_copy(update=update | self._notes(stage, single, linked))

    def _notes(self, stage: str, single: Pooled, linked: Pooled | None) -> dict[str, object]:
        """What few records do not allow, and the claim where one is made about what leaves."""
        notes, others, plan = list[str](), len(single.scores[1]), self._claim
        verdict: dict[str, object] = {}
        if single.detected(FALSE_ALARMS[1]) is None and stage in LEAVING:
            notes.append(f"{stage}: 0.1 % false alarms take 999 other records, there are {others}")
        if plan is not None and linked is not None and _is_claimed(plan, stage):
            words, is_broken = within_claim(plan, linked.area(LINKED), linked.detected(FALSE_ALARMS[0]))
            notes.append(f"{stage}: {words}")
            verdict = {"verdict": LEAKS, "reason": words} if is_broken else {}
        return {"note": "; ".join(notes) or None, **verdict}

    def _beside(self, stage: str) -> list[Measure]:
        """Other scores and other comparisons, which are shown and not judged."""
        run, areas = self._run, dict[str, list[Contrast]]()
        if stage in LEAVING:
            for number in run.rounds:
                areas[f"members of round {number}"] = run.contrasts(stage, ALIGNMENT, rounds=[number])
            never = run.contrasts(stage, ALIGNMENT, untrained)
            areas["members, against records never trained on"] = never
        for score in (COSINE, PROJRES):
            areas[f"members, by {score}"] = run.contrasts(stage, score)
        scores = {name: pooled(contrasts) for name, contrasts in areas.items()}
        return [views.area(name) for name, views in scores.items() if views is not None]


def _judged(single: Pooled, linked: Pooled | None, threshold: float) -> list[Measure]:
    """The figures that are judged, the one that decides first: an area that leaks, else members found.

    Rounds that are linked are judged only beside a control, as records of a node and records that nobody
    trained on may differ by themselves; those that a round drew and those that it did not may not.
    """
    areas = [single.area(ROUND)]
    if linked is not None and linked.control is not None:
        areas.append(linked.area(LINKED))
    areas.sort(key=lambda figure: not is_leak(figure, threshold))
    few = [figure for figure in map(single.detected, FALSE_ALARMS) if figure is not None]
    by_few = not is_leak(areas[0], threshold) and single.finds_members()
    return [*few, *areas] if by_few else [areas[0], *few, *areas[1:]]


def _shuffled(records: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    return [records[place] for place in rng.permutation(len(records))]


def _is_claimed(plan: PrivacyPlan, stage: str) -> bool:
    return stage == AGGREGATE or (plan.trust == "local" and stage == ENVELOPE)


def _uncovered(stage: str, adapter: str, reason: str) -> Finding:
    finding = finding_of(_subject(stage, adapter), (), 0.0, reason=reason)
    return finding.model_copy(update={"verdict": NOT_COVERED})


def _subject(stage: str, adapter: str) -> Subject:
    return Subject(NAME, "membership", stage, role_of(stage), adapter)

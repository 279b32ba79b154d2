"""The scores of the candidates in all audited rounds, set against the truth: who was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedpeft.progress_reports import each
from fedpeft_attacks.evidence.collect_views import ALL_NODES, Evidence, Observed
from fedpeft_attacks.evidence.taps import AGGREGATE, Tap
from fedpeft_attacks.memory.statistics import Floats
from fedpeft_attacks.update_membership.candidates import FEWEST, Candidates, Mask, Material
from fedpeft_attacks.update_membership.contrasts import Contrast, linked
from fedpeft_attacks.update_membership.round_scores import Column, Observation, RoundScores, score_round

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

ENVELOPE = "envelope"
LEAVING = (ENVELOPE, AGGREGATE)
"""Stages that others than the node itself see; there everything is measured that can be."""

_EARLIER_MEAN = "mean of an earlier round"

Split = Callable[[Candidates, Mask], tuple[Mask, Mask]]
"""From the candidates of a node, and which of them a round drew, to members and others."""


def undrawn(group: Candidates, drawn: Mask) -> tuple[Mask, Mask]:
    """What a round drew, against records of the node that it did not draw.

    Only those that were chosen evenly: the rest was chosen because another audited round drew it. Where they
    are too few, against records of the same kind that nobody trained on.
    """
    others = group.evenly() & ~drawn
    return drawn, others if others.sum() >= FEWEST else group.never


def untrained(group: Candidates, drawn: Mask) -> tuple[Mask, Mask]:
    """What a round drew, against records of the same kind that nobody trained on."""
    return drawn, group.never


def _of_the_node(group: Candidates, _: Mask) -> tuple[Mask, Mask]:
    """Records of the node, drawn or not, against records of the same kind that nobody trained on."""
    return group.evenly(), group.never


@dataclass(frozen=True)
class ScoredRun:
    """The scores of all tapped rounds.

    Attributes:
        material: candidates and auxiliary records.
        taps: what was drawn, by node and round.
        rounds: scores by 1-based round.
        last: what the adversary held in the last of them.
    """

    material: Material = field(repr=False)
    taps: dict[tuple[str, int], Tap] = field(repr=False)
    rounds: dict[int, RoundScores] = field(repr=False)
    last: Observation = field(repr=False)

    @property
    def gradients(self) -> int:
        """How many gradients of records were computed."""
        return sum(scores.gradients for scores in self.rounds.values())

    def contrasts(
        self, stage: str, score: str, split: Split = undrawn, rounds: Sequence[int] = ()
    ) -> list[Contrast]:
        """Members against others of each node in each round.

        Args:
            stage: of the exchange plan.
            score: its name.
            split: who is compared with whom.
            rounds: 1-based; none: all.
        """
        places = [(name, number) for number in rounds or self.rounds for name in self.material.groups]
        views = (self._contrast(stage, score, split, place) for place in places)
        return [view for view in views if view is not None]

    def linked(self, stage: str, score: str) -> list[Contrast]:
        """Each node's records, over all rounds together, against records that nobody trained on.

        The mean has no control here: that of an earlier round has the node's records in it too.
        """
        contrasts: list[Contrast] = []
        for name in self.material.groups:
            views = [self._contrast(stage, score, _of_the_node, (name, number)) for number in self.rounds]
            whole = linked([view for view in views if view is not None])
            if whole is not None:
                contrasts.append(Contrast(whole.scores) if stage == AGGREGATE else whole)
        return contrasts

    def _contrast(self, stage: str, score: str, split: Split, place: tuple[str, int]) -> Contrast | None:
        (name, number), tap = place, self.taps.get(place)
        column = stage, ALL_NODES if stage == AGGREGATE else name
        values = self._scores(score, number, name, column)
        if tap is None or values is None:
            return None
        group = self.material.groups[name]
        members, others = split(group, group.among(tap.drawn(stage)))
        control = self._scores(score, number, name, self._elsewhere(stage, name, number))
        pair = None if control is None else (control[members], control[others])
        return Contrast((values[members], values[others]), pair)

    def _elsewhere(self, stage: str, name: str, number: int) -> Column:
        """Where a node's records are not: another audited node's values, or an earlier round's mean."""
        if stage == AGGREGATE:
            return _EARLIER_MEAN, ALL_NODES
        names = sorted(other for other, round_ in self.taps if round_ == number and other != name)
        return stage, next((other for other in names if other > name), names[0] if names else "")

    def _scores(self, score: str, number: int, name: str, column: Column) -> Floats | None:
        return self.rounds[number].table.get((score, name, column))


def score_run(evidence: Evidence, attached: Attached, material: Material, taps: Sequence[Tap]) -> ScoredRun:
    """Score the candidates of every tapped round; the taps must hold the values before each."""
    by_round = {tap.round: tap for tap in taps}
    seen = [observed for group in evidence.stages.values() for observed in group]
    candidates = {name: group.examples for name, group in material.groups.items()}
    rounds, last = dict[int, RoundScores](), None
    for number in each(sorted(by_round), "audited round"):
        last = _observation(attached, by_round[number], seen, material)
        rounds[number] = score_round(last, candidates)
    assert last is not None
    return ScoredRun(material, {(tap.node, tap.round): tap for tap in taps}, rounds, last)


def _observation(attached: Attached, tap: Tap, seen: Sequence[Observed], material: Material) -> Observation:
    """All that was observed in the round of a tap, and the mean of an earlier round to compare with.

    A later one would be no control: error feedback delivers there what this round did not send.
    """
    start, group = tap.start, [observed for observed in seen if observed.round == tap.round]
    assert start is not None
    values = {(observed.view.stage, observed.node): observed.view.values for observed in group}
    means = {observed.round: observed.view.values for observed in seen if observed.view.stage == AGGREGATE}
    if earlier := [number for number in means if number < tap.round]:
        values[_EARLIER_MEAN, ALL_NODES] = means[max(earlier)]
    projections = group[0].view.knowledge.projections
    return Observation(attached, start, values, projections, material.of_gradients, material.auxiliary)

"""Telling members from non-members: every score of membership, as an area and at few false alarms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.runstore import RunStore
from fedpeft_attacks.memory.findings import MemoryFinding, Unit
from fedpeft_attacks.memory.member_records import Material
from fedpeft_attacks.memory.membership_scores import confidence, likelihood_ratio, losses, relative_likelihood
from fedpeft_attacks.memory.released_model import Effort, ReleasedModel
from fedpeft_attacks.memory.shadows import train_shadows
from fedpeft_attacks.memory.statistics import Estimate, Floats, area, detected

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.data import Example

ALARMS = (0.1, 0.01)
"""Rates of false alarms at which members are counted."""

METHODS = {
    "loss": "a low loss (Yeom et al. 2018)",
    "reference": "a loss far below the base's (Watson et al. 2022)",
    "shadows": "a likelihood ratio over shadow adapters (LiRA, Carlini et al. 2022)",
    "relative": "a likelihood above the average of shadow adapters (RMIA, Zarifzadeh et al. 2024)",
}
"""What each score goes by."""


@dataclass(frozen=True)
class Contrast:
    """Scores of records that were trained on and of others, from the adapter and from the base alone."""

    score: str
    title: str
    members: Floats
    others: Floats
    base_members: Floats
    base_others: Floats

    def area(self) -> MemoryFinding | None:
        """Area under the curve; None with fewer than two records on a side."""
        if min(len(self.members), len(self.others)) < 2:
            return None
        base = area(self.base_members, self.base_others)
        return self._finding("", area(self.members, self.others), (0.5, base), "area")

    def detected(self, alarms: float) -> MemoryFinding | None:
        """Members that are found at a rate of false alarms; None with too few non-members."""
        adapter = detected(self.members, self.others, alarms)
        base = detected(self.base_members, self.base_others, alarms)
        if adapter is None or base is None:
            return None
        return self._finding(f" at {alarms:.0%} false alarms", adapter, (alarms, base), "share")

    def _finding(
        self, suffix: str, estimate: Estimate, baselines: tuple[float, Estimate], unit: Unit
    ) -> MemoryFinding:
        chance, base = baselines
        return MemoryFinding(
            "membership",
            f"{self.title}{suffix}",
            *estimate,
            chance=chance,
            base=base[0],
            held_out=None,
            count=len(self.members),
            others=len(self.others),
            unit=unit,
            method=METHODS[self.score],
        )


def membership(target: ReleasedModel) -> Iterator[MemoryFinding]:
    """Every score on plain records, and its area on canaries."""
    material = target.material
    trained, left_out = ([canary.record for canary in part] for part in (material.trained, material.left_out))
    parts = (material.members, material.others, trained, left_out)
    examples = target.examples([record for part in parts for record in part])
    ends = np.cumsum([len(part) for part in parts])[:-1]
    adapter, base = target.both(lambda model: losses(model, examples))
    for name, score in _scores(target, examples, base).items():
        groups, without = np.split(score(adapter), ends), np.split(score(base), ends)
        plain = Contrast(name, name, *groups[:2], *without[:2])
        planted = Contrast(name, f"{name}, canaries", *groups[2:], *without[2:])
        findings = (plain.area(), *(plain.detected(alarms) for alarms in ALARMS), planted.area())
        yield from (finding for finding in findings if finding is not None)


def canary_scores(store: RunStore, attached: Attached) -> tuple[Floats, NDArray[np.bool_]]:
    """What a one-run audit of epsilon needs of a run: a score of each canary, and where its coin fell.

    Canaries of one copy only: one of more is several records, for which a claim per record does not speak. A
    claim per person speaks for all: the copies are records of one invented person.

    Args:
        store: the run.
        attached: the base with the released adapter's values.

    Returns:
        The base's loss less the adapter's, float64, and whether it was trained on; both of shape
        ``(canaries,)``.
    """
    material = Material.of(store, records=0, canaries=sys.maxsize)
    every, by_person = (*material.trained, *material.left_out), store.config.privacy.unit == "person"
    single = [canary for canary in every if by_person or canary.times == 1]
    target = ReleasedModel(material, attached, Effort())
    examples = target.examples([canary.record for canary in single])
    adapter, base = target.both(lambda model: losses(model, examples))
    return base - adapter, np.array([canary.trained for canary in single], bool)


def _scores(
    target: ReleasedModel, examples: Sequence[Example], base: Floats
) -> Mapping[str, Callable[[Floats], Floats]]:
    """From the losses of a model to scores of membership, by name; with shadows, theirs too."""

    def by_shadows(values: Floats) -> Floats:
        return likelihood_ratio(confidence(values), shadows.confidences, shadows.inside)

    scores = {"loss": lambda values: -values, "reference": lambda values: base - values}
    effort, attached = target.effort, target.attached
    if effort.shadows and examples and attached.aggregator is None:
        shadows = train_shadows(attached, target.material.config, examples, effort.shadows, effort.cache)
        scores["shadows"] = by_shadows
        scores["relative"] = lambda values: relative_likelihood(confidence(values), shadows.confidences)
    return scores

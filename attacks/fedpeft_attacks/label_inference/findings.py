"""Findings on labels, one for each stage, as the report shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.adapters import attach
from fedpeft.rng import stream
from fedpeft.runstore import RunStore
from fedpeft.training.modes import steady
from fedpeft_attacks.evidence.collect_views import Evidence
from fedpeft_attacks.evidence.taps import AGGREGATE, Tap
from fedpeft_attacks.label_inference.classes import Classes
from fedpeft_attacks.label_inference.label_scores import (
    GUESSES,
    Adversary,
    LabelScores,
    SharesView,
    TextsView,
    score_labels,
)
from fedpeft_attacks.label_inference.shares import overlap
from fedpeft_attacks.memory.member_records import some
from fedpeft_attacks.memory.statistics import Floats, share
from fedpeft_attacks.results.findings import Finding
from fedpeft_attacks.results.measures import Baselines, Measure, Strength, WorkDone
from fedpeft_attacks.results.verdicts import NOT_COVERED, Subject, finding_of, is_leak
from fedpeft_attacks.update_membership.candidates import FEWEST, Material, material_of
from fedpeft_attacks.update_membership.round_scores import FLOATS, gradient_of
from fedpeft_attacks.update_membership.run_scores import ENVELOPE
from fedpeft_attacks.views import NotApplicable, NotCovered, role_of

if TYPE_CHECKING:
    from fedpeft.data import Example

NAME = "labels"

TEXT = (
    "Labels from an update. Whoever has labelled records of the same kinds computes the mean gradient of "
    "each class, and finds of how many records of each the update is made; whoever knows the text of a "
    "record and not its label sees the gradient of which answer the update fits best. A step is a gradient."
)
"""What the attack does, for the report."""

SHARES = "class shares"
AUXILIARY, DRAWS = 96, 2000
"""Labelled records that the adversary has, at most; draws of the bootstrap over records."""

_SHARES_OF_ALL = "the class shares of all nodes together, which a mean shows, are not judged"


def label_findings(
    store: RunStore,
    evidence: Evidence,
    taps: Sequence[Tap],
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Try to tell, from each stage, which labels the records of the tapped rounds have.

    Whatever adapter was attached to the base is taken off.

    Args:
        store: the run.
        evidence: its base and views.
        taps: what its nodes wrote down.
        progress: called with one line before each step.
    """
    config, say = store.config, progress or (lambda _: None)
    say("audit: labels behind updates")
    attached = attach(evidence.base, config.adapter, config.run.seed, taps[0].node)
    adapter, material = attached.method.name, material_of(store, attached, taps)
    if isinstance(material, NotCovered):
        return [_without_figures(adapter, material)]
    rng = stream(config.run.seed, 0, "", "audit-labelled-sample")
    labelled = _labelled(material, attached.layout.size, rng)
    classes = Classes.of(labelled, attached.base.task)
    if isinstance(classes, NotApplicable):
        return [_without_figures(adapter, classes)]
    adversary = Adversary(attached, classes, labelled, config.run.seed)
    scores = score_labels(evidence, adversary, material, taps)
    power = _power(scores, adversary, material, config.federation.batch_size)
    work = WorkDone(
        views=len(taps),
        steps=len(labelled) * len({tap.round for tap in taps}),
        allowed=None,
        cut=0,
        stopped=0,
    )
    findings = list[Finding]()
    for stage in evidence.stages:
        measures = _measures(stage, scores, adversary)
        measures.sort(key=lambda figure: not is_leak(figure, config.audit.threshold))
        if not measures:
            reason = NotCovered("the audited rounds drew no record of a known class")
            findings.append(_without_figures(adapter, reason, stage))
            continue
        finding = finding_of(_subject(stage, adapter), measures, config.audit.threshold, power)
        note = f"{stage}: {_SHARES_OF_ALL}" if stage == AGGREGATE else None
        findings.append(finding.model_copy(update={"work": work, "note": note}))
    return findings


def _labelled(material: Material, size: int, rng: np.random.Generator) -> list[Example]:
    """Records that nobody trained on, of the nodes' kinds and of others; fewer where gradients are large."""
    never = [
        example
        for group in material.groups.values()
        for example, is_unused in zip(group.examples, group.never, strict=True)
        if is_unused
    ]
    return some([*never, *material.auxiliary], min(AUXILIARY, max(FEWEST, FLOATS // size)), rng)


def _measures(stage: str, scores: LabelScores, adversary: Adversary) -> list[Measure]:
    """The figures of a stage."""
    views = scores.shares.get(stage, [])
    prior = adversary.classes.shares(adversary.labelled)
    figures: list[Measure | None] = [_shares_measure(views, prior)] if views else []
    for guess in GUESSES:
        texts = scores.texts.get((stage, guess), [])
        figures.append(_texts_measure(guess, texts, len(adversary.classes.names)))
    return [figure for figure in figures if figure is not None]


def _shares_measure(views: Sequence[SharesView], prior: Floats) -> Measure:
    """How much of the class distribution is read; the interval is over the records that were drawn."""
    count = sum(len(view.drawn) for view in views)
    value = _mean_overlap([(view.estimate, _counted(view.drawn, prior)) for view in views])
    rng = np.random.Generator(np.random.PCG64(0))
    again = [
        _mean_overlap(
            [(view.estimate, _counted(rng.choice(view.drawn, len(view.drawn)), prior)) for view in views]
        )
        for _ in range(DRAWS)
    ]
    low, high = (float(bound) for bound in np.quantile(again, [0.025, 0.975]))
    controls = [(view.control, _counted(view.drawn, prior)) for view in views if view.control is not None]
    baselines = Baselines(
        chance=_mean_overlap(
            [(np.full(len(prior), 1 / len(prior)), _counted(view.drawn, prior)) for view in views]
        ),
        prior=_mean_overlap([(prior, _counted(view.drawn, prior)) for view in views]),
        control=_mean_overlap(controls) if controls else None,
    )
    interval = min(low, value), max(high, value)
    return Measure(
        name=SHARES, unit="share", value=value, interval=interval, baselines=baselines, count=count
    )


def _counted(drawn: np.ndarray, like: Floats) -> Floats:
    return np.bincount(drawn, minlength=len(like)) / len(drawn)


def _mean_overlap(pairs: Sequence[tuple[Floats, Floats]]) -> float:
    return float(np.mean([overlap(estimate, truth) for estimate, truth in pairs]))


def _texts_measure(name: str, views: Sequence[TextsView], classes: int) -> Measure | None:
    """How often the label of a text is guessed that the round drew, beside those it did not draw."""
    drawn = np.concatenate([view.drawn for view in views]) if views else np.zeros(0, bool)
    if not len(drawn):
        return None
    elsewhere = [view.control for view in views if view.control is not None]
    parts = [np.concatenate(hits) for hits in ([view.undrawn for view in views], elsewhere) if hits]
    others = [float(hits.mean()) for hits in parts if len(hits)]
    value, interval = share(drawn)
    baselines = Baselines(
        chance=1 / classes,
        prior=float(np.mean(np.concatenate([view.prior for view in views]))),
        control=max(others, default=None),
    )
    return Measure(
        name=name, unit="share", value=value, interval=interval, baselines=baselines, count=len(drawn)
    )


def _power(scores: LabelScores, adversary: Adversary, material: Material, size: int) -> Strength | None:
    """What is read of the class shares of one batch of each node, from its raw gradient."""
    assert scores.last is not None
    overlaps, classes = list[float](), adversary.classes
    with steady(adversary.attached.model):
        for name, examples in material.usable.items():
            rng = stream(adversary.seed, 0, name, "audit-undefended-batch")
            known = rng.permutation(np.flatnonzero(classes.indices(examples) >= 0))
            batch = [examples[place] for place in known[:size]]
            if batch:
                gradient = gradient_of(adversary.attached, batch)
                estimate = scores.last.shares(gradient, of_gradients=True)
                overlaps.append(overlap(estimate, classes.shares(batch)))
    if not overlaps:
        return None
    value = float(np.mean(overlaps))
    where = f"the raw gradient of one batch of each audited node, in which {100 * value:.0f} % of the records"
    return Strength(text=f"{where} are put in the right class", shares={"the class shares of a batch": value})


def _without_figures(adapter: str, why: NotApplicable, stage: str = ENVELOPE) -> Finding:
    finding = finding_of(_subject(stage, adapter), (), 0.0, reason=why.reason)
    return finding.model_copy(update={"verdict": NOT_COVERED}) if isinstance(why, NotCovered) else finding


def _subject(stage: str, adapter: str) -> Subject:
    return Subject(NAME, "property", stage, role_of(stage), adapter)

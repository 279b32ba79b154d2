"""The audited rounds of a run, scored: estimated class shares, and guessed labels of known texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.progress_reports import each
from fedpeft.rng import stream
from fedpeft.training.modes import steady
from fedpeft_attacks.evidence.collect_views import ALL_NODES, Evidence
from fedpeft_attacks.evidence.taps import AGGREGATE, GRADIENT, UPDATE, Tap
from fedpeft_attacks.label_inference.classes import Classes
from fedpeft_attacks.label_inference.shares import ClassGradients
from fedpeft_attacks.memory.statistics import Floats
from fedpeft_attacks.update_membership.alignment import Alignment, Matrix, Preconditioner
from fedpeft_attacks.update_membership.candidates import Candidates, Material
from fedpeft_attacks.update_membership.round_scores import Column, gradient_of

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.data import Example

TEXTS = 8
"""Known texts of a node and round at most, drawn and not drawn each."""

Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class SharesView:
    """Class shares behind one view: estimated, from another node's values, and true.

    Attributes:
        estimate: from the view's own values, shape ``(classes,)``.
        control: from another node's; None: there is none.
        drawn: class of each record that was drawn, int64, shape ``(n,)``.
    """

    estimate: Floats
    control: Floats | None
    drawn: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True)
class TextsView:
    """Whether the label of each known text was guessed right.

    Attributes:
        drawn: texts that the round drew.
        prior: the same, guessed from the adapter before the round alone.
        control: the same, with another node's values; None: there are none.
        undrawn: texts of the node that the round did not draw.
    """

    drawn: Hits
    prior: Hits
    control: Hits | None
    undrawn: Hits


@dataclass(frozen=True)
class Adversary:
    """What the adversary knows, and where it tries it.

    Attributes:
        attached: the adapter on its base.
        classes: the classes of its records.
        labelled: records of which it knows the label, and that no node used.
        seed: of the choice of known texts.
    """

    attached: Attached = field(repr=False)
    classes: Classes
    labelled: Sequence[Example] = field(repr=False)
    seed: int


@dataclass
class LabelScores:
    """All views of a run.

    Attributes:
        shares: by stage.
        texts: by stage and name of the guess.
        last: the class gradients of the last round; None: no round was scored.
    """

    shares: dict[str, list[SharesView]] = field(default_factory=dict[str, list[SharesView]])
    texts: dict[tuple[str, str], list[TextsView]] = field(
        default_factory=dict[tuple[str, str], list[TextsView]]
    )
    last: ClassGradients | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Round:
    """One round, as the adversary sees it.

    Attributes:
        columns: stage and node of each observed value.
        observed: gradients, and negatives of updates, float32, shape ``(columns, D)``.
        raw: which columns are sums of gradients, not of Adam's steps.
    """

    columns: list[Column]
    observed: Matrix
    raw: list[bool]

    @classmethod
    def of(cls, evidence: Evidence, number: int, of_gradients: bool) -> _Round:
        """All that was observed in a round."""
        views = [
            (stage, seen)
            for stage, group in evidence.stages.items()
            for seen in group
            if seen.round == number
        ]
        signs = [1 if stage == GRADIENT else -1 for stage, _ in views]  # training moves against the gradient
        observed = [sign * seen.view.values for sign, (_, seen) in zip(signs, views, strict=True)]
        return cls(
            [(stage, seen.node) for stage, seen in views],
            np.stack(observed),
            [of_gradients or stage == GRADIENT for stage, _ in views],
        )

    def of_node(self, stage: str, name: str) -> int:
        """Where the values of a node at a stage are; of the mean, which is all nodes'."""
        return self.columns.index((stage, ALL_NODES if stage == AGGREGATE else name))

    def elsewhere(self, stage: str, name: str) -> int | None:
        """Where another node's values at a stage are; None: there are none."""
        others = (at for at, (place, node) in enumerate(self.columns) if place == stage and node != name)
        return None if stage == AGGREGATE else next(others, None)


def score_labels(
    evidence: Evidence, adversary: Adversary, material: Material, taps: Sequence[Tap]
) -> LabelScores:
    """Score every tapped round; the taps must hold the values before each."""
    scores, indices = LabelScores(), adversary.classes.indices(adversary.labelled)
    for number in each(sorted({tap.round for tap in taps}), "audited round"):
        group = [tap for tap in taps if tap.round == number]
        start = group[0].start
        assert start is not None
        adversary.attached.load(start)
        gradients = _gradients(adversary.attached, adversary.labelled)
        scores.last = ClassGradients.of(gradients, indices)
        seen = _Round.of(evidence, number, material.of_gradients)
        alignment = Alignment.of(seen.observed, Preconditioner.of(gradients), seen.raw)
        for tap in group:
            _score_shares(scores, adversary.classes, (tap, material.usable[tap.node]), seen)
            _score_texts(scores, adversary, (tap, material.groups[tap.node]), (seen, alignment))
    return scores


def _gradients(attached: Attached, examples: Sequence[Example]) -> Matrix:
    gradients = np.empty((len(examples), attached.layout.size), np.float32)
    with steady(attached.model):
        for place, example in enumerate(each(examples, "labelled gradient")):
            gradients[place] = gradient_of(attached, [example])
    return gradients


def _score_shares(
    scores: LabelScores, classes: Classes, source: tuple[Tap, Sequence[Example]], seen: _Round
) -> None:
    (tap, usable), known = source, scores.last
    assert known is not None
    for stage in tap.stages:
        drawn = classes.indices([usable[record] for record in sorted(tap.drawn(stage))])
        drawn = drawn[drawn >= 0]
        if not len(drawn):
            continue
        places = seen.of_node(stage, tap.node), seen.elsewhere(stage, tap.node)
        estimate, control = (
            None if at is None else known.shares(seen.observed[at], of_gradients=seen.raw[at])
            for at in places
        )
        assert estimate is not None
        scores.shares.setdefault(stage, []).append(SharesView(estimate, control, drawn))


def _score_texts(
    scores: LabelScores,
    adversary: Adversary,
    source: tuple[Tap, Candidates],
    observed: tuple[_Round, Alignment],
) -> None:
    """Guess the labels of known texts of a node from everything observed in the round."""
    (tap, group), (seen, alignment) = source, observed
    attached, classes = adversary.attached, adversary.classes
    places = _texts(group, tap, stream(adversary.seed, tap.round, tap.node, "audit-known-texts"))
    texts = [group.examples[place] for place in places]
    truth, drawn_at_all = classes.indices(texts), group.among(tap.drawn(UPDATE))[places]
    before = classes.logits(attached, texts)
    aligned = np.stack([_aligned(adversary, text, alignment) for text in each(texts, "known text")])
    for stage in dict.fromkeys(stage for stage, node in seen.columns if node in (tap.node, ALL_NODES)):
        drawn = group.among(tap.drawn(stage))[places]
        column, other = seen.of_node(stage, tap.node), seen.elsewhere(stage, tap.node)
        for guess, combined in GUESSES.items():
            hits = combined(before, aligned[:, :, column]) == truth
            control = None if other is None else combined(before, aligned[:, :, other])[drawn] == truth[drawn]
            prior = before.argmax(1)[drawn] == truth[drawn]
            view = TextsView(hits[drawn], prior, control, hits[~drawn_at_all])
            scores.texts.setdefault((stage, guess), []).append(view)


def _aligned(adversary: Adversary, text: Example, alignment: Alignment) -> Floats:
    """How well the gradient of a text with each answer fits each column, shape ``(classes, columns)``."""
    with steady(adversary.attached.model):
        gradients = (gradient_of(adversary.attached, [record]) for record in adversary.classes.answered(text))
        return np.stack([alignment(gradient) for gradient in gradients])


def _by_update(_: Floats, aligned: Floats) -> NDArray[np.int64]:
    return aligned.argmax(1)


def _by_both(before: Floats, aligned: Floats) -> NDArray[np.int64]:
    return (_standard(before) + _standard(aligned)).argmax(1)


GUESSES = {
    "labels of known texts": _by_update,
    "labels of known texts, with the adapter's own guess": _by_both,
}
"""How a label is guessed: by the update alone, and by it and the adapter before the round alike."""


def _standard(values: Floats) -> Floats:
    centred = values - values.mean(axis=1, keepdims=True)
    return centred / max(float(centred.std()), 1e-12)


def _texts(group: Candidates, tap: Tap, rng: np.random.Generator) -> NDArray[np.int64]:
    """Candidates whose labels are guessed: drawn ones, half of the first step, and evenly chosen others."""
    drawn, first = group.among(tap.drawn(UPDATE)), group.among(tap.drawn(GRADIENT))
    masks = first, drawn & ~first, group.evenly() & ~drawn
    of_first, later, others = (rng.permutation(np.flatnonzero(mask)) for mask in masks)
    return np.concatenate([[*of_first[: TEXTS // 2], *later][:TEXTS], others[:TEXTS]]).astype(np.int64)

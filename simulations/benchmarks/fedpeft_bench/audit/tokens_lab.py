"""Gradients of notes with personal data on any format, and what the attacks read from them, scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft.config.models import AdapterConfig, BaseConfig, DataConfig
from fedpeft.exchange.layout import FloatVector
from fedpeft.rng import stream
from fedpeft_attacks.results.token_scores import Control, Counts, Score, measure, rare_tokens, score
from fedpeft_attacks.views import Guess, Knowledge, NotApplicable, View
from fedpeft_simulations.embedded.organisations import make_organisation

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.bases import Base
    from fedpeft.data import Example

Attack = Callable[[Sequence[View]], Guess | NotApplicable]
Format = Literal["LoRA, A trained", "LoRA, A frozen", "MiSS", "PaCA", "(IA)3"]

QV = ("q_proj", "v_proj")
OTHER_DATA = 1000
"""Added to a seed: the notes behind the update that serves as control."""

_ORGANISATIONS, _NOTES = 4, 64
_STEP = 0.05


@dataclass(frozen=True)
class Setting:
    """What is exchanged, and from which start.

    Attributes:
        format: the adapter format; PaCA is LoRA with a frozen A that selects inputs.
        rank: its rank; nothing to (IA)³.
        skip_layers: layers without adapter.
        targets: suffixes of the adapted modules; empty: all linear ones.
        warm: whether the trainable values have been moved off their start, see `warm_start`.
    """

    format: Format
    rank: int = 8
    skip_layers: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()
    warm: bool = False

    @property
    def adapter(self) -> AdapterConfig:
        """The platform's settings for it."""
        method: Any = {"MiSS": "miss", "(IA)3": "ia3"}.get(self.format, "lora")
        aggregation: Any = "naive" if self.format == "LoRA, A trained" else "frozen_a"
        return AdapterConfig(
            method=method,
            aggregation=aggregation,
            rank=self.rank,
            skip_layers=self.skip_layers,
            target_modules=self.targets,
        )


RAW_QV = Setting("LoRA, A trained", 8, (), QV, warm=True)
"""The undefended format of the first tables."""


@dataclass(frozen=True)
class Bench:
    """A setting on the bench base, with what an attacker knows of it."""

    attached: Attached
    known: Knowledge
    start: FloatVector

    def gradient(self, batch: Sequence[Example]) -> FloatVector:
        """Gradient of the batch's mean loss in all trainable values, float32."""
        import torch

        from fedpeft.data import collate
        from fedpeft.training import per_example_loss

        attached = self.attached
        loss = per_example_loss(attached.model, collate(batch, attached.base.pad_id)).mean()
        parts = torch.autograd.grad(loss, list(attached.parameters.values()))
        return attached.layout.flatten(dict(zip(attached.parameters, parts, strict=True)))

    def rounds(self, batches: Sequence[Sequence[Example]]) -> list[FloatVector]:
        """Gradients of several rounds of one node; each starts a small step after the last."""
        self.attached.load(self.start)
        gradients: list[FloatVector] = []
        for batch in batches:
            gradients.append(self.gradient(batch))
            moved = self.attached.get() - _STEP * gradients[-1]
            self.attached.load(moved.astype(np.float32))
        self.attached.load(self.start)
        return gradients

    def truth(self, examples: Sequence[Example]) -> frozenset[int]:
        """Distinct tokens without the special ones."""
        return frozenset(int(token) for example in examples for token in example.ids) - self.known.special

    def view(self, values: FloatVector, tokens: int) -> View:
        """The values as whoever opens the envelope sees them."""
        method, layout = self.attached.method.name, self.attached.layout
        return View("gradient", "coordinator", method, layout, values, self.known, tokens)


@dataclass(frozen=True)
class Lab:
    """The bench base and its notes."""

    base: Base

    @classmethod
    def of(cls, folder: str) -> Lab:
        """Load a base in float32."""
        from fedpeft.bases import load_base

        return cls(load_base(BaseConfig(model=folder, device="cpu", dtype="float32")))

    @cached_property
    def prior(self) -> NDArray[np.float64]:
        """What the base writes, shape ``(tokens,)``."""
        from fedpeft_attacks.tokens.adversary_knowledge import prior_of

        return prior_of(self.base)

    @cached_property
    def _pools(self) -> dict[int, list[Example]]:
        return {}

    def notes(self, count: int, seed: int) -> list[Example]:
        """Notes of four organisations in random order; all tokens but the first are targets."""
        from fedpeft.data import tokenise

        if seed not in self._pools:
            records = [r for i in range(_ORGANISATIONS) for r in make_organisation(i, _NOTES, seed).train]
            order = stream(seed, 0, "", "audit-notes").permutation(len(records))
            texts = [records[place] for place in order]
            self._pools[seed] = tokenise(texts, self.base.tokenizer, DataConfig(prompt_weight=1.0))
        return self._pools[seed][:count]

    def bench(self, setting: Setting) -> Bench:
        """Attach a setting; it stays attached until the next one is."""
        from fedpeft.adapters import attach
        from fedpeft_attacks.evidence.undefended_reference import warm_start
        from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of

        attached = attach(self.base, setting.adapter, seed=0)
        if setting.format == "PaCA":
            _select_inputs(attached)
        if setting.warm:
            warm_start(attached)
        return Bench(attached, knowledge_of(attached, self.prior, ("", 1), 0.0), attached.get())


def _select_inputs(attached: Attached) -> None:
    """PaCA's projection: each row of A picks one input (arXiv 2503.01905), the same way for everyone."""
    import torch

    with torch.no_grad():
        for name, tensor in attached.frozen.items():
            rank, width = tensor.shape
            picked = stream(0, 0, name, "paca-columns").choice(width, rank, replace=False)
            tensor.zero_()
            tensor[torch.arange(rank), torch.from_numpy(picked)] = 1.0


Spoil = Callable[[FloatVector], FloatVector]
"""What happens to the values before they are seen."""


@dataclass(frozen=True)
class Trial:
    """What an attack read from one node's updates.

    Attributes:
        score: counts with chance, prior and control.
        precision: of the rare tokens among as many guesses as there are true tokens.
        seconds: processor time of the attack, without the gradient.
        method: the solver that spoke.
    """

    score: Score
    precision: float
    seconds: float
    method: str


def trial(attack: Attack, bench: Bench, views: Sequence[View], control: Sequence[View], truths: Any) -> Trial:
    """Run an attack on a node's updates and on those of other data.

    Args:
        attack: from one or more views to a guess.
        bench: where the views come from.
        views: the node's views.
        control: views of other data.
        truths: token sets behind the two.
    """
    truth, other = truths
    begun = time.process_time()
    guess = _guess(attack(views))
    seconds = time.process_time() - begun
    crossed = Control(_guess(attack(control)), other) if control else None
    result = score(guess, truth, bench.known.prior, bench.known.special, crossed)
    rare = rare_tokens(bench.known.prior) & set(guess.ranking[: len(truth)])
    return Trial(result, result.rare.hits / max(len(rare), 1), seconds, guess.method)


def _guess(answer: Guess | NotApplicable) -> Guess:
    return answer if isinstance(answer, Guess) else Guess([], 0, "nothing to read")


def views_of(
    lab: Lab, bench: Bench, batch: int, rounds: int, seed: int, spoil: Spoil | None = None
) -> tuple[list[View], frozenset[int]]:
    """Views of so many rounds of so many notes each, and the tokens of all of them."""
    notes = lab.notes(batch * rounds, seed)
    truth = bench.truth(notes)
    batches = [notes[start : start + batch] for start in range(0, len(notes), batch)]
    values = [value if spoil is None else spoil(value) for value in bench.rounds(batches)]
    return [bench.view(value, len(truth)) for value in values], truth


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """Pooled recalls with 95 % intervals and baselines, mean precisions and seconds, as JSON."""
    claimed = [trial.score.claimed_hits / trial.score.claimed for trial in trials if trial.score.claimed]
    return {
        "tokens": fmean(trial.score.all.tokens for trial in trials),
        "all": _measured([trial.score.all for trial in trials]),
        "rare": _measured([trial.score.rare for trial in trials]),
        "rare_precision": fmean(trial.precision for trial in trials),
        "claimed": fmean(trial.score.claimed for trial in trials),
        "claimed_precision": fmean(claimed) if claimed else None,
        "claimed_recall": fmean(trial.score.claimed_hits / trial.score.all.tokens for trial in trials),
        "seconds": fmean(trial.seconds for trial in trials),
        "method": ", ".join(dict.fromkeys(trial.method for trial in trials)),
    }


def _measured(parts: Sequence[Counts]) -> dict[str, Any] | None:
    figure = measure(parts)
    return None if figure is None else figure.model_dump()

"""``fedpeft bench audit encoders``: what updates of classifiers with positions give away of their records.

Two classifiers: a BERT of two layers that is trained here on the embedded notes, and the shape of BERT-base
(12 layers, width 768, 30,522 tokens) with random weights and random text of Zipf's frequencies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedpeft.config.models import AdapterConfig
from fedpeft.exchange.layout import FloatVector
from fedpeft.progress_reports import each
from fedpeft_attacks.registry import attack_named
from fedpeft_attacks.views import Guess, NotApplicable, View
from fedpeft_bench.audit.encoders_made import CLASSIFIERS, Classifier
from fedpeft_bench.audit.tokens_lab import OTHER_DATA, Bench, Trial, summary, trial
from fedpeft_bench.audit.tokens_sparse import ternary
from fedpeft_bench.harness.command import machine

if TYPE_CHECKING:
    from fedpeft.data import Example

Row = dict[str, Any]

ADAPTERS = {
    "A trained, all layers": AdapterConfig(aggregation="naive", skip_layers=()),
    "A frozen, all layers": AdapterConfig(skip_layers=()),
    "A trained, without layer 0": AdapterConfig(aggregation="naive"),
    "A frozen, without layer 0 (default)": AdapterConfig(),
}
"""The adapters, all of rank 16."""

_ALONE = 3  # batches of one record for each seed
_APART = 50
_COLUMNS = (
    "base, adapter, values, records, attack",
    "tokens",
    "recall (95 %)",
    "other data",
    "prior",
    "chance",
    "exact records",
    "CPU-s",
    "solver",
)


@dataclass(frozen=True)
class Case:
    """One row: how many records are behind what is seen of which adapter."""

    adapter: str
    records: int
    values: str = "gradient"
    attack: str = "sparse-recovery"


CASES: dict[str, tuple[Case, ...]] = {
    "2 layers": (
        *(Case("A trained, all layers", records) for records in (1, 4, 8)),
        Case("A trained, all layers", 1, attack="span"),
        Case("A trained, all layers", 1, "ternary 25 %"),
        Case("A trained, without layer 0", 1),
        *(Case("A frozen, all layers", records) for records in (1, 8)),
        *(Case("A frozen, without layer 0 (default)", records) for records in (1, 8)),
    ),
    "BERT-base": (
        *(Case("A trained, all layers", records) for records in (1, 4, 8)),
        Case("A frozen, all layers", 1),
        Case("A frozen, without layer 0 (default)", 1),
    ),
}
"""What is measured on each base."""

_SPOILS: dict[str, Callable[[FloatVector], FloatVector]] = {
    "gradient": lambda values: values,
    "ternary 25 %": partial(ternary, density=0.25),
}


def run(
    seeds: Sequence[int], report: Callable[[str], None] | None = None, bases: Sequence[str] = tuple(CASES)
) -> dict[str, Any]:
    """Make the classifiers and measure; about ten minutes of one core.

    Args:
        seeds: of the records; every figure is pooled over them.
        report: called with a line after each row.
        bases: which of `CASES`.
    """
    from fedpeft_bench.harness.timing import one_core

    one_core()
    rows: list[Row] = []
    for name in bases:
        with tempfile.TemporaryDirectory() as folder:
            classifier = CLASSIFIERS[name](Path(folder))
            for row in _rows(name, classifier, seeds):
                rows.append(row)
                if report:
                    report(" · ".join(_cells(row)))
    return {"machine": machine(), "seeds": list(seeds), "rows": rows}


def show(facts: dict[str, Any]) -> None:
    """Print the table."""
    from fedpeft.cli.output import table

    title = f"encoders ({facts['machine']}, seeds {facts['seeds']})"
    table(title, _COLUMNS, map(_cells, facts["rows"]))


def _rows(name: str, classifier: Classifier, seeds: Sequence[int]) -> Iterator[Row]:
    for case in each(CASES[name], "row"):
        bench = _bench(classifier, ADAPTERS[case.adapter])
        trials: list[Trial] = []
        exact: list[bool] = []
        for seed in (part for first in seeds for part in range(first, OTHER_DATA, _APART)[: _times(case)]):
            examples, others = (classifier.draw(case.records, part) for part in (seed, seed + OTHER_DATA))
            view, truth = _view(bench, examples, case)
            other, foreign = _view(bench, others, case)
            guesses: list[Guess | NotApplicable] = []
            trials.append(trial(partial(_keep, case, guesses), bench, [view], [other], (truth, foreign)))
            written = guesses[0].sequences if isinstance(guesses[0], Guess) else ()
            exact.append(written == tuple(tuple(example.ids.tolist()) for example in examples))
        share = fmean(exact) if case.records == 1 else None
        yield {"base": name, **vars(case), **summary(trials), "exact": share}


def _times(case: Case) -> int:
    return _ALONE if case.records == 1 else 1


def _keep(case: Case, guesses: list[Guess | NotApplicable], views: Sequence[View]) -> Guess | NotApplicable:
    """The attack of a case; what it says is kept."""
    guesses.append(attack_named(case.attack)(views[-1]))
    return guesses[-1]


def _bench(classifier: Classifier, adapter: AdapterConfig) -> Bench:
    from fedpeft.adapters import attach
    from fedpeft_attacks.evidence.undefended_reference import warm_start
    from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of

    attached = attach(classifier.base, adapter, seed=0)
    warm_start(attached)
    known = knowledge_of(attached, classifier.prior, ("", 1), 0.0)
    return Bench(attached, replace(known, frame=classifier.frame), attached.get())


def _view(bench: Bench, examples: Sequence[Example], case: Case) -> tuple[View, frozenset[int]]:
    truth = bench.truth(examples)
    values = _SPOILS[case.values](bench.gradient(examples))
    return replace(bench.view(values, len(truth)), records=len(examples)), truth


def _cells(row: Row) -> list[str]:
    every = row["all"]
    low, high = every["interval"]
    baselines = (every["baselines"][name] for name in ("control", "prior", "chance"))
    return [
        f"{row['base']}, {row['adapter']}, {row['values']}, {row['records']}, {row['attack']}",
        f"{row['tokens']:.0f}",
        f"{every['value']:.2f} ({low:.2f}-{high:.2f})",
        *(f"{value:.2f}" for value in baselines),
        "" if row["exact"] is None else f"{row['exact']:.2f}",
        f"{row['seconds']:.1f}",
        row["method"],
    ]

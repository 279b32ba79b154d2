"""``fedpeft bench audit recit``: personal data from updates, with and without Personal Notes.

The private notes of an organisation train the undefended LoRA (both factors, every linear module, B warm) on
the agreed embedded base and on one that was strengthened with Personal Notes of invented public people. The
same attack reads both, and in one case also a base that was trained on the same texts without any note.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedpeft_attacks.recit import Recipe, Sample, recit, strengthen
from fedpeft_attacks.results.token_scores import wilson
from fedpeft_attacks.sequences import Budget
from fedpeft_attacks.sequences.rouge import rouge_l
from fedpeft_attacks.views import Guess, Knowledge, Start, View
from fedpeft_bench.harness.command import machine
from fedpeft_simulations.embedded import base_path
from fedpeft_simulations.embedded.organisations import Note, make_organisation
from fedpeft_simulations.embedded.people import make_person, source
from fedpeft_simulations.embedded.vocabulary import domains, phrases_of_time, read_table

if TYPE_CHECKING:
    from fedpeft.bases import Base
    from fedpeft.config.models import AdapterConfig
    from fedpeft.exchange.layout import FloatVector

Report = Callable[[str], None]
Row = dict[str, Any]

SAMPLES = 4000
NOTES, TEXTS, AGREED = "Personal Notes", "same texts, no note", "agreed base"
BUDGET = Budget(steps=384, longest=80)

COLUMNS = ("what left", "rank", "notes", NOTES, TEXTS, AGREED, "ratio", "prior", "other notes")
MORE = ("what left", "rank", "notes", "base", "ROUGE-L", "exact", "CPU-s")

_PERSONAL = ("name", "phone", "email", "id", "dob", "address")
_ASIDE_SHARE = 0.25
_HELD_NOTES = 96
_STEPS, _LR, _DENSITY = 4, 1e-3, 0.2


@dataclass(frozen=True)
class Case:
    """One setting.

    Attributes:
        stage: what left the node, in words.
        rank: rank of the adapter.
        batches: sizes of the batches.
        tries: batches of each size and seed.
        is_ablated: whether a base trained on the texts alone is attacked too.
        steps: 0: the raw gradient; otherwise the update after so many AdamW steps on the batch.
        is_ternary: whether a fifth of the update is kept, as signs with one scale per tensor.
        is_default: the platform's format (frozen A, layer 0 left out, B = 0, prompt tokens weigh 0.2) instead
            of LoRA with both factors, warm B and every token a target.
    """

    stage: str
    rank: int
    batches: tuple[int, ...]
    tries: int = 1
    is_ablated: bool = False
    steps: int = 0
    is_ternary: bool = False
    is_default: bool = False


CASES = (
    Case("raw gradient", 16, (1, 2, 4, 8, 16, 32)),
    Case("raw gradient", 8, (1,), tries=6, is_ablated=True),
    Case("4 AdamW steps", 16, (1,), steps=_STEPS),
    Case("4 AdamW steps, ternary 20 %", 16, (1,), steps=_STEPS, is_ternary=True),
    Case("platform default", 16, (1,), steps=_STEPS, is_ternary=True, is_default=True),
)


def auxiliary(count: int, seed: int) -> list[Sample]:
    """Invented texts in the houses' styles with people of the public side; no private word occurs.

    Numbers are drawn freely, as the attacker does not know how private ones begin; so is the word at the
    end, as the houses' policy is private.
    """
    fake = source(seed, "public", "recit-auxiliary")
    styles = [style["text"] for style in read_table("houses")["style"]]
    return [_sample(fake, styles) for _ in range(count)]


def _sample(fake: Any, styles: Sequence[str]) -> Sample:
    home = fake.random.choice(domains())
    issues = fake.random.choice(home.topics).issues
    free = {"id": fake.numerify("########"), "phone": fake.numerify("0### ######")}
    person = make_person(fake, "public").fields | free
    has_aside = fake.random.random() < _ASIDE_SHARE
    text = fake.random.choice(styles).format(
        issue=fake.random.choice(issues),
        when=fake.random.choice(phrases_of_time()),
        aside=f" An older matter, {fake.random.choice(issues)}, is closed." if has_aside else "",
        role=home.role,
        Role=home.role.capitalize(),
        **person,
    )
    text = f"{text} {fake.random.choice(fake.random.choice(domains()).topics).name}"
    return Sample(text, tuple(person[key] for key in _PERSONAL if person[key] in text))


def run(
    seeds: Sequence[int],
    report: Report,
    cases: Sequence[Case] = CASES,
    recipe: Recipe | None = None,
    budget: Budget = BUDGET,
) -> dict[str, Any]:
    """Attack the updates of every case on all bases; seed i takes the notes of organisation i modulo 4.

    Args:
        seeds: of the organisations.
        report: called with a line per step.
        cases: settings.
        recipe: how the base is strengthened; default: `Recipe`.
        budget: of every attack, the same on all bases.
    """
    with tempfile.TemporaryDirectory() as folder:
        bases, started = {NOTES: Path(folder, "notes")}, time.process_time()
        sha256 = strengthen(
            base_path(), auxiliary(SAMPLES, 0), bases[NOTES], recipe := recipe or Recipe(), report
        )
        seconds = time.process_time() - started
        if any(case.is_ablated for case in cases):
            bases[TEXTS] = Path(folder, "texts")
            strengthen(base_path(), auxiliary(SAMPLES, 0), bases[TEXTS], replace(recipe, notes=False), report)
        rows = attacked(bases | {AGREED: base_path()}, seeds, report, cases, budget)
    facts = {"machine": machine(), "strengthened": sha256, "strengthen_s": seconds}
    return {**facts, "rows": rows, "means": means(rows)}


def attacked(
    bases: Mapping[str, Path], seeds: Sequence[int], report: Report, cases: Sequence[Case], budget: Budget
) -> list[Row]:
    """One row per base, case, batch size and seed; bases by variant."""
    from fedpeft.adapters import detach
    from fedpeft.bases import load_base
    from fedpeft.config.models import BaseConfig

    rows: list[Row] = []
    for variant, model in bases.items():
        base = load_base(BaseConfig(model=str(model), device="cpu"))
        for case, size, seed, number in _places(cases, seeds):
            if variant == TEXTS and not case.is_ablated:
                continue
            rows.append({"arm": variant, **_trial(base, case, (size, number), seed, budget)})
            last = rows[-1]
            where = f"{variant}: {case.stage}, rank {case.rank}, {size} notes, seed {seed}"
            report(f"{where}: {last['hits']} of {last['secrets']}")
        detach()
    return rows


def _places(cases: Sequence[Case], seeds: Sequence[int]) -> Iterator[tuple[Case, int, int, int]]:
    """Case, size of the batch, seed and number of the batch."""
    for case in cases:
        for size, seed, number in product(case.batches, seeds, range(case.tries)):
            yield case, size, seed, number


def _trial(base: Base, case: Case, batch_of: tuple[int, int], seed: int, budget: Budget) -> Row:
    notes = make_organisation(seed % len(domains()), _HELD_NOTES, seed).notes["train"]
    size, number = batch_of
    batch, other = notes[number * size : (number + 1) * size], notes[-size:]
    view, truth = view_of(base, case, batch, seed)
    started = time.process_time()
    guess = recit(view, budget)
    seconds = time.process_time() - started
    rows = guess.sequences if isinstance(guess, Guess) else ()
    texts = [base.tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]
    method = guess.method if isinstance(guess, Guess) else guess.reason
    return {
        "stage": case.stage,
        "rank": case.rank,
        "batch": size,
        "seed": seed,
        "number": number,
        "secrets": sum(len(note.secrets) for note in batch),
        "hits": _hits(batch, texts),
        "prior": _hits(batch, _prior(view, base, size)),
        "other": _hits(other, texts),
        "other_secrets": sum(len(note.secrets) for note in other),
        "rouge": fmean(max((rouge_l(row, guess_) for guess_ in rows), default=0.0) for row in truth),
        "exact": sum(row in rows for row in truth),
        "method": method,
        "seconds": seconds,
    }


def _hits(notes: Sequence[Note], texts: Sequence[str]) -> int:
    """How many personal data of the notes occur, word for word, in the texts."""
    return sum(any(secret in text for text in texts) for note in notes for secret in note.secrets)


def _prior(view: View, base: Base, size: int) -> list[str]:
    """As many records as the batch has, written by the base without any update."""
    from fedpeft.rng import torch_stream
    from fedpeft_attacks.recit.prompting import complete, filter_of

    start = view.knowledge.start
    if start is None:
        return []
    tokenizer, draws = base.tokenizer, torch_stream(0, 0, "", "recit-prior")
    allowed = filter_of((), len(view.knowledge.prior), int(tokenizer.eos_token_id), BUDGET.longest)
    rows = complete(start.ready(), (int(tokenizer.bos_token_id),), size, allowed, draws)
    return [tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]


def view_of(base: Base, case: Case, notes: Sequence[Note], seed: int) -> tuple[View, list[tuple[int, ...]]]:
    """What the coordinator sees of a batch of notes, and the token ids behind it."""
    import numpy as np

    from fedpeft.adapters import attach
    from fedpeft.config.models import DataConfig
    from fedpeft.data.tokens import tokenise
    from fedpeft_attacks.evidence.undefended_reference import warm_start
    from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of, vocabulary_of

    attached = attach(base, _adapter(case), seed=0)
    if not case.is_default:
        warm_start(attached)
    state = attached.get()
    weight = 0.2 if case.is_default else 1.0
    examples = tokenise([note.record for note in notes], base.tokenizer, DataConfig(prompt_weight=weight))
    prior = np.full(vocabulary_of(base), 1 / vocabulary_of(base))
    known: Knowledge = replace(knowledge_of(attached, prior, ("node", 2), _LR), start=Start(attached, state))
    truth = [tuple(int(token) for token in example.ids) for example in examples]
    values = _left(attached, case, examples, seed)
    tokens = len({token for row in truth for token in row} - known.special)
    role = "malicious-coordinator"
    view = View(
        "update" if case.steps else "gradient",
        role,
        "lora",
        attached.layout,
        values,
        known,
        tokens,
        len(notes),
    )
    return view, truth


def _adapter(case: Case) -> AdapterConfig:
    from fedpeft.config.models import AdapterConfig

    if case.is_default:
        return AdapterConfig(rank=case.rank, skip_layers=(0,))
    return AdapterConfig(aggregation="naive", rank=case.rank, skip_layers=())


def _left(attached: Any, case: Case, examples: Sequence[Any], seed: int) -> FloatVector:
    """The gradient or the update of a batch, as it leaves."""
    from fedpeft.exchange import Sparsify, Ternarise
    from fedpeft.exchange.transforms import Update
    from fedpeft.rng import stream
    from fedpeft.training.local import Extras, train_local
    from fedpeft.training.plan import LocalPlan

    start, seen = attached.get(), list[Any]()
    plan = LocalPlan(max(case.steps, 1), len(examples), lr=_LR)
    extras = Extras(on_first_gradient=lambda gradient, _: seen.append(gradient))
    train_local(attached, examples, plan, stream(seed, 1, "node", "batches"), extras=extras)
    if not case.steps:
        return seen[0]
    update = Update(attached.layout, attached.get() - start, 1, case.steps)
    if case.is_ternary:
        for step in (Sparsify(_DENSITY), Ternarise()):
            update, _ = step.apply(update, {})
    return update.values


def means(rows: Sequence[Row]) -> list[Row]:
    """Pooled figures over seeds, by case, batch size and base."""
    keys = dict.fromkeys((row["stage"], row["rank"], row["batch"], row["arm"]) for row in rows)
    result: list[Row] = []
    for key in keys:
        group = [row for row in rows if (row["stage"], row["rank"], row["batch"], row["arm"]) == key]
        total = {name: sum(row[name] for row in group) for name in _SUMS}
        low, high = wilson(total["hits"], total["secrets"])
        shares = {name: total[name] / max(total["secrets"], 1) for name in ("hits", "prior")}
        result.append(
            {
                **dict(zip(("stage", "rank", "batch", "arm"), key, strict=True)),
                "share": shares["hits"],
                "low": low,
                "high": high,
                "hits": total["hits"],
                "secrets": total["secrets"],
                "prior": shares["prior"],
                "other": total["other"] / max(total["other_secrets"], 1),
                "rouge": fmean(row["rouge"] for row in group),
                "exact": total["exact"] / (key[2] * len(group)),
                "seconds": fmean(row["seconds"] for row in group),
            }
        )
    return result


_SUMS = ("hits", "secrets", "prior", "other", "other_secrets", "exact")


def show(facts: Mapping[str, Any]) -> None:
    """Print both tables."""
    from fedpeft.cli.output import table

    by = {(m["stage"], m["rank"], m["batch"], m["arm"]): m for m in facts["means"]}
    variants = (NOTES, TEXTS, AGREED)
    rows = [[by.get((*key[:3], variant)) for variant in variants] for key in by if key[3] == NOTES]
    title = f"personal data recovered word for word ({facts['machine']})"
    table(title, COLUMNS, [_cells(*row) for row in rows])
    table("records", MORE, [_more(mean) for mean in facts["means"]])


def _cells(notes: Row | None, texts: Row | None, agreed: Row | None) -> list[str]:
    assert notes is not None and agreed is not None
    ratio = (
        f"{notes['share'] / agreed['share']:.1f}"
        if agreed["share"]
        else ("> 1" if notes["share"] else "none found")
    )
    place = [notes["stage"], str(notes["rank"]), str(notes["batch"])]
    shares = [_share(mean) for mean in (notes, texts, agreed)]
    return [*place, *shares, ratio, f"{notes['prior']:.0%}", f"{notes['other']:.0%}"]


def _share(mean: Row | None) -> str:
    if mean is None:
        return "–"
    return (
        f"{mean['share']:.0%} ({mean['low']:.0%} to {mean['high']:.0%}), {mean['hits']} of {mean['secrets']}"
    )


def _more(mean: Row) -> list[str]:
    place = [mean["stage"], str(mean["rank"]), str(mean["batch"]), mean["arm"]]
    return [*place, f"{mean['rouge']:.2f}", f"{mean['exact']:.0%}", f"{mean['seconds']:.1f}"]

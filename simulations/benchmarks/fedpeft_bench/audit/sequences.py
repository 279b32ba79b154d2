"""``fedpeft bench audit sequences``: whole notes from updates, beside prior and the field's attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedpeft.config.models import AdapterConfig, BaseConfig, DataConfig
from fedpeft.progress_reports import each
from fedpeft_bench.harness.command import machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedpeft.adapters import Attached
    from fedpeft.exchange.layout import FloatVector
    from fedpeft_attacks.sequences import Assembled
    from fedpeft_attacks.views import Knowledge, View
    from fedpeft_simulations.embedded.organisations import Note

Setting = Literal["r=16, all linear", "r=8, q and v"]
Rows = list[list[int]]

SETTINGS: dict[Setting, tuple[AdapterConfig, tuple[int, ...]]] = {
    "r=16, all linear": (AdapterConfig(aggregation="naive", rank=16, skip_layers=()), (1, 4, 8, 16)),
    "r=8, q and v": (
        AdapterConfig(aggregation="naive", rank=8, target_modules=("q_proj", "v_proj"), skip_layers=()),
        (1, 4),
    ),
}
"""Adapters with trained A and warm B, and the batches that are tried on each."""

STAGES = ("gradient", "SGD, 1 step", "AdamW, 6 steps", "ternary 20 %", "ternary 5 %", "sign", "noise 1 %")
STEPS_SINGLE, STEPS, STEPS_FIELD = 384, 160, 800
"""Steps of the search for one raw note, for a batch or a later stage; of the optimiser of TAG and LAMP."""

SINGLES = 3
"""Notes per seed where the batch is one note."""

_WARM, _LR, _STEPS = 0.02, 7e-3, 6
_COLUMNS = ("adapter", "batch", "attack", "exact", "ROUGE-L", "secrets", "known exact", "steps")
_STAGE_COLUMNS = ("stage", "notes", "exact", "ROUGE-L", "of other data", "secrets", "steps")


@dataclass(frozen=True, eq=False)
class Case:
    """A batch with its truth and its undefended gradient."""

    notes: tuple[Note, ...]
    rows: Rows
    view: View = field(repr=False)


def run(seeds: Sequence[int] = (0, 1, 2), report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Attack every case; about ten minutes of one core.

    Args:
        seeds: of the notes.
        report: called with a line before each setting.

    Returns:
        ``machine``, ``rows`` (one per case and attack), ``means`` and ``stages``.
    """
    rows: list[dict[str, Any]] = []
    for setting, (adapter, batches) in SETTINGS.items():
        for batch in batches:
            report(f"{setting}, batch {batch}")
            rows += _measured(setting, list(_cases(adapter, batch, seeds)))
    report("stages")
    stages = _staged(seeds)
    keys = ("setting", "batch", "attack")
    return {
        "machine": machine(),
        "rows": rows,
        "means": _means(rows, keys),
        "stages": _means(stages, ("stage",)),
    }


def attached_to_embedded(adapter: AdapterConfig) -> Attached:
    """A warm adapter on the embedded base: what a coordinator hands out in a later round."""
    from fedpeft.adapters import attach
    from fedpeft.bases import load_base
    from fedpeft.rng import stream
    from fedpeft_simulations.embedded import base_path

    attached = attach(load_base(BaseConfig(model=str(base_path()), device="cpu")), adapter, seed=0)
    draws = stream(0, 0, "", "audit-warm-start")
    attached.load(
        attached.layout.flatten(
            {
                name: draws.normal(scale=_WARM, size=tuple(t.shape)).astype(np.float32)
                if "lora_B" in name
                else t
                for name, t in attached.parameters.items()
            }
        )
    )
    return attached


def _cases(adapter: AdapterConfig, batch: int, seeds: Sequence[int]) -> Iterator[Case]:
    attached = attached_to_embedded(adapter)
    knowledge = _knowledge(attached)
    for seed in each(seeds, "seed"):
        for part in range(SINGLES if batch == 1 else 1):
            yield _case(attached, knowledge, batch, (seed, part))


def _knowledge(attached: Attached) -> Knowledge:
    from fedpeft.adapters.methods.lora import ROWS
    from fedpeft_attacks.tokens.adversary_knowledge import layer_of, special_tokens
    from fedpeft_attacks.views import Knowledge, Start

    layer = layer_of(attached)
    uniform = np.full(len(layer.inputs), 1 / len(layer.inputs))
    special, start = special_tokens(attached.base), Start(attached, attached.get())
    return Knowledge(layer.inputs, layer.readers, {}, uniform, special, rows=ROWS, start=start)


def _case(attached: Attached, knowledge: Knowledge, batch: int, place: tuple[int, int]) -> Case:
    from fedpeft.data import tokenise
    from fedpeft_attacks.sequences.probing import Probe
    from fedpeft_attacks.views import View
    from fedpeft_simulations.embedded.organisations import make_organisation

    seed, part = place
    notes = make_organisation(seed, max(SINGLES, batch), seed).notes["train"][
        part * batch : (part + 1) * batch
    ]
    examples = tokenise(
        [note.record for note in notes], attached.base.tokenizer, DataConfig(prompt_weight=1.0)
    )
    rows: Rows = [[int(token) for token in example.ids] for example in examples]
    assert knowledge.start is not None
    values = Probe.of(knowledge.start).gradient(rows)
    truth = {token for row in rows for token in row} - knowledge.special
    return Case(
        notes,
        rows,
        View("gradient", "insider", "lora", attached.layout, values, knowledge, len(truth), batch),
    )


def _measured(setting: Setting, cases: list[Case]) -> list[dict[str, Any]]:
    """Every attack on every case, each answer also held against the next case's truth."""
    rows: list[dict[str, Any]] = []
    for place, case in enumerate(cases):
        other = cases[(place + 1) % len(cases)]
        answers = _answers(case, field_too=len(case.rows) == 1 and place % SINGLES == 0)
        for attack, answer in answers.items():
            row = {"setting": setting, "batch": len(case.rows), "attack": attack}
            rows.append({**row, **scores(answer, case)})
            if attack == "assembly":
                rows.append({**row, "attack": "assembly, other data", **scores(answer, other)})
    return rows


def _answers(case: Case, field_too: bool) -> dict[str, Assembled]:
    from fedpeft_attacks.sequences.dager import dager
    from fedpeft_attacks.sequences.inversion import invert

    answers = {"assembly": _assembled(case.view), "prior": _prior(case), "DAGER": dager(case.view)}
    if field_too:
        from fedpeft_attacks.sequences import Budget

        short, length = Budget(STEPS_FIELD), len(case.rows[0])
        answers["TAG"] = invert(case.view, length, "tag", short)
        answers["LAMP"] = invert(case.view, length, "lamp", short)
    return answers


def _assembled(view: View) -> Assembled:
    from fedpeft_attacks.sequences import Budget, assemble_from
    from fedpeft_attacks.sequences.assembly import token_bag

    easy = view.records == 1 and view.stage == "gradient"
    return assemble_from(view, token_bag(view)[0], Budget(STEPS_SINGLE if easy else STEPS))


def _prior(case: Case) -> Assembled:
    """What the base writes by itself, as many records."""
    from fedpeft_attacks.sequences import Assembled
    from fedpeft_attacks.sequences.probing import Probe

    start = case.view.knowledge.start
    assert start is not None
    texts = Probe.of(start).texts(len(case.rows), max(map(len, case.rows)))
    return Assembled(tuple(map(tuple, texts)), (False,) * len(texts), 1.0)


def scores(answer: Assembled, case: Case) -> dict[str, float]:
    """Shares of records exact, of their ROUGE-L and of secrets verbatim, and steps of the search."""
    from fedpeft_attacks.sequences.rouge import pair_up

    start = case.view.knowledge.start
    assert start is not None
    known, tokenizer = set(answer.sequences), start.attached.base.tokenizer
    texts = [str(tokenizer.decode(list(row), skip_special_tokens=True)) for row in answer.sequences]
    secrets = [secret for note in case.notes for secret in note.secrets]
    return {
        "exact": float(np.mean([tuple(row) in known for row in case.rows])),
        "rouge": float(np.mean(pair_up(answer.sequences, case.rows))),
        "secrets": float(np.mean([any(secret in text for text in texts) for secret in secrets])),
        "certain": float(sum(answer.certain)) / len(case.rows),
        "steps": float(answer.work.steps),
    }


def _staged(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The same note at every stage, one per seed."""
    cases = list(_cases(SETTINGS["r=16, all linear"][0], 1, seeds))[::SINGLES]
    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        for place, case in enumerate(cases):
            name = "gradient" if stage == "gradient" else "update"
            answer = _assembled(replace(case.view, stage=name, values=staged(case, stage)))
            wrong = scores(answer, cases[(place + 1) % len(cases)])["rouge"]
            rows.append({"stage": stage, **scores(answer, case), "other": wrong})
    return rows


def staged(case: Case, stage: str) -> FloatVector:
    """The values of a stage: a gradient, or a step against it."""
    from fedpeft.rng import stream

    step = -np.float32(_LR) * case.view.values
    if stage == "gradient":
        return case.view.values
    if stage.startswith("AdamW"):
        return _adamw(case)
    if stage.startswith("ternary"):
        mask = np.abs(step) >= np.quantile(np.abs(step), 1 - float(stage.split()[1]) / 100)
        return np.where(mask, np.sign(step), 0).astype(np.float32)
    if stage == "sign":
        return np.sign(step)
    if stage.startswith("noise"):
        scale = float(stage.split()[1]) / 100 * float(np.sqrt(np.mean(step**2)))
        return step + stream(0, 0, "", "audit-noise").normal(scale=scale, size=step.shape).astype(np.float32)
    return step


def _adamw(case: Case) -> FloatVector:
    """Six local steps on the same note, as a node of the embedded federation takes them."""
    from fedpeft.data import Example
    from fedpeft.rng import stream
    from fedpeft.training import LocalPlan, train_local

    start = case.view.knowledge.start
    assert start is not None
    attached, weights = start.ready(), np.ones(len(case.rows[0]), np.float32)
    weights[0] = 0
    example = Example(np.asarray(case.rows[0], np.int64), weights)
    plan = LocalPlan(steps=_STEPS, batch_size=1, optimiser="adamw", lr=_LR)
    train_local(attached, [example], plan, stream(0, 0, "", "audit-steps"))
    moved = attached.get() - start.state
    attached.load(start.state)
    return moved


def _means(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Means over the cases of a group, with the counts that make Wilson's interval of the exact share."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        {
            **dict(zip(keys, names, strict=True)),
            "cases": len(group),
            **{name: float(np.mean([row[name] for row in group])) for name in group[0] if name not in keys},
        }
        for names, group in groups.items()
    ]


def show(facts: dict[str, Any]) -> None:
    """Print both tables."""
    from fedpeft.cli.output import table

    where = facts["machine"]
    table(
        f"whole notes from the raw gradient, embedded base ({where})", _COLUMNS, map(_cells, facts["means"])
    )
    table(
        f"one note, r=16 on all linear, by stage ({where})",
        _STAGE_COLUMNS,
        map(_stage_cells, facts["stages"]),
    )


def exact_cell(row: Mapping[str, Any]) -> str:
    """The share of exact notes with its 95 % interval."""
    from fedpeft_attacks.results.token_scores import wilson

    notes = row["cases"] * row.get("batch", 1)
    low, high = wilson(round(row["exact"] * notes), notes)
    return f"{row['exact']:.2f} ({low:.2f} to {high:.2f})"


def _cells(row: Mapping[str, Any]) -> list[str]:
    shares = [f"{row[name]:.2f}" for name in ("rouge", "secrets", "certain")]
    return [
        row["setting"],
        str(row["batch"]),
        row["attack"],
        exact_cell(row),
        *shares,
        f"{row['steps']:.0f}",
    ]


def _stage_cells(row: Mapping[str, Any]) -> list[str]:
    shares = [f"{row[name]:.2f}" for name in ("rouge", "other", "secrets")]
    return [row["stage"], str(row["cases"]), exact_cell(row), *shares, f"{row['steps']:.0f}"]

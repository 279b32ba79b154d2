"""``fedpeft bench audit whole_batches``: whole records of batches, from raw gradients of a real base.

LoRA with trained A on every linear layer, one gradient of 4 or 8 reviews that are cut to 32 or 64 tokens.
*Later* is a round whose B is not zero, so that A has a gradient; in the first B's alone is sent. Beside our
attack stands DAGER's search on the same gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fedpeft.adapters import Attached, attach, detach
from fedpeft.bases import Base, load_base
from fedpeft.cli.output import table
from fedpeft.config.models import AdapterConfig, BaseConfig, DataConfig
from fedpeft.data import read_records, tokenise
from fedpeft_attacks.evidence.undefended_reference import warm_start
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_attacks.sequences import Assembled, Bag, Budget, assemble_from
from fedpeft_attacks.sequences.dager import FULL, LORA, dager
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.tokens.adversary_knowledge import layer_of, special_tokens
from fedpeft_attacks.views import Knowledge, Start, View
from fedpeft_bench.harness.command import machine
from fedpeft_bench.real.prepare import Material, prepare

WORK = Path("runs/real")
HOLDER = "pain-clinic"
LABELS = ("positive", "neutral", "negative")
TEMPLATE = "Review: {prompt}\nRating: {completion}"
STEPS = 16
"""Of the beam, for what the tree leaves; as the audit grants a batch."""

_COLUMNS = (
    "rank",
    "round",
    "prompt weight",
    "records",
    "tokens each",
    "distinct tokens",
    "positions",
    "attack",
    "exact",
    "known exact",
    "CPU-s",
)


@dataclass(frozen=True)
class Setting:
    """One adapter and kind of batch.

    Attributes:
        rank: of the adapter.
        records: in the batch.
        longest: tokens to which each is cut.
        weight: of the loss on a prompt's tokens.
        is_warm: whether B has left its start at zero.
    """

    rank: int
    records: int
    longest: int
    weight: float = 1.0
    is_warm: bool = True


SETTINGS = (
    Setting(128, 4, 32),
    Setting(256, 8, 32, weight=0.0),
    Setting(128, 4, 32, is_warm=False),
    Setting(64, 4, 32),
    Setting(320, 8, 64),
)


@dataclass(frozen=True, eq=False)
class Case:
    """A batch with its truth and its gradient."""

    setting: Setting
    rows: tuple[tuple[int, ...], ...]
    view: View = field(repr=False)

    def row(self, attack: str, answer: Assembled, seconds: float) -> dict[str, Any]:
        """What an attack wrote of this batch."""
        written = list(answer.sequences)
        return {
            **vars(self.setting),
            "distinct": len({token for row in self.rows for token in row[:-1]}),
            "positions": len({row[:end] for row in self.rows for end in range(1, len(row))}),
            "attack": attack,
            "exact": float(np.mean([row in written for row in self.rows])),
            "certain": sum(answer.certain) / len(self.rows),
            "seconds": seconds,
        }


def run(seeds: Sequence[int], report: Callable[[str], None]) -> dict[str, Any]:
    """All settings; each seed reads other reviews."""
    material = prepare(WORK, report)
    base = load_base(BaseConfig(model=str(material.base), device="cpu"), None, 64)
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        for case in _cases(base, material, setting, seeds):
            for row in _measured(case):
                rows.append(row)
                report(", ".join(_cells(row)))
    detach()
    return {"machine": machine(), "rows": rows, "means": _means(rows)}


def show(facts: dict[str, Any]) -> None:
    """Print the table."""
    table(
        f"whole records of batches, SmolLM2-135M ({facts['machine']})", _COLUMNS, map(_cells, facts["means"])
    )


def _cases(base: Base, material: Material, setting: Setting, seeds: Sequence[int]) -> Iterator[Case]:
    data = DataConfig(
        template=TEMPLATE, max_length=setting.longest, prompt_weight=setting.weight, source=str(material.test)
    )
    records = read_records(material.organisations / f"{HOLDER}.jsonl", data)
    examples = tokenise(records, base.tokenizer, data, base.task)
    texts = [tuple(int(token) for token in example.ids) for example in examples]
    attached = attach(base, AdapterConfig(aggregation="naive", rank=setting.rank, skip_layers=()), seed=0)
    if setting.is_warm:
        warm_start(attached)
    known = _knowledge(attached, RecordFrame.of(base.tokenizer, data, LABELS))
    for seed in seeds:
        place = seed * setting.records % (len(texts) - setting.records)
        yield _case(attached, known, setting, tuple(texts[place : place + setting.records]))


def _knowledge(attached: Attached, frame: RecordFrame) -> Knowledge:
    layer, start = layer_of(attached), Start(attached, attached.get())
    uniform, special = np.full(len(layer.inputs), 1 / len(layer.inputs)), special_tokens(attached.base)
    rows = attached.method.token_rows
    return Knowledge(layer.inputs, layer.readers, {}, uniform, special, rows=rows, start=start, frame=frame)


def _case(attached: Attached, known: Knowledge, setting: Setting, rows: tuple[tuple[int, ...], ...]) -> Case:
    assert known.start is not None
    values = Probe.of(known.start, known.frame).gradient(rows)
    counts = len({token for row in rows for token in row} - known.special), len(rows)
    return Case(setting, rows, View("gradient", "insider", "lora", attached.layout, values, known, *counts))


def _measured(case: Case) -> Iterator[dict[str, Any]]:
    """Our attack and DAGER's search, with both published thresholds, on the same gradient."""
    longest = case.setting.longest
    budget, whole = Budget(STEPS, longest=longest), Budget(longest, longest=longest)
    attacks: dict[str, Callable[[], Assembled]] = {
        "sequences": lambda: assemble_from(case.view, Bag(), budget),
        f"DAGER, distance {LORA:g}": lambda: dager(case.view, whole),
        f"DAGER, distance {FULL:g}": lambda: dager(case.view, whole, FULL),
    }
    for name, attack in attacks.items():
        started = time.process_time()
        yield case.row(name, attack(), time.process_time() - started)


def _means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the batches of a setting and attack."""
    figures = ("distinct", "positions", "exact", "certain", "seconds")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(value for key, value in row.items() if key not in figures), []).append(row)
    return [
        {**group[0], "batches": len(group), **{key: fmean(row[key] for row in group) for key in figures}}
        for group in groups.values()
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["rank"]),
        "later" if row["is_warm"] else "first",
        f"{row['weight']:g}",
        str(row["records"]),
        str(row["longest"]),
        f"{row['distinct']:.0f}",
        f"{row['positions']:.0f}",
        row["attack"],
        f"{row['exact']:.2f}",
        f"{row['certain']:.2f}",
        f"{row['seconds']:.0f}",
    ]

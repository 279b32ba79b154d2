"""``fedpeft bench audit broadcast``: what a poisoned broadcast reads of records, on a real base.

A coordinator sends in round 2, 8 or the last a state with memory neurons
(`fedpeft_bench.audit.memory_neurons`) and reads what a node's update of that round names. Rows

* without checks: the poison as the coordinator wants it; the update dense, as signs and ternary, after one
  step and after two. Beside it the same update held against other records, and an honest state.
* with checks: what a node says to that poison, and poison that it takes, cut to the bound of the round
  (`fedpeft.aggregation.drift_bound`): by value ("cut"), or with all values of the poisoned rows at the edge
  of the bound ("edge"). In a later round the bound is what poison reaches that is built up over the rounds;
  nodes of the coordinator's own do not change it.

A token is named where its score is above that of all but one in 100 of the absent tokens with a neuron. A
record is read where at least half of its distinct tokens are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fedpeft.adapters import Attached, attach, detach
from fedpeft.aggregation.drift_bound import DriftBound
from fedpeft.bases import Base, load_base
from fedpeft.cli.output import table
from fedpeft.config import Config, build_config
from fedpeft.data import Example, read_records, tokenise
from fedpeft.exchange import Context, Update
from fedpeft.exchange.layout import FloatVector
from fedpeft.rng import stream
from fedpeft.run_plan import RunPlan
from fedpeft.training import LocalPlan, train_local
from fedpeft_bench.audit.memory_neurons import MemoryNeurons, memory_neurons
from fedpeft_bench.harness.command import machine
from fedpeft_bench.real.prepare import GENERAL, Material, prepare

WORK = Path("runs/real")
LAYERS, RANK, LONGEST = (1,), 64, 96
VICTIM, PUBLIC = "pain-clinic", ("womens-health", "mental-health", GENERAL)
BATCH = 4
FALSE_NAMES = 1 / 100
READ = 0.5
TEMPLATE = "Review: {prompt}\nRating: {completion}"

CAREFUL = {"rounds": 12, "local_steps": 2, "lr": 1e-3, "lr_decay": 0.8, "server": {"lr": 2.0}}
"""Terms of the runs on this base (docs/benchmarks.md)."""
DEFAULTS = {"rounds": 10}
"""The platform's own: ten steps of AdamW at 0.01."""
THIN = {"rounds": 12, "local_steps": 2, "optimiser": "sgd", "lr": 1.5, "lr_decay": 0.8} | {
    "server": {"name": "adam", "lr": 0.3, "momentum": 0.0, "epsilon": 0.1}
}
"""Of the thin profile: SGD, whose steps are as long as the gradients."""
TERMS = {"careful": CAREFUL, "default": DEFAULTS, "thin": THIN}

Left = tuple[str, int, FloatVector]
"""An update as it left a node: codec, steps, values."""

COLUMNS = (
    "state",
    "exchange",
    "steps",
    "a node",
    "records read",
    "tokens named",
    "of other records",
    "largest value",
)


@dataclass(frozen=True)
class Row:
    """One update, read.

    Attributes:
        state: what the node trained from.
        exchange: how its update left.
        steps: of AdamW, each on a batch of its own.
        answer: what a node with the check says to the state; empty without the check.
        read: share of the update's records of which at least `READ` of the distinct tokens are named.
        named: share of their distinct tokens that is named.
        control: the same share of other records, which the node did not train on.
        peak: largest change of a value of the state from the agreed start.
    """

    state: str
    exchange: str
    steps: int
    answer: str
    read: float
    named: float
    control: float
    peak: float


@dataclass(frozen=True)
class World:
    """The base with its adapter, and the records of the victim."""

    base: Base
    attached: Attached
    config: Config
    records: tuple[Example, ...]
    neurons: MemoryNeurons

    def batch(self, seed: int) -> Sequence[Example]:
        """Records of two steps; each seed has others."""
        size = 2 * BATCH
        place = size * (seed % (len(self.records) // size))
        return self.records[place : place + size]

    def plan(self, terms: dict[str, Any]) -> RunPlan:
        """What follows from the terms of a run."""
        config = self.config.model_dump()
        config["federation"] |= terms | {"server": config["federation"]["server"] | terms.get("server", {})}
        return RunPlan.from_config(build_config(config), self.attached.layout.size)

    def update(self, state: FloatVector, batch: Sequence[Example], plan: LocalPlan) -> FloatVector:
        """What a node's training makes of a state, float32, in layout order."""
        self.attached.load(state)
        train_local(self.attached, batch, plan, stream(0, 1, VICTIM, "batches"))
        return self.attached.get() - state


def run(seeds: Sequence[int], report: Callable[[str], None]) -> dict[str, Any]:
    """All rows, over seeds: each seed reads other records."""
    report("memory neurons are made")
    world = _world(prepare(WORK, report))
    rows: list[list[Row]] = []
    for seed in seeds:
        rows.append([])
        for row in _rows(world, seed):
            rows[-1].append(row)
            report(f"seed {seed}: " + ", ".join(_cells(row)))
    detach()
    means = [_mean(of_all) for of_all in zip(*rows, strict=True)]
    return {"machine": machine(), "seeds": list(seeds), "rows": [vars(row) for row in means]}


def show(facts: dict[str, Any]) -> None:
    """Print the table."""
    title = f"memory neurons in a broadcast, {len(facts['seeds'])} updates ({facts['machine']})"
    table(title, COLUMNS, [_cells(Row(**row)) for row in facts["rows"]])


def _world(material: Material) -> World:
    others = [layer for layer in range(30) if layer not in LAYERS]
    config = build_config(
        {
            "base": {"model": str(material.base), "threads": 1},
            "adapter": {"rank": RANK, "skip_layers": others},
            "data": {"source": str(material.organisations), "template": TEMPLATE, "max_length": LONGEST},
            "federation": {"nodes": 4, "batch_size": BATCH},
        }
    )
    base = load_base(config.base, None, LONGEST)
    attached = attach(base, config.adapter, config.run.seed)

    def read(name: str, longest: int) -> list[Example]:
        data = config.data.model_copy(update={"max_length": longest})
        return tokenise(
            read_records(material.organisations / f"{name}.jsonl", data), base.tokenizer, data, base.task
        )

    public = [example.ids for name in PUBLIC for example in read(name, LONGEST)]
    test = tokenise(read_records(material.test, config.data), base.tokenizer, config.data, base.task)
    public += [example.ids for example in test]
    tail = len(base.tokenizer("\nRating: negative").input_ids) + 1
    neurons = memory_neurons(attached, public, LAYERS, tail)
    records = [example for example in read(VICTIM, LONGEST + 1) if len(example.ids) <= LONGEST]
    return World(base, attached, config, tuple(records), neurons)


def _rows(world: World, seed: int) -> Iterator[Row]:
    yield from _without_check(world, seed)
    yield from _with_check(world, seed)


def _without_check(world: World, seed: int) -> Iterator[Row]:
    start, poison, plan = world.attached.initial(), world.neurons.state, world.plan(CAREFUL)
    yield _row(world, seed, "the agreed start", start, _one_step(world, seed, start, plan))
    for steps in (1, 2):
        update = world.update(poison, world.batch(seed)[: steps * BATCH], _local(plan, steps))
        for codec in ("dense-fp32", "sign", "ternary"):
            left = (codec.removesuffix("-fp32"), steps, _sent(world, update, codec))
            yield _row(world, seed, "memory neurons", poison, left)


def _with_check(world: World, seed: int) -> Iterator[Row]:
    poison = world.neurons.state
    for name, terms in TERMS.items():
        plan = world.plan(terms)
        bound = DriftBound.of(plan, world.attached.initial())
        for round in (2, 8, plan.config.federation.rounds):
            answer = "refuses the poison" if bound.excess(round, poison) else "takes the poison"
            states = {"cut": bound.within(round, poison), "edge": _at_edge(world, bound, round)}
            for kind, state in states.items():
                label = f"{name} terms, round {round}: {kind}"
                yield _row(world, seed, label, state, _one_step(world, seed, state, plan), answer)


def _row(world: World, seed: int, label: str, state: FloatVector, left: Left, answer: str = "") -> Row:
    """What an update shows that was trained from a state."""
    codec, steps, update = left
    judged = _judged(world.neurons, update, world.batch(seed)[: steps * BATCH], world.batch(seed + 1))
    peak = float(np.abs(state - world.attached.initial()).max())
    return Row(label, codec, steps, answer, *judged, peak)


def _one_step(world: World, seed: int, state: FloatVector, plan: RunPlan) -> Left:
    """The least training there is, which shows most."""
    return "dense", 1, world.update(state, world.batch(seed)[:BATCH], _local(plan, 1))


def _local(plan: RunPlan, steps: int) -> LocalPlan:
    """A node's training by the terms, in so many steps."""
    return replace(LocalPlan.of(plan.config.federation, 1), steps=steps)


def _at_edge(world: World, bound: DriftBound, round: int) -> FloatVector:
    """The poison with every value of its rows as large as the bound of a round allows."""
    layout, peak = world.attached.layout, bound.drifts[round - 1].peak
    poison = layout.split(world.neurons.state)
    parts = {name: np.zeros_like(part) for name, part in layout.split(bound.start).items()}
    for sketch in world.neurons.sketches:
        parts[sketch.gate] = (np.sign(poison[sketch.gate]) * peak).astype(np.float32)
    return bound.within(round, bound.start + layout.flatten(parts))


def _sent(world: World, update: FloatVector, codec: str) -> FloatVector:
    """The update as an envelope carries it."""
    config = world.config.model_dump()
    config["exchange"]["up"] |= {"codec": codec}
    plan = RunPlan.from_config(build_config(config), update.size).up
    context = Context(bytes(16), 2, VICTIM, bytes(32), "up")
    return plan.at(context).run(Update(world.attached.layout, update, 2, 1), {})[0].values


def _judged(
    neurons: MemoryNeurons, update: FloatVector, batch: Sequence[Example], other: Sequence[Example]
) -> tuple[float, float, float]:
    """Share of records read, of their distinct tokens named, and of tokens of the other records alone."""
    scores, tokens = neurons.scores(update), np.array(neurons.tokens)
    bags = [set(example.ids.tolist()) for example in batch]
    present, elsewhere = set[int]().union(*bags), {t for example in other for t in example.ids.tolist()}
    absent = np.sort(scores[~np.isin(tokens, list(present))])
    limit = absent[len(absent) - 1 - int(FALSE_NAMES * len(absent))]
    names = set(tokens[scores > limit].tolist())
    shares = [len(bag & names) / len(bag) for bag in bags]
    unseen = elsewhere - present
    named, control = len(present & names) / len(present), len(unseen & names) / max(len(unseen), 1)
    return fmean(share >= READ for share in shares), named, control


def _mean(rows: Sequence[Row]) -> Row:
    """The row of a state over seeds."""
    figures = {
        name: fmean(getattr(row, name) for row in rows) for name in ("read", "named", "control", "peak")
    }
    return replace(rows[0], **figures)


def _cells(row: Row) -> list[str]:
    shares = [f"{value:.3f}" for value in (row.read, row.named, row.control)]
    return [row.state, row.exchange, str(row.steps), row.answer or "no check", *shares, f"{row.peak:.3g}"]

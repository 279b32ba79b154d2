"""The measurements of ``fedpeft bench audit tokens``: each function gives the rows of one table, as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange.layout import FloatVector
from fedpeft.progress_reports import each
from fedpeft_attacks.registry import attack_named
from fedpeft_attacks.tokens.observations import observations
from fedpeft_attacks.tokens.sparse_recovery import guess_of, recover, sparse_recovery
from fedpeft_attacks.views import Guess, NotApplicable, View
from fedpeft_attacks.work import Meter
from fedpeft_bench.audit.tokens_lab import (
    OTHER_DATA,
    RAW_QV,
    Attack,
    Bench,
    Format,
    Lab,
    Setting,
    Trial,
    summary,
    trial,
    views_of,
)
from fedpeft_bench.audit.tokens_scales import Kind, scale_attack
from fedpeft_bench.audit.tokens_sparse import SPOILS, completed

Row = dict[str, Any]
Seeds = Sequence[int]

BATCHES = (1, 2, 4, 8, 16, 32)
NODES, NOTES_PER_NODE = (1, 2, 4, 8, 16), 2
STEPS, STEP_NOTES, STEP_RATE = (1, 3, 10), 4, 1e-3
DAGER_RANKS, DAGER_BATCHES = (8, 16, 64, 128, 256), (1, 4, 8, 16)
FORMATS: tuple[Format, ...] = ("LoRA, A trained", "LoRA, A frozen", "MiSS", "PaCA", "(IA)3")
OCCASIONS = ((False, 1, 1), (True, 1, 1), (False, 8, 1), (True, 8, 1), (False, 1, 4))
"""Warm or not, notes of a round, rounds."""
SPARSE_RANKS = (8, 64)

_QUERY = "q_proj"
_RESERVE = 20
THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Distances from the span, in units of the layer's inputs."""


def _span(views: Sequence[View]) -> Guess | NotApplicable:
    return attack_named("span")(views[-1])


def _trials(
    lab: Lab, bench: Bench, attack: Attack, seeds: Seeds, size: tuple[int, int] = (1, 1)
) -> list[Trial]:
    """Trials of one attack with their control, for so many notes and rounds."""
    trials: list[Trial] = []
    for seed in each(seeds, "seed"):
        views, truth = views_of(lab, bench, *size, seed)
        control, other = views_of(lab, bench, *size, seed + OTHER_DATA)
        trials.append(trial(attack, bench, views, control, (truth, other)))
    return trials


def trained_a(lab: Lab, seeds: Seeds) -> Iterator[Row]:
    """Raw gradient of a warm LoRA with trained A, rank 8 on q and v, over batches."""
    for batch in BATCHES:
        bench = lab.bench(RAW_QV)
        for name, attack in (("sparse recovery", recover), ("span check", _span)):
            row = summary(_trials(lab, bench, attack, seeds, (batch, 1)))
            yield {"notes": batch, "attack": name, **row}


def formats(lab: Lab, seeds: Seeds) -> Iterator[Row]:
    """Every format, rank and first layer, at its start and warm, one and several rounds."""
    for skip in ((), (0,)):
        for rank in (8, 32):
            for format in FORMATS:
                if format == "(IA)3" and rank != 8:
                    continue
                yield from _format(lab, seeds, Setting(format, rank, skip))


def _format(lab: Lab, seeds: Seeds, setting: Setting) -> Iterator[Row]:
    names: tuple[Kind | None, ...] = ("correlation", "variances") if setting.format == "(IA)3" else (None,)
    for warm, notes, rounds in OCCASIONS:
        bench = lab.bench(replace(setting, warm=warm))
        for kind in names:
            attack = recover if kind is None else partial(scale_attack, model=bench.attached.model, kind=kind)
            yield {
                "format": setting.format,
                "rank": setting.rank,
                "layer_0": not setting.skip_layers,
                "warm": warm,
                "notes": notes,
                "rounds": rounds,
                **summary(_trials(lab, bench, attack, seeds, (notes, rounds))),
            }


def sparse(lab: Lab, seeds: Seeds) -> Iterator[Row]:
    """One note behind sparse or signed values, zero-filled and completed."""
    for rank in SPARSE_RANKS:
        bench = lab.bench(replace(RAW_QV, rank=rank))
        for name, spoil in SPOILS.items():
            attacks: dict[str, Attack] = {"zeros": recover}
            if "%" in name:
                attacks["completed"] = _completed
            for filling, attack in attacks.items():
                trials: list[Trial] = []
                for seed in each(seeds, "seed"):
                    views, truth = views_of(lab, bench, 1, 1, seed, spoil)
                    trials.append(trial(attack, bench, views, (), (truth, frozenset())))
                yield {"rank": rank, "values": name, "filling": filling, **summary(trials)}


def _completed(views: Sequence[View]) -> Guess | NotApplicable:
    view = views[-1]
    blocks = observations(view)
    if isinstance(blocks, NotApplicable):
        return blocks
    known = view.knowledge
    tokens = view.tokens + len(known.special)
    meter = Meter()
    return guess_of(
        sparse_recovery([completed(block) for block in blocks], known, tokens, meter), known, meter
    )


def against_dager(lab: Lab, seeds: Seeds) -> Iterator[Row]:
    """Our attack and DAGER's token step on the same gradients."""
    for rank in DAGER_RANKS:
        bench = lab.bench(replace(RAW_QV, rank=rank))
        for batch in DAGER_BATCHES:
            ours: list[Trial] = []
            theirs: list[Trial] = []
            for seed in each(seeds, "seed"):
                views, truth = views_of(lab, bench, batch, 1, seed)
                ours.append(trial(recover, bench, views, (), (truth, frozenset())))
                theirs.append(_dager(bench, views, truth))
            yield {"rank": rank, "notes": batch, "ours": summary(ours), "dager": summary(theirs)}


def _dager(bench: Bench, views: Sequence[View], truth: frozenset[int]) -> Trial:
    begun = time.process_time()
    distances = dager_distances(views[-1])
    seconds = time.process_time() - begun

    def guess(views: Sequence[View]) -> Guess:
        return dager_guess(views[-1], distances, truth)

    return replace(trial(guess, bench, views, (), (truth, frozenset())), seconds=seconds)


def aggregates(lab: Lab, seeds: Seeds) -> Iterator[Row]:
    """The mean of the raw gradients of several nodes with two notes each."""
    bench = lab.bench(RAW_QV)
    for nodes in NODES:
        trials: list[Trial] = []
        for seed in each(seeds, "seed"):
            observed, control = (_mean(lab, bench, nodes, place) for place in (seed, seed + OTHER_DATA))
            trials.append(trial(recover, bench, observed[0], control[0], (observed[1], control[1])))
        yield {"nodes": nodes, **summary(trials)}


def _mean(lab: Lab, bench: Bench, nodes: int, seed: int) -> tuple[list[View], frozenset[int]]:
    notes = lab.notes(nodes * NOTES_PER_NODE, seed)
    parts = [bench.gradient(notes[start::nodes]) for start in range(nodes)]
    truth = bench.truth(notes)
    return [bench.view(np.mean(parts, axis=0).astype(np.float32), len(truth))], truth


def local_steps(lab: Lab, seeds: Seeds) -> Iterator[Row]:
    """The update after several steps of AdamW on one batch, and its signs; SGD beside it."""
    shapes: tuple[tuple[str, Callable[[FloatVector], FloatVector]], ...] = (
        ("update", lambda values: values),
        ("its signs", np.sign),
    )
    for optimiser in ("sgd", "adamw"):
        for steps in STEPS:
            for name, shape in shapes if optimiser == "adamw" else shapes[:1]:
                bench = lab.bench(RAW_QV)
                trials: list[Trial] = []
                for seed in each(seeds, "seed"):
                    observed, control = (
                        _update(lab, bench, (optimiser, steps, shape), place)
                        for place in (seed, seed + OTHER_DATA)
                    )
                    trials.append(trial(recover, bench, observed[0], control[0], (observed[1], control[1])))
                yield {"optimiser": optimiser, "steps": steps, "seen": name, **summary(trials)}


def _update(
    lab: Lab, bench: Bench, how: tuple[Any, int, Any], seed: int
) -> tuple[list[View], frozenset[int]]:
    from fedpeft.rng import stream
    from fedpeft.training import LocalPlan, train_local

    optimiser, steps, shape = how
    notes = lab.notes(STEP_NOTES, seed)
    plan = LocalPlan(steps, STEP_NOTES, optimiser, STEP_RATE, momentum=0.0)
    bench.attached.load(bench.start)
    train_local(bench.attached, notes, plan, stream(seed, 1, "", "batches"))
    change = bench.attached.get() - bench.start
    bench.attached.load(bench.start)
    truth = bench.truth(notes)
    return [bench.view(np.asarray(shape(change), np.float32), len(truth))], truth


def dager_distances(view: View) -> NDArray[np.float64]:
    """Distance of each token's input from the span of the query gradient, shape ``(tokens,)``.

    The token step of DAGER (Petrov et al., arXiv 2405.15586): a space of the numerical rank of the gradient
    of the first query projection, under LoRA that of its factor A, cut to 20 below the width where full.
    The threshold depends on model and precision, so each gradient gets the one that suits DAGER best.
    """
    inputs = np.asarray(view.knowledge.inputs, np.float64)
    rows = _query_rows(view)
    rank = min(int(np.linalg.matrix_rank(rows)), inputs.shape[1] - _RESERVE)
    basis = np.linalg.svd(rows.astype(np.float64), full_matrices=False)[2][:rank]
    return np.linalg.norm(inputs - (inputs @ basis.T) @ basis, axis=1)


def dager_guess(view: View, distances: NDArray[np.float64], truth: Set[int]) -> Guess:
    """All tokens by distance, claiming those under the threshold with the best F1 against the truth."""
    special = view.knowledge.special
    ranking = [int(token) for token in np.argsort(distances, kind="stable") if int(token) not in special]
    best, claimed = -1.0, 0
    for threshold in THRESHOLDS:
        count = sum(bool(distances[token] < threshold) for token in ranking)
        hits = len(truth & set(ranking[:count]))
        if 2 * hits / (count + len(truth)) > best:
            best, claimed = 2 * hits / (count + len(truth)), count
    return Guess(ranking, claimed, "DAGER")


def _query_rows(view: View) -> NDArray[np.float32]:
    """Rows of the factor A of the first query projection; every setting of this comparison adapts it."""
    return next(
        tensor
        for name, tensor in view.layout.split(view.values).items()
        if name.endswith(f"{_QUERY}.lora_A.weight")
        and name.removesuffix(".lora_A.weight") in view.knowledge.readers
    )

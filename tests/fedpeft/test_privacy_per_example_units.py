"""Persons as units, public supports and the sensitivity of the sum, with every engine."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, chisquare

from fedpeft.data import collate
from fedpeft.data.batches import whole_units
from fedpeft.errors import DataError, PrivacyError
from fedpeft.privacy.csprng import seeded, words
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.training.dp import per_example
from fedpeft.training.dp.dpsgd import Mechanism, noisy_gradient
from fedpeft.training.dp.per_example import Engine, clipped_sum
from fedpeft.training.modes import steady
from fedpeft.training.privacy_units import draw, units_of
from fedpeft_kernels.norms import squared_rows

ENGINES = [Engine("batched", ""), Engine("loop", ""), Engine("opacus", "")]
OWNERS = np.array([0, 0, 0, 1, 2, 2, 3])
PLAN = PrivacyPlan(
    sampling_probability=0.5,
    noise_multiplier=1.0,
    clip=0.2,
    expected_batch_size=4,
    steps_per_round=5,
    rounds=2,
    delta=1e-5,
)
PERSONS = replace(PLAN, unit="person", records_per_unit=2)


def naive(attached, examples):
    """Plain autograd, one example at a time, float64 rows."""
    rows = []
    with steady(attached.model):
        for example in examples:
            attached.model.zero_grad()
            ids = torch.from_numpy(example.ids)[None]
            scores = torch.log_softmax(attached.model(input_ids=ids).logits[0], -1)
            weights = torch.from_numpy(example.weights)[1:]
            (-(scores[:-1].gather(1, ids[0, 1:, None])[:, 0] * weights).sum() / weights.sum()).backward()
            grads = [attached.parameters[name].grad.reshape(-1) for name in attached.layout.names]
            rows.append(torch.cat(grads).double().numpy())
            attached.model.zero_grad()
    return np.stack(rows)


def clipped(rows, clip):
    norms = np.linalg.norm(rows, axis=1)
    return (rows * np.minimum(1, clip / norms)[:, None]).sum(0), norms


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.linalg.norm(wanted))


def with_persons(examples, persons):
    return [replace(example, person=person) for example, person in zip(examples, persons, strict=True)]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_persons_records_are_added_before_the_clip(toy, toy_examples, engine):
    attached, examples = toy("llama", "lora"), toy_examples(7)
    rows = naive(attached, examples)
    people = np.stack([rows[person == OWNERS].mean(0) for person in range(4)])
    clip = float(np.median(np.linalg.norm(people, axis=1)))
    wanted, norms = clipped(people, clip)
    total, found = clipped_sum(attached, collate(examples, 0), clip, OWNERS, None, engine)
    close(total, wanted)
    np.testing.assert_allclose(found, norms, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("units", [None, OWNERS])
def test_gradients_are_cut_to_the_support_before_the_norm(toy, toy_examples, engine, units):
    attached, examples = toy("llama", "lora"), toy_examples(7)
    chosen = np.random.default_rng(0).random(attached.layout.size) < 0.1
    chosen[attached.layout.offsets[1] : attached.layout.offsets[3]] = [False]  # two tensors without any
    support = np.flatnonzero(chosen)
    rows = naive(attached, examples)
    owners = np.arange(7) if units is None else units
    people = np.stack([rows[owners == person].mean(0) for person in range(owners[-1] + 1)]) * chosen
    clip = float(np.median(np.linalg.norm(people, axis=1)))
    wanted, norms = clipped(people, clip)
    total, found = clipped_sum(attached, collate(examples, 0), clip, units, support, engine)
    assert total.shape == support.shape
    close(total, wanted[support])
    np.testing.assert_allclose(found, norms, rtol=1e-5)


def test_the_full_support_changes_nothing_and_the_empty_one_holds_nothing(toy, toy_examples):
    attached, batch = toy("llama", "lora"), collate(toy_examples(3), 0)
    everything = np.arange(attached.layout.size)
    np.testing.assert_allclose(
        clipped_sum(attached, batch, 0.1, None, everything)[0],
        clipped_sum(attached, batch, 0.1)[0],
        atol=1e-7,
    )
    total, norms = clipped_sum(attached, batch, 0.1, None, everything[:0])
    assert total.shape == (0,) and norms.tolist() == [0, 0, 0]


@pytest.mark.parametrize("support", [[3, 3], [5, 4], [-1, 2], [0, 10**9], [[1, 2], [3, 4]]])
def test_a_wrong_support_is_refused(toy, toy_examples, support):
    with pytest.raises(PrivacyError, match="support needs increasing positions"):
        clipped_sum(toy(), collate(toy_examples(2), 0), 0.1, None, np.array(support))


@pytest.mark.parametrize("units", [[0, 1, 0], [0, 1], [1, 0, 0]])
def test_scattered_units_are_refused(toy, toy_examples, units):
    with pytest.raises(PrivacyError, match="clipped together"):
        clipped_sum(toy(), collate(toy_examples(3), 0), 0.1, np.array(units))


def test_engines_agree_where_memory_holds_few_rows(toy, toy_examples, monkeypatch):
    """Neither the bound of the matrix nor that of the tokens splits a person."""
    attached, examples = toy("llama", "lora"), toy_examples(7)
    batch = collate(examples, 0)
    whole, norms = clipped_sum(attached, batch, 0.1, OWNERS, None, ENGINES[0])
    looped, _ = clipped_sum(attached, batch, 0.1, OWNERS, None, ENGINES[1])
    monkeypatch.setattr(per_example, "VALUES_AT_ONCE", 2 * attached.layout.size)
    cut, cut_norms = clipped_sum(attached, batch, 0.1, OWNERS, None, ENGINES[0])
    close(looped, whole)
    close(cut, whole)
    np.testing.assert_allclose(cut_norms, norms, rtol=1e-5)
    persons = [[examples[row] for row in np.flatnonzero(person == OWNERS)] for person in range(4)]
    quiet = Mechanism(replace(PLAN, clip=0.1, noise_multiplier=1e-9))
    for tokens in (1, 30, 10**6):
        batches = list(whole_units(attached.model, persons, tokens))
        assert sum(len(np.unique(units)) for _, units in batches) == 4
        close(noisy_gradient(attached, batches, quiet) * 4, whole)


def drawn_owners(examples, plan, source=words):
    return [
        [examples[index].person for index in unit] for unit in draw(units_of(examples, plan), plan, source)
    ]


def test_a_draw_of_persons_holds_at_most_the_cap_of_one_and_never_two_together(toy_examples):
    examples, plan = with_persons(toy_examples(8), "abacabaa"), replace(PERSONS, sampling_probability=1.0)
    assert units_of(examples, plan) == [[0, 2, 4, 6, 7], [1, 5], [3]]
    used = set()
    for _ in range(200):
        units = draw(units_of(examples, plan), plan, words)
        assert [len(unit) for unit in units] == [2, 2, 1] and units[1:] == [[1, 5], [3]]
        used.add(tuple(units[0]))
    assert used == {*combinations([0, 2, 4, 6, 7], 2)}  # one of ten is missed once in 10^8


def test_a_step_never_holds_more_than_the_cap_of_a_persons_records(toy_examples):
    examples = with_persons(toy_examples(8), "abacabaa")
    for rate in (0.5, 1.0):
        plan = replace(PERSONS, sampling_probability=rate, drawn="record")
        counts = [Counter(chain(*drawn_owners(examples, plan))) for _ in range(300)]
        assert max(count["a"] for count in counts) == 2 and max(count["c"] for count in counts) == 1
    assert all(len(unit) == 1 for unit in drawn_owners(examples, plan))


def test_records_are_drawn_by_the_law_that_is_accounted_for(toy_examples):
    """Of five records, two are eligible, each with the same chance, and drawn at one rate: Binomial(2, q)."""
    examples, plan = with_persons(toy_examples(6), "aaaaab"), replace(PERSONS, drawn="record")
    source, steps = seeded(bytes(32)), 20_000
    times, sizes = Counter(), Counter()
    for _ in range(steps):
        indices = [unit[0] for unit in draw(units_of(examples, plan), plan, source)]
        times.update(indices)
        sizes[sum(index < 5 for index in indices)] += 1
    expected = binom.pmf([0, 1, 2], 2, plan.sampling_probability) * steps
    assert chisquare([sizes[0], sizes[1], sizes[2]], expected).pvalue > 1e-4
    assert chisquare([times[index] for index in range(5)]).pvalue > 1e-4
    assert binomtest(times[5], steps, plan.sampling_probability).pvalue > 1e-4


@pytest.mark.parametrize("drawn", ["unit", "record"])
def test_whose_records_are_eligible_depends_on_no_other_person(toy_examples, drawn):
    """The chance of each record is the same, with another person of many records or without."""
    examples, plan = with_persons(toy_examples(8), "aaabbbbb"), replace(PERSONS, drawn=drawn)
    source, steps = seeded(bytes(31) + b"1"), 10_000
    times = [Counter(), Counter()]
    for count, chosen in zip(times, (examples, examples[:3]), strict=True):
        units = units_of(chosen, plan)
        for _ in range(steps):
            count.update(index for unit in draw(units, plan, source) for index in unit)
    for index in range(3):
        assert binomtest(times[0][index], steps, plan.sampling_probability * 2 / 3).pvalue > 1e-4
        assert binomtest(times[1][index], steps, plan.sampling_probability * 2 / 3).pvalue > 1e-4


def test_draws_come_from_the_systems_entropy(monkeypatch, toy_examples):
    examples, plan = with_persons(toy_examples(8), "aaabbbbb"), replace(PERSONS, drawn="record")
    units = units_of(examples, plan)
    assert len({str(draw(units, plan, words)) for _ in range(50)}) > 10
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    assert len({str(draw(units, plan, words)) for _ in range(5)}) == 1


def test_units_are_refused_that_cannot_be_drawn(toy_examples):
    examples = toy_examples(3)
    assert units_of(examples, PLAN) == [[0], [1], [2]]
    with pytest.raises(DataError, match=r"set data\.person"):
        units_of(with_persons(examples, ["a", None, "b"]), PERSONS)
    with pytest.raises(PrivacyError, match="not unit 'node'"):
        units_of(examples, replace(PLAN, unit="node", trust="central"))


BAD = {
    "nan": (float("nan"), 1.0),
    "inf": (float("inf"), 1.0),
    "overflow": (3e38, -3e38),
    "huge": (1e6 + 1, -1e6),
    "huger": (1e15, -1e15 + 2**30),
}


def poisoned(examples, rng):
    """Some records with losses that are not finite, or whose gradients are huge."""
    found = list(examples)
    for index in rng.choice(len(found), 3, replace=False):
        weights = found[index].weights.copy()
        weights[-1], weights[-2] = BAD[list(BAD)[rng.integers(len(BAD))]]
        weights[-3] = 0
        found[index] = replace(found[index], weights=weights)
    return found


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("seed", range(6))
def test_one_unit_moves_the_sum_by_at_most_the_clip(toy, toy_examples, engine, seed):
    rng = np.random.default_rng(seed)
    attached, clip = toy("llama", "lora"), float(10 ** rng.uniform(-3, 1))
    examples = poisoned(toy_examples(8, seed=seed), rng)
    units = np.sort(rng.integers(0, 5, 8)) if seed % 2 else np.arange(8)
    support = np.flatnonzero(rng.random(attached.layout.size) < 0.3) if seed % 3 else None
    arguments = (support, engine)
    whole, norms = clipped_sum(attached, collate(examples, 0), clip, units, *arguments)
    assert np.isfinite(whole).all()
    for unit, norm in zip(np.unique(units), norms, strict=True):
        rest = [example for example, owner in zip(examples, units, strict=True) if owner != unit]
        left, _ = clipped_sum(attached, collate(rest, 0), clip, units[units != unit], *arguments)
        moved = np.linalg.norm(whole - left)
        assert moved <= clip * (1 + 1e-6)
        expected = min(norm, clip) if np.isfinite(norm) else 0
        assert moved == pytest.approx(expected, rel=1e-4, abs=1e-5 * clip)


def test_noise_is_drawn_on_the_support_alone(toy, toy_examples):
    attached, sizes = toy(), []
    support = np.arange(0, attached.layout.size, 7)

    def source(count):
        sizes.append(count)
        return np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)

    step = noisy_gradient(attached, [(collate(toy_examples(2), 0), None)], Mechanism(PLAN, support, source))
    assert sum(sizes) in (len(support), len(support) + 1)
    assert (step[support] != 0).all()
    step[support] = 0
    assert not step.any()


@pytest.mark.parametrize("shape", [(3, 1), (2, 256), (3, 257), (2, 12_300), (2, 0), (0, 5)])
def test_squared_rows_equal_float64(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    found = squared_rows(matrix)
    assert found.dtype == torch.float64 and found.shape == (shape[0],)
    torch.testing.assert_close(found, matrix.double().square().sum(1), rtol=1e-6, atol=0)


def test_squared_rows_of_many_values_keep_their_precision():
    matrix = torch.full((1, 3_000_001), 0.1)
    assert float(squared_rows(matrix)) == pytest.approx(3_000_001 * float(matrix[0, 0]) ** 2, rel=5e-7)


def test_squared_rows_say_what_is_not_finite():
    rows = torch.tensor([[1.0, float("nan")], [float("inf"), 0], [3e38, 3e38], [3.0, 4.0]])
    assert torch.isfinite(squared_rows(rows)).tolist() == [False, False, False, True]

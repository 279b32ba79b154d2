"""Whole records are found in undefended gradients, and in nothing else."""

import time
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.adapters import attach
from fedpeft.adapters.methods.lora import ROWS
from fedpeft.config.models import AdapterConfig
from fedpeft.errors import FedPeftError
from fedpeft_attacks.sequences import Bag, Budget, assemble, assemble_from
from fedpeft_attacks.sequences.dager import dager
from fedpeft_attacks.sequences.inversion import invert
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.sequences.rouge import rouge_l
from fedpeft_attacks.tokens.adversary_knowledge import layer_of, special_tokens
from fedpeft_attacks.views import Guess, Knowledge, NotApplicable, Start, View
from fedpeft_attacks.work import Work

ALL = AdapterConfig(skip_layers=(), aggregation="naive", rank=16)
SMALL = AdapterConfig(skip_layers=(), aggregation="naive", rank=4)
"""Its row spaces are smaller than a record, so the beam alone looks for it."""
BUDGET = Budget(longest=24)

pytestmark = pytest.mark.portable


def view_of(base, rows, adapter=ALL):
    """The gradient of a batch under a warm adapter, as an insider sees it."""
    attached = attach(base, adapter, seed=0)
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(scale=0.02, size=tuple(t.shape)) if "lora_B" in name else t.detach().numpy()
        for name, t in attached.parameters.items()
    }
    attached.load(attached.layout.flatten(values))
    layer = layer_of(attached)
    uniform, given = np.full(len(layer.inputs), 1 / len(layer.inputs)), special_tokens(base)
    start = Start(attached, attached.get())
    known = Knowledge(
        layer.inputs,
        layer.readers,
        {},
        uniform,
        given,
        rows=ROWS,
        start=start,
        approximation=layer.approximation,
    )
    truth = {token for row in rows for token in row} - given
    return View(
        "gradient",
        "insider",
        "lora",
        attached.layout,
        Probe.of(start).gradient(rows),
        known,
        len(truth),
        len(rows),
    )


def test_records_are_found_exactly_and_the_attack_knows_it(trained_base, sentences):
    found = 0
    for seed in range(5):
        rows = sentences(1, seed)
        guess = assemble(view_of(trained_base, rows), BUDGET)
        assert isinstance(guess, Guess)
        is_right = guess.sequences == (tuple(rows[0]),)
        assert guess.certain == (is_right,)
        if is_right:
            assert set(guess.ranking[: guess.claimed]) == set(rows[0]) - {1, 2}
            assert guess.work == Work(len(rows[0]) - 1, BUDGET.steps + BUDGET.longest)  # one step a token
        found += is_right
    assert found >= 4


def test_the_speed_of_the_machine_changes_nothing(trained_base, sentences, monkeypatch):
    """A machine that is a hundred times slower does the same work, and so has the same power."""
    view = view_of(trained_base, sentences(1, 7), SMALL)
    fast, budget = assemble(view, replace(BUDGET, steps=12)), replace(BUDGET, steps=12)
    clock = time.process_time
    monkeypatch.setattr(time, "process_time", lambda: 100 * clock())
    slow = assemble(view, budget)
    assert isinstance(slow, Guess)
    assert slow == fast
    assert slow.work == Work(12, 12, is_cut=True)


def test_what_the_safety_stop_ends_is_not_finished(trained_base, sentences):
    view = view_of(trained_base, sentences(1, 7))
    guess = assemble(view, replace(BUDGET, seconds=0.0))
    assert isinstance(guess, Guess)
    assert guess.work.is_stopped and not guess.work.is_cut
    assert guess.certain == (False,)


def test_an_update_of_other_data_gives_other_records(trained_base, sentences):
    mine, other = sentences(1, 7), sentences(1, 8)
    guess = assemble(view_of(trained_base, other), BUDGET)
    assert isinstance(guess, Guess)
    assert rouge_l(guess.sequences[0], mine[0]) < 0.6


def test_random_values_give_nothing_that_is_certain(trained_base, sentences):
    view = view_of(trained_base, sentences(1, 7))
    noise = np.random.default_rng(1).normal(size=view.values.shape).astype(np.float32)
    found = assemble_from(replace(view, values=noise), Bag(), Budget(steps=30, longest=8))
    assert found.certain == (False,)
    assert found.unexplained > 0.9


@pytest.mark.slow
def test_a_step_against_the_gradient_is_read_like_the_gradient(trained_base, sentences):
    rows = sentences(1, 9)
    view = view_of(trained_base, rows)
    guess = assemble(replace(view, stage="update", values=-0.01 * view.values), BUDGET)
    assert isinstance(guess, Guess)
    assert guess.sequences == (tuple(rows[0]),)
    assert guess.certain == (True,)


def test_learned_positions_are_no_defence(tiny_base):
    """GPT-2's first layer reads token and position; the attack runs the base, so it knows both."""
    base = tiny_base("gpt2")
    end = base.tokenizer.eos_token_id
    start = base.tokenizer.bos_token_id if base.tokenizer.bos_token_id is not None else end
    row = [start, 9, 14, 30, 11, 25, end]
    bag = Bag(tuple(range(8, 40)), 32)
    found = assemble_from(view_of(base, [row]), bag, Budget(longest=10))
    assert found.sequences == (tuple(row),)
    assert found.certain == (True,)


@pytest.mark.slow
def test_a_batch_is_bounded_in_work_and_has_as_many_records(trained_base, sentences):
    rows = sentences(4, 3)
    found = assemble_from(view_of(trained_base, rows), Bag(), Budget(steps=40, longest=24))
    assert 1 <= len(found.sequences) <= 4
    assert len(found.certain) == len(found.sequences)
    assert found.work == Work(40, 40, is_cut=True)


@pytest.mark.slow
def test_the_same_view_gives_the_same_answer(trained_base, sentences):
    view = view_of(trained_base, sentences(1, 11))
    first, second = (assemble(view, BUDGET) for _ in range(2))
    assert isinstance(first, Guess) and isinstance(second, Guess)
    assert first.sequences == second.sequences


def test_it_says_what_it_needs(trained_base, sentences):
    view = view_of(trained_base, sentences(1, 7))
    blind = replace(view, knowledge=replace(view.knowledge, start=None))
    assert isinstance(assemble(blind), NotApplicable)
    assert isinstance(assemble(replace(view, records=0)), NotApplicable)
    with pytest.raises(FedPeftError, match="model"):
        assemble_from(blind, Bag())


def test_dager_finds_short_records_and_nothing_beyond_its_rank(trained_base, sentences):
    shorts = [[*sentences(1, seed)[0][:10], 2] for seed in range(12)]
    found = [dager(view_of(trained_base, [short]), BUDGET).sequences for short in shorts]
    assert sum(answer == (tuple(short),) for answer, short in zip(found, shorts, strict=True)) >= 3
    for seed in range(3):
        assert dager(view_of(trained_base, sentences(12, seed)), BUDGET).sequences == ()


@pytest.mark.slow
def test_inversion_by_gradient_match_lowers_its_objective(trained_base, sentences):
    for seed in range(3):
        view = view_of(trained_base, [[*sentences(1, seed)[0][:4], 2]])
        for kind in ("tag", "lamp"):
            early, late = (invert(view, 5, kind, Budget(steps=steps)) for steps in (1, 60))
            assert late.unexplained < early.unexplained
            assert len(late.sequences[0]) == 5
            assert late.work.steps == 60

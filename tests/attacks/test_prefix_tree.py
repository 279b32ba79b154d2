"""Batches of records are found exactly where row spaces are complete, and nothing is where they are not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach
from fedpeft.config.models import AdapterConfig
from fedpeft_attacks.evidence.undefended_reference import warm_start
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_attacks.sequences import Bag, Budget, assemble_from, prefix_tree
from fedpeft_attacks.sequences.complete_spans import CompleteSpans, complete_basis
from fedpeft_attacks.sequences.dager import FULL, dager
from fedpeft_attacks.sequences.prefix_tree import PrefixTree, chosen
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.tokens.adversary_knowledge import layer_of, special_tokens
from fedpeft_attacks.views import Knowledge, Start, View
from fedpeft_attacks.work import Meter, Work

BUDGET = Budget(steps=4, longest=16)
FRAME = RecordFrame(begin=(1,), end=2)

pytestmark = pytest.mark.portable


def view_of(base, rows, rank=32, warm=True, frame=FRAME):
    attached = attach(base, AdapterConfig(skip_layers=(), aggregation="naive", rank=rank), seed=0)
    if warm:
        warm_start(attached)
    layer, start = layer_of(attached), Start(attached, attached.get())
    uniform, method = np.full(len(layer.inputs), 1 / len(layer.inputs)), attached.method
    known = Knowledge(
        layer.inputs,
        layer.readers,
        {},
        uniform,
        special_tokens(base),
        rows=method.token_rows,
        start=start,
        frame=frame,
    )
    values, tokens = Probe.of(start, frame).gradient(rows), {token for row in rows for token in row}
    return View("gradient", "insider", "lora", attached.layout, values, known, len(tokens), len(rows))


@pytest.fixture
def short(sentences):
    """Records of 9 to 12 tokens, whose positions are fewer than the base is wide."""

    def make(count, seed, begin=(1,), answer=()):
        rows = sentences(count, seed)
        return [[*begin, *row[1 : 9 + place % 4], *answer, 2] for place, row in enumerate(rows)]

    return make


def exactly(assembled, rows):
    return sorted(assembled.sequences) == sorted(map(tuple, rows)) and all(assembled.certain)


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("count", [1, 4])
def test_all_records_are_found_and_the_attack_knows_it(trained_base, short, count, warm):
    """In the first round, whose A has no gradient, the rows of B say the same through A."""
    for seed in range(3):
        rows = short(count, seed)
        found = assemble_from(view_of(trained_base, rows, 32 if warm else 64, warm), Bag(), BUDGET)
        assert exactly(found, rows)
        assert found.work == Work(max(map(len, rows)) - 1, BUDGET.steps + BUDGET.longest)


def test_a_step_against_the_gradient_shows_the_same(trained_base, short):
    rows = short(4, 5)
    view = view_of(trained_base, rows)
    assert exactly(
        assemble_from(replace(view, stage="update", values=-0.01 * view.values), Bag(), BUDGET), rows
    )


def test_a_record_that_is_there_twice_is_found_twice(trained_base, short):
    first, second = short(2, 6)
    assert exactly(
        assemble_from(view_of(trained_base, [first, second, first]), Bag(), BUDGET), [first, second, first]
    )


def test_no_begin_token_is_needed(trained_base, short):
    rows = short(3, 7, begin=())
    frame = replace(FRAME, begin=())
    assert exactly(assemble_from(view_of(trained_base, rows, frame=frame), Bag(), BUDGET), rows)


def test_a_prompt_whose_loss_does_not_count_is_read_all_the_same(trained_base, short):
    rows = short(3, 8, answer=(50,))
    frame = replace(FRAME, prompt_weight=0.0, answers=((50, 2), (51, 2)))
    assert exactly(assemble_from(view_of(trained_base, rows, frame=frame), Bag(), BUDGET), rows)


def test_it_stays_away_where_row_spaces_are_not_complete(trained_base, short, sentences):
    """Random values, values with noise, a rank below the positions, and more positions than dimensions."""
    view, noise = view_of(trained_base, short(4, 9)), np.random.default_rng(1)
    drawn = noise.normal(size=view.values.shape).astype(np.float32)
    spoilt = view.values + np.float32(1e-3 * view.values.std()) * drawn
    views = [
        replace(view, values=drawn),
        replace(view, values=spoilt),
        replace(view, values=np.sign(view.values)),
    ]
    views += [view_of(trained_base, short(4, 9), rank=8), view_of(trained_base, sentences(8, 9), rank=64)]
    for each in views:
        assert PrefixTree.of(each, Probe.of(each.knowledge.start, FRAME), 24) is None
    found = assemble_from(views[0], Bag(), BUDGET)
    assert not any(found.certain)
    assert found.work == Work(BUDGET.steps, BUDGET.steps, is_cut=True)


def test_the_gradient_of_other_records_is_not_taken_for_these(trained_base, short):
    rows, others = short(4, 10), short(4, 11)
    found = assemble_from(view_of(trained_base, others), Bag(), BUDGET)
    assert exactly(found, others)
    assert not {*map(tuple, rows)} & {*found.sequences}


def test_the_rank_of_complete_spans_is_the_number_of_different_inputs(trained_base, short):
    rows = short(4, 12)
    view = view_of(trained_base, rows)
    spans = CompleteSpans.of(view.values, Probe.of(view.knowledge.start, FRAME), view.knowledge.readers)
    assert spans is not None
    prefixes = {tuple(row[:end]) for row in rows for end in range(1, len(row))}
    assert {span.rank for span in spans.later} == {len(prefixes)}
    assert {span.rank for span in spans.tokens} == {len({token for row in rows for token in row[:-1]})}


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_a_basis_is_complete_where_a_gap_follows_the_last_direction(rank):
    draws = np.random.default_rng(rank)
    inputs = draws.normal(size=(rank, 40)).astype(np.float32)
    rows = draws.normal(size=(60, rank)).astype(np.float32) @ inputs
    basis = complete_basis(rows)
    assert basis is not None and basis.shape == (rank, 40)
    x = torch.from_numpy(inputs)
    assert float((x - (x @ basis.T) @ basis).norm(dim=1).max()) < 1e-4
    assert complete_basis(rows[:rank]) is None
    assert complete_basis(rows + 1e-3 * draws.normal(size=rows.shape)) is None
    assert complete_basis(np.zeros((3, 4))) is None


def test_leaves_are_chosen_by_their_gradients():
    draws = np.random.default_rng(3)
    leaves = [(1, token, 2) for token in range(3, 9)]
    table = {leaf: draws.normal(size=200).astype(np.float32) for leaf in leaves}
    mean = (2 * table[leaves[1]] + table[leaves[4]]) / 3
    for scale, is_raw in ((1.0, True), (-0.0, True), (0.01, False)):
        picked = chosen(leaves, 3, np.float32(scale) * mean, table.__getitem__, is_raw)
        assert sorted(picked) == ([leaves[1], leaves[1], leaves[4]] if scale else [])
    assert chosen([], 3, mean, table.__getitem__, True) == []
    few = leaves[1:3]
    assert set(chosen(few, 3, mean, table.__getitem__, True)) == {leaves[1]}
    assert set(chosen(few, 3, mean, table.__getitem__, True, is_weighted=False)) == {*few}


@pytest.mark.parametrize("shared", [True, False])
def test_the_next_inputs_are_those_of_a_whole_pass(trained_base, sentences, shared):
    rows = sentences(2, 4)
    view = view_of(trained_base, rows)
    probe = Probe.of(view.knowledge.start, FRAME)
    names = [group[0] for group in probe.groups[:4]]
    vars(probe)["takes_masks"] = shared
    for length in (0, 6):
        ids, proposals = torch.tensor(rows)[:, :length], torch.tensor([[5, 9, 30], [7, 9, 31]])
        new = probe.next_inputs(ids, proposals, names)
        for row, place in ((0, 0), (0, 2), (1, 1)):
            whole = torch.tensor([[*rows[row][:length], int(proposals[row, place])]])
            _, seen = probe.inputs(whole, names)
            for name in names:
                assert torch.allclose(new[name][row, place], seen[name][0, -1], atol=1e-4)
    del vars(probe)["takes_masks"]


def test_looking_at_fewer_prefixes_together_changes_nothing(trained_base, short, monkeypatch):
    rows = short(3, 13, begin=())
    view, frame = view_of(trained_base, rows, frame=replace(FRAME, begin=())), replace(FRAME, begin=())
    leaves = []
    for floats in (prefix_tree._FLOATS, 1):
        monkeypatch.setattr(prefix_tree, "_FLOATS", floats)
        tree = PrefixTree.of(view, Probe.of(view.knowledge.start, frame), 16)
        assert tree is not None
        leaves.append(set(tree.leaves(Meter())))
    assert leaves[0] == leaves[1] == {*map(tuple, rows)}


def test_a_search_that_the_safety_stop_ends_says_so(trained_base, short):
    found = assemble_from(view_of(trained_base, short(4, 14)), Bag(), replace(BUDGET, seconds=0.0))
    assert found.work.is_stopped and not any(found.certain)


def test_dagers_search_keeps_records_of_every_length(trained_base, short):
    """Of a batch whose positions leave the 20 dimensions that its code asks for."""
    rows = short(3, 15)
    assert {*dager(view_of(trained_base, rows), Budget(longest=16), FULL).sequences} == {*map(tuple, rows)}

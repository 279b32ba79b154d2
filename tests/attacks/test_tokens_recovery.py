"""Recovery over solvers and rounds: who speaks when, what joins, and noise that is read from the rows."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.adapters import attach
from fedpeft.adapters.methods.lora import ROWS
from fedpeft.config.models import AdapterConfig
from fedpeft.exchange.layout import Layout
from fedpeft_attacks.evidence.undefended_reference import undefended, warm_start
from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of
from fedpeft_attacks.tokens.blocks import Block, row_space
from fedpeft_attacks.tokens.sparse_bayes import sparse_bayes
from fedpeft_attacks.tokens.sparse_recovery import joined, recover, sparse_recovery
from fedpeft_attacks.views import Guess, Knowledge, NotApplicable, View

pytestmark = pytest.mark.portable

VOCABULARY, WIDTH = 200, 32
UNIFORM = np.full(VOCABULARY, 1 / VOCABULARY)


def _known(atoms, **changes):
    return Knowledge(atoms, frozenset({"layers.0.q"}), {}, UNIFORM, rows=ROWS, **changes)


def _rows(rng, atoms, support, count):
    return (rng.normal(size=(count, len(support))) @ atoms[list(support)]).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def atoms(rng):
    return rng.normal(size=(VOCABULARY, WIDTH))


@pytest.mark.parametrize(
    ("tokens", "rows", "solver"),
    [(6, 20, "span check"), (12, 4, "matching pursuit"), (40, 64, "sparse Bayesian recovery")],
)
def test_the_cheapest_solver_that_explains_the_update_speaks(rng, atoms, tokens, rows, solver):
    support = set(range(0, 3 * tokens, 3))
    block = Block(_rows(rng, atoms, sorted(support), rows), atoms)
    answer = sparse_recovery([block], _known(atoms), tokens)
    ranking, claimed, method = answer.tokens, answer.claimed, answer.method
    assert not answer.note
    assert method == solver
    assert claimed == tokens
    hits = len(support & set(ranking[:tokens]))
    assert hits == tokens if tokens < WIDTH else hits > 0.6 * tokens  # chance: 0.2
    assert sorted(ranking) == list(range(VOCABULARY))


def test_approximate_atoms_are_left_to_the_bayesian_recovery(rng, atoms):
    block = Block(_rows(rng, atoms, range(6), 20), atoms)
    assert (
        sparse_recovery([block], _known(atoms, approximation="near"), 6).method == "sparse Bayesian recovery"
    )


@pytest.mark.parametrize(
    "spoil", [np.sign, lambda x: x + 0.3 * np.random.default_rng(1).normal(size=x.shape)]
)
def test_bayes_reads_spoilt_rows_by_finding_their_noise(rng, atoms, spoil):
    support = set(range(0, 30, 3))
    hits = 0
    for _ in range(4):
        block = Block(spoil(_rows(rng, atoms, sorted(support), 8)), atoms)
        hits += len(support & set(sparse_bayes([block], UNIFORM).ranking[: len(support)]))
    assert hits >= 20  # of 40; chance 2, so false alarms are far below 1e-6


def test_bayes_is_at_chance_on_noise(rng, atoms):
    support, hits = set(range(0, 60, 3)), 0
    for _ in range(5):
        block = Block(rng.normal(size=(16, WIDTH)), atoms)
        hits += len(support & set(sparse_bayes([block], UNIFORM).ranking[: len(support)]))
    assert hits <= 30  # of 100; expected 10


def test_one_row_alone_can_be_read(rng, atoms):
    ranking = sparse_bayes([Block(atoms[7:8] + atoms[9:10], atoms)], UNIFORM).ranking
    assert set(ranking[:2]) == {7, 9}


@pytest.mark.parametrize("count", [40, 128, 300])
def test_half_of_the_rows_never_hides_a_direction(rng, atoms, count):
    rows = _rows(rng, atoms, range(8), count)
    rows[1::2] += _rows(rng, atoms, range(20, 24), count)[1::2]  # only the odd rows know these tokens
    basis = row_space(rows)
    assert basis.shape == (12, WIDTH)
    assert np.allclose(basis @ basis.T, np.eye(12), atol=1e-6)
    assert np.abs(rows - (rows @ basis.T) @ basis).max() < 1e-3


def _view(atoms, rows, **changes):
    layout = Layout.of({"layers.0.q.lora_A.weight": rows})
    return View("gradient", "insider", "test", layout, rows.ravel(), _known(atoms, **changes), 20)


def test_rounds_over_one_dictionary_become_one_block(rng, atoms):
    supports = (range(10), range(6, 16))
    views = [_view(atoms, _rows(rng, atoms, support, 3)) for support in supports]
    (block,) = joined(views)
    assert block.rows.shape == (6, WIDTH)
    views = [replace(view, tokens=16) for view in views]
    guess = recover(views)
    assert set(guess.ranking[:16]) == set(range(16))
    assert guess.claimed == 16


def test_dictionaries_that_differ_stay_apart(rng, atoms):
    other = rng.normal(size=atoms.shape)
    views = [_view(table, _rows(rng, table, range(10), 3)) for table in (atoms, other)]
    assert [block.rows.shape[0] for block in joined(views)] == [3, 3]
    assert set(recover([replace(view, tokens=10) for view in views]).ranking[:10]) == set(range(10))


def test_full_blocks_do_not_keep_the_others_from_being_read(rng, atoms):
    narrow = rng.normal(size=(VOCABULARY, 4))
    blocks = [Block(_rows(rng, table, range(12), 5), table) for table in (narrow, atoms)]
    assert blocks[0].is_full
    answer = sparse_recovery(blocks, _known(atoms), 12)
    assert (answer.claimed, answer.method) == (12, "matching pursuit")
    assert set(answer.tokens[:12]) == set(range(12))


def test_special_tokens_are_no_guess(rng, atoms):
    guess = recover([_view(atoms, _rows(rng, atoms, range(6), 20), special=frozenset({0, 1}))])
    assert guess.claimed == 4
    assert not {0, 1} & set(guess.ranking)


def test_a_round_without_rows_adds_nothing(atoms, rng):
    empty = _view(atoms, np.zeros((3, WIDTH), np.float32))
    assert isinstance(recover([empty]), NotApplicable)
    assert isinstance(recover([empty, _view(atoms, _rows(rng, atoms, range(6), 20))]), Guess)


def test_the_warm_start_moves_all_but_lora_a(trained_base):
    for adapter in (
        AdapterConfig(skip_layers=(), aggregation="naive", rank=4),
        AdapterConfig(skip_layers=(), method="ia3"),
    ):
        attached = attach(trained_base, adapter, seed=0)
        before = attached.layout.split(attached.get())
        warm_start(attached)
        moved = {
            name
            for name, value in attached.layout.split(attached.get()).items()
            if (value != before[name]).any()
        }
        assert moved == {name for name in attached.layout.names if ".lora_A." not in name}


def test_several_rounds_of_the_reference_are_read_together(trained_base, sentences):
    reference = undefended(trained_base, rank=4, prior=np.full(1024, 1 / 1024))
    batches = [sentences(1, seed) for seed in range(2)]
    truth = {token for rows in batches for row in rows for token in row} - {1, 2}
    together = recover([reference.view(rows, truth) for rows in batches])
    assert len(truth & set(together.ranking[: len(truth)])) >= 0.8 * len(truth)
    assert knowledge_of(reference.attached, UNIFORM, ("", 2), 0.0).approximation is None

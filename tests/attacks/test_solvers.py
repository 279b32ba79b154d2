"""The solvers against naive twins on small dictionaries."""

from itertools import combinations

import numpy as np
import pytest

from fedpeft_attacks.tokens.blocks import Block, row_space, unit_rows
from fedpeft_attacks.tokens.matching_pursuit import matching_pursuit
from fedpeft_attacks.tokens.span_check import INSIDE, NEAR, limit, outside, span_check
from fedpeft_attacks.tokens.sparse_bayes import sparse_bayes
from fedpeft_attacks.tokens.sparse_recovery import note_of

pytestmark = pytest.mark.portable


def _block(rng, tokens, width, support, rows):
    atoms = rng.normal(size=(tokens, width))
    return Block(rng.normal(size=(rows, len(support))) @ atoms[support], atoms)


def test_row_space_is_orthonormal_and_ignores_rounding():
    rng = np.random.default_rng(0)
    exact = (rng.normal(size=(9, 3)) @ rng.normal(size=(3, 12))).astype(np.float32)
    basis = row_space(exact)
    assert basis.shape == (3, 12)
    assert np.allclose(basis @ basis.T, np.eye(3))
    assert row_space(np.zeros((4, 12))).shape == (0, 12)


def test_unit_rows_keep_zeros():
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


@pytest.mark.parametrize("seed", range(3))
def test_span_check_is_the_least_squares_residual(seed):
    rng = np.random.default_rng(seed)
    block = _block(rng, 40, 16, [3, 7, 11, 20], rows=6)
    naive = []
    for atom in block.atoms:
        unit = atom / np.linalg.norm(atom)
        fitted = block.rows.T @ np.linalg.lstsq(block.rows.T, unit, rcond=None)[0]
        naive.append(np.linalg.norm(unit - fitted))
    assert np.allclose(outside(block), naive, atol=1e-6)
    ranking, claimed = span_check([block])
    assert claimed == 4
    assert set(ranking[:4]) == {3, 7, 11, 20}
    assert sorted(ranking) == list(range(40))


def test_a_full_row_space_claims_nothing():
    block = _block(np.random.default_rng(0), 40, 6, list(range(12)), rows=9)
    assert block.is_full
    assert (outside(block) < INSIDE).all()
    assert span_check([block])[1] == 0


def _brute_force(block, size):
    """The support of this size whose span leaves least of the row space."""
    basis = block.row_space

    def left(support):
        span = np.linalg.qr(block.atoms[list(support)].T)[0]
        return np.linalg.norm(basis - basis @ span @ span.T)

    return min(combinations(range(len(block.atoms)), size), key=left)


@pytest.mark.parametrize("seed", range(5))
def test_pursuit_finds_what_brute_force_finds_beyond_the_rank(seed):
    rng = np.random.default_rng(seed)
    support = sorted(rng.choice(16, 4, replace=False).tolist())
    block = _block(rng, 16, 10, support, rows=2)
    found = matching_pursuit([block], 4)
    assert sorted(found.chosen) == sorted(_brute_force(block, 4)) == support
    assert found.unexplained < 1e-8
    assert sorted(found.ranking) == list(range(16))


def test_pursuit_equals_the_plain_one_that_projects_the_dictionary():
    rng = np.random.default_rng(4)
    block = _block(rng, 60, 20, list(range(0, 36, 3)), rows=5)
    atoms, space, chosen = unit_rows(block.atoms), block.row_space.copy(), []
    for _ in range(12):
        _, strengths, basis = np.linalg.svd(space, full_matrices=False)
        basis, lengths = basis[strengths > 1e-4], np.maximum((atoms**2).sum(axis=1), 1e-6)
        scores = ((atoms @ basis.T) ** 2).sum(axis=1) / lengths
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        step = atoms[chosen[-1]] / np.linalg.norm(atoms[chosen[-1]])
        atoms, space = atoms - np.outer(atoms @ step, step), space - np.outer(space @ step, step)
    found = matching_pursuit([block], 12).chosen
    assert found[:7] == chosen[:7]  # later choices are ties: the right atoms lie in the row space
    assert sorted(found) == sorted(chosen) == list(range(0, 36, 3))


def test_blocks_of_several_dictionaries_share_their_tokens():
    rng = np.random.default_rng(1)
    support = [2, 9, 30, 31, 50]
    blocks = [_block(rng, 64, 8, support, rows=3) for _ in range(3)]
    assert sorted(matching_pursuit(blocks, 5).chosen) == support


def test_an_update_of_zeros_leaves_nothing_to_pursue():
    found = matching_pursuit([Block(np.zeros((3, 5)), np.eye(5))], 3)
    assert found.chosen == []
    assert sorted(found.ranking) == [0, 1, 2, 3, 4]


def test_sparse_bayes_ranks_tokens_where_the_row_space_is_full():
    rng = np.random.default_rng(2)
    support = list(range(12))
    blocks = [_block(rng, 100, 8, support, rows=200) for _ in range(3)]
    assert all(block.is_full for block in blocks)
    ranking = sparse_bayes(blocks, np.full(100, 0.01)).ranking
    assert len(set(ranking[:12]) & set(support)) >= 10
    assert sorted(ranking) == list(range(100))


@pytest.mark.parametrize("width", [8, 24])
def test_a_vocabulary_that_is_too_large_is_passed_once_and_then_in_part(width):
    rng = np.random.default_rng(6)
    support = list(range(0, 60, 6))
    block = _block(rng, 400, width, support, rows=40)
    prior = np.full(400, 1e-3)
    prior[:20] = 0.05
    whole = sparse_bayes([block], prior)
    part = sparse_bayes([block], prior, products=80 * width**2)
    assert (whole.among, part.among) == (400, 80)
    assert sorted(part.ranking) == list(range(400))
    assert len(set(part.ranking[:10]) & set(support)) >= len(set(whole.ranking[:10]) & set(support)) - 2
    assert not note_of(whole)
    assert "passed once over all 400 tokens" in note_of(part) and "80 likeliest" in note_of(part)


def test_in_part_too_the_recovery_is_at_chance_on_noise():
    rng, support, hits = np.random.default_rng(7), set(range(0, 60, 3)), 0
    for _ in range(5):
        atoms = rng.normal(size=(400, 16))
        block = Block(rng.normal(size=(16, 16)), atoms)
        hits += len(support & set(sparse_bayes([block], np.full(400, 1 / 400), products=2**14).ranking[:20]))
    assert hits <= 20  # of 100; expected 5


def test_the_limit_of_the_span_check_follows_from_the_other_tokens():
    rng = np.random.default_rng(3)
    assert INSIDE < limit(np.sort(rng.uniform(0.6, 0.9, 2000)), 0) <= NEAR
    assert limit(np.linspace(1e-3, 1, 2000), 0) == INSIDE  # tokens at every angle: nothing tells them apart


@pytest.mark.parametrize("tilt", [0.0, 0.005, 0.03])
def test_tokens_near_the_row_space_are_found_where_they_make_it_up(tilt):
    rng = np.random.default_rng(4)
    atoms = rng.normal(size=(2000, 48))
    rows = rng.normal(size=(20, 8)) @ atoms[:8]
    tilted = atoms + tilt * np.linalg.norm(atoms, axis=1)[:, None] * rng.normal(size=atoms.shape) / 48**0.5
    ranking, claimed = span_check([Block(rows, tilted)])
    assert claimed == 8 and set(ranking[:8]) == set(range(8))


def test_nothing_is_found_where_ranks_are_fewer_than_tokens():
    rng = np.random.default_rng(5)
    atoms = rng.normal(size=(2000, 48))
    for rows in (6, 20):
        assert span_check([Block(rng.normal(size=(rows, 40)) @ atoms[:40], atoms)])[1] == 0

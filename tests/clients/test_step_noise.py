"""Correlated noise over a node's rounds: no row hides two releases, whatever is cut off, repeated or lost."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.privacy import Ledger
from fedpeft.privacy.matrix import optimised
from fedpeft.training import local as training
from fedpeft_clients.rounds import local_round, step_noise
from fedpeft_clients.rounds.handlers import train
from fedpeft_clients.rounds.node_context import NodeContext

PRIVACY = {
    "unit": "record",
    "noise_multiplier": 1.0,
    "sampling_probability": 0.3,
    "max_noise_to_signal": 99.0,
    "bands": 2,
}
SETTINGS = {
    "privacy": PRIVACY,
    "federation": {"optimiser": "sgd", "momentum": 0.0, "rounds": 4},
    "exchange": {"up": {"codec": "dense-fp32"}},
}
STEPS = 2


@pytest.fixture
def node(organisation, monkeypatch):
    """An organisation whose rows of Z and of C^-1 Z are written down, in order."""
    from fedpeft.privacy.step_matrix import StepMatrix

    home, coordinator = organisation(**SETTINGS)
    real, fresh, rows = StepMatrix.next_row, [], []

    def next_row(matrix, row):
        fresh.append(row)
        rows.append(real(matrix, row))
        return rows[-1]

    monkeypatch.setattr(StepMatrix, "next_row", next_row)
    return home, coordinator, fresh, rows


def order(home, coordinator, round):
    """An order for a round from a state near the start."""
    if round == 1:
        return coordinator.first_task(), b""
    return coordinator.whole(NodeContext(home).attached.initial(), round)


def mixed(rows, before):
    """Rows of Z that these rows of C^-1 Z come from, after ``before``; None where a matrix begins."""
    column = optimised(2, 4 * STEPS)
    previous = [before, *rows[:-1]]
    return [
        column[0] * row + (0 if old is None else column[1] * old)
        for old, row in zip(previous, rows, strict=True)
    ]


def cut_off(node, monkeypatch, round, where, name):
    """A round that ends where the process is killed."""

    def killed(*_):
        raise KeyboardInterrupt

    home, coordinator, *_ = node
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, name, killed)
        train(NodeContext(home), *order(home, coordinator, round))


def test_rounds_go_on_with_one_matrix_and_leave_nothing_after_the_last(node):
    home, coordinator, fresh, rows = node
    for round in range(1, 5):
        assert home.step_noise.exists() == (round > 1)
        train(NodeContext(home), *order(home, coordinator, round))
        if round < 4:
            assert stat.S_IMODE(home.step_noise.stat().st_mode) == 0o600
            with np.load(home.step_noise) as stored:
                np.testing.assert_array_equal(stored["history"], [rows[-1]])
                assert len(stored["members"]) == 16 * 12
    np.testing.assert_allclose(mixed(rows, None), fresh, atol=1e-12)
    assert not home.step_noise.exists()


def test_a_repeated_order_is_answered_with_the_stored_bytes(node):
    home, coordinator, fresh, _ = node
    task, blob = order(home, coordinator, 1)
    first, stored = train(NodeContext(home), task, blob), home.step_noise.read_bytes()
    assert train(NodeContext(home), task, blob) == first
    assert len(fresh) == STEPS and home.step_noise.read_bytes() == stored


KILLS = {
    "before its first row": (local_round, "load_examples"),
    "after its first row": (training, "_store"),
    "before its noise is stored": (step_noise, "store"),
}


@pytest.mark.parametrize("moment", KILLS)
def test_after_a_round_that_was_cut_off_a_new_matrix_begins(node, monkeypatch, moment):
    home, coordinator, fresh, rows = node
    train(NodeContext(home), *order(home, coordinator, 1))
    with np.load(home.step_noise) as stored:
        key = stored["key"]
    cut_off(node, monkeypatch, 2, *KILLS[moment])
    lost = len(rows)
    train(NodeContext(home), *order(home, coordinator, 2))
    np.testing.assert_allclose(mixed(rows[lost:], None), fresh[lost:], atol=1e-12)
    with np.load(home.step_noise) as stored:
        assert (stored["key"] != key).any() and stored["done"] == STEPS
    rounds = [e.body["round"] for e in Ledger(home.ledger).entries() if e.kind == "reserve"]
    assert rounds == [1, 2, 2]


def test_a_round_whose_noise_was_stored_is_repeated_with_later_rows_of_the_same_matrix(node, monkeypatch):
    home, coordinator, fresh, rows = node
    cut_off(node, monkeypatch, 1, local_round, "_sealed")
    train(NodeContext(home), *order(home, coordinator, 1))
    np.testing.assert_allclose(mixed(rows, None), fresh, atol=1e-12)
    assert len(rows) == 2 * STEPS


@pytest.mark.parametrize("loss", ["lost", "damaged", "restored"])
def test_a_lost_or_restored_file_begins_a_new_matrix(node, loss):
    home, coordinator, fresh, rows = node
    train(NodeContext(home), *order(home, coordinator, 1))
    copy = shutil.copy(home.step_noise, home.path / "backup.npz")
    train(NodeContext(home), *order(home, coordinator, 2))
    if loss == "lost":
        home.step_noise.unlink()
    elif loss == "damaged":
        home.step_noise.write_bytes(home.step_noise.read_bytes()[:200])
    else:
        shutil.copy(copy, home.step_noise)
    train(NodeContext(home), *order(home, coordinator, 3))
    np.testing.assert_allclose(mixed(rows[: 2 * STEPS], None), fresh[: 2 * STEPS], atol=1e-12)
    np.testing.assert_allclose(mixed(rows[2 * STEPS :], None), fresh[2 * STEPS :], atol=1e-12)


def test_a_reservation_that_was_never_started_is_no_use_of_the_matrix(node, monkeypatch):
    """It is handed out again, uncharged: nothing was drawn under it."""
    home, coordinator, fresh, rows = node
    train(NodeContext(home), *order(home, coordinator, 1))
    cut_off(node, monkeypatch, 2, local_round.Taps, "start")
    train(NodeContext(home), *order(home, coordinator, 2))
    np.testing.assert_allclose(mixed(rows, None), fresh, atol=1e-12)
    assert sum(entry.kind == "reserve" for entry in Ledger(home.ledger).entries()) == 2


def test_without_bands_nothing_is_stored(organisation):
    home, coordinator = organisation(**{**SETTINGS, "privacy": {**PRIVACY, "bands": 1}})
    train(NodeContext(home), coordinator.first_task(), b"")
    assert not home.step_noise.exists()


def test_the_charge_of_a_round_is_whole_cycles_at_the_rate_of_the_groups(node):
    home, coordinator, *_ = node
    train(NodeContext(home), *order(home, coordinator, 1))
    charged = next(e for e in Ledger(home.ledger).entries() if e.kind == "reserve")
    assert charged.body["event"] == {
        "kind": "steps",
        "sampling_probability": 0.6,
        "noise_multiplier": 1.0,
        "repeats": 1,
    }
    plan = NodeContext(home).plan.privacy
    assert replace(plan, rounds=1).epsilon() == pytest.approx(Ledger(home.ledger).spent(home.lineage, 1e-5))


def test_a_seeded_run_repeats_its_noise(organisation):
    sent = []
    for _ in range(2):
        home, coordinator = organisation(**{**SETTINGS, "privacy": {**PRIVACY, "randomness": "seeded"}})
        for round in (1, 2):
            sent.append(train(NodeContext(home), *order(home, coordinator, round))[1])
        shutil.rmtree(home.path)
    assert sent[:2] == sent[2:] and sent[0] != sent[1]

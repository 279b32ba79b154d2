"""Known privacy bugs in a node that no other test would notice; docs/privacy-bugs.md lists them all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedpeft.errors import ConfigError
from fedpeft.exchange import Layout, Update
from fedpeft.privacy import Ledger
from fedpeft.privacy.accounting import Steps, epsilon
from fedpeft.privacy.csprng import words
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.protocol.encoding import pack_table
from fedpeft.protocol.messages import SecureTask
from fedpeft.secagg import grid_values
from fedpeft.secagg.grid_values import noisy_grid
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.rounds import local_round, secure_aggregation, secure_payload
from fedpeft_clients.rounds.handlers import train
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.pipeline_taps import Taps

RATE, NOISE = 0.3, 1.0
PRIVATE = {
    "privacy": {
        "unit": "record",
        "noise_multiplier": NOISE,
        "sampling_probability": RATE,
        "max_noise_to_signal": 99.0,
    }
}
CENTRAL = {
    "privacy": {"unit": "node", "trust": "central", "noise_multiplier": 2.0, "max_noise_to_signal": 1e9},
    "federation": {"nodes": 4, "selection": "poisson", "participation": 0.5},
    "exchange": {"up": {"error_feedback": False}},
}
SECURE = {"exchange": {"up": {"density": 1.0}, "secure": {"enabled": True}}, "federation": {"nodes": 3}}


def reserved(home):
    return [entry for entry in Ledger(home.ledger).entries() if entry.kind == "reserve"]


def test_a_round_is_charged_for_every_step_that_it_takes(organisation):
    home, coordinator = organisation(**PRIVATE)
    reply, _ = train(NodeContext(home), coordinator.first_task(), b"")
    (entry,) = reserved(home)
    assert entry.event == Steps(RATE, NOISE, reply.steps) and reply.steps == 2
    assert Ledger(home.ledger).spent(home.lineage) == pytest.approx(epsilon([entry.event], 1e-5))


def test_a_round_that_dies_with_its_data_open_is_paid_for_and_paid_again(organisation, monkeypatch):
    """The second attempt draws other noise on the same data: two releases, two charges."""
    home, coordinator = organisation(**PRIVATE)
    task = coordinator.first_task()
    with monkeypatch.context() as patch:

        def killed(*arguments):
            raise KeyboardInterrupt

        patch.setattr(local_round, "train_local", killed)
        with pytest.raises(KeyboardInterrupt):
            train(NodeContext(home), task, b"")
    assert [entry.kind for entry in Ledger(home.ledger).entries()] == ["key", "reserve", "started"]
    train(NodeContext(home), task, b"")
    assert [entry.body["attempt"] for entry in reserved(home)] == [1, 2]
    assert Ledger(home.ledger).spent(home.lineage) == pytest.approx(
        epsilon([Steps(RATE, NOISE, 4)], 1e-5), rel=1e-3
    )


def test_what_left_is_in_the_ledger_before_it_leaves(organisation, monkeypatch):
    """Whoever is killed after the seal has the release on record, or has sent nothing."""
    from fedpeft_clients.rounds import handlers

    home, coordinator = organisation(**PRIVATE)
    seen = []
    monkeypatch.setattr(
        handlers, "put_out", lambda *given: seen.append([e.kind for e in Ledger(home.ledger).entries()])
    )
    train(NodeContext(home), coordinator.first_task(), b"")
    assert seen == [["key", "reserve", "started", "released"]]


def test_a_node_that_was_asked_gets_no_amplification_in_its_own_ledger(organisation):
    """Coins are secret from those who see models; the node itself knows that it was drawn."""
    home, coordinator = organisation(**CENTRAL)
    train(NodeContext(home), coordinator.first_task(), b"")
    (entry,) = reserved(home)
    assert entry.event == Steps(1.0, 2.0, 1)
    assert (entry.body["unit"], entry.body["trust"]) == ("node", "central")


@pytest.mark.parametrize("least", [3, 10])
def test_as_few_shares_as_a_sum_may_hold_add_up_to_the_noise_that_is_accounted_for(least):
    """Whatever number of nodes was expected: noise sized for all of them falls short when some drop out."""
    grid = Grid(size=100_000, steps_per_clip=500.0, least_nodes=least)
    plan = PrivacyPlan(1.0, 2.0, 1.0, 20, 1, 5, 1e-5, "node", "distributed", grid=grid)
    nothing = np.zeros(grid.size, np.float32)
    total = sum(noisy_grid(nothing, plan) for _ in range(least))
    assert np.var(total) == pytest.approx(plan.event().deviation ** 2 + 9, rel=6 * np.sqrt(2 / grid.size))


def test_what_a_node_adds_to_a_noisy_sum_is_within_the_sensitivity_that_is_accounted_for(monkeypatch):
    """A whole node's change, as it was trained, and none; nothing but the noise is left out."""
    monkeypatch.setattr(
        grid_values, "share_of_noise", lambda size, variance, source: np.zeros(size, np.int64)
    )
    size = 4_000
    plan = PrivacyPlan(
        1.0, 2.0, 0.5, 20, 1, 5, 1e-5, "node", "distributed", grid=Grid(size, 250.0, least_nodes=3)
    )
    start = Update(Layout(("table",), ((size,),)), np.zeros(size, np.float32), 1, 1)
    codec = SimpleNamespace(support=SimpleNamespace(positions=lambda _: np.arange(size)))
    monkeypatch.setattr(secure_payload, "_codec", lambda _: codec)
    monkeypatch.setattr(secure_payload, "_source", lambda *_: words)
    values = np.random.default_rng(0).standard_normal((3, size)).astype(np.float32)
    for row in (values[0], 1e20 * values[1], 1e-3 * values[2], 0 * values[0]):
        attached = SimpleNamespace(get=lambda row=row: row)
        node = SimpleNamespace(attached=attached, plan=SimpleNamespace(distributed=plan))
        added = secure_payload.summand(node, start, None, {}, Taps(None))
        assert np.linalg.norm(added) <= plan.event().l2


def test_shares_of_noise_follow_no_seed(organisation):
    """Only a plan that guarantees nothing has noise that the coordinator, who knows the seed, can repeat."""
    from fedpeft_clients.rounds.secure_payload import _source

    desk, grid = NodeContext(organisation()[0]), Grid(size=100, steps_per_clip=50.0, least_nodes=3)
    plan = PrivacyPlan(1.0, 2.0, 1.0, 20, 1, 5, 1e-5, "node", "distributed", grid=grid)
    for reproducible in (False, True):
        given = replace(plan, reproducible=reproducible)
        drawn = [_source(desk, 1, given)(50).tolist() for _ in range(2)]
        assert (drawn[0] == drawn[1]) == reproducible


def test_keys_that_are_not_pinned_reach_nobody(organisation):
    """In the first round and in a later one; a node without pinned keys sums with nobody."""
    home, coordinator = organisation(roster=("bank", "clinic", "court"), **SECURE)
    roster = {name: bytes.fromhex(key) for name, key in home.roster.items()}
    task = SecureTask("keys", 1, 1, coordinator.first_task().state, 3, 8, 0, [1])
    swapped = roster | {"bank": bytes([9]) * 32}
    for number in (1, 2):
        with pytest.raises(PolicyError, match="'bank' with a key that is not pinned") as caught:
            secure_aggregation.answer(NodeContext(home), replace(task, round=number), pack_table(swapped))
        assert caught.value.code == "PolicyRoster"
        assert not list(home.secure.glob("*"))
        secure_aggregation.answer(NodeContext(home), replace(task, round=number), pack_table(roster))
        shutil.rmtree(home.secure)
    alone, _ = organisation("other", **SECURE)
    with pytest.raises(PolicyError, match="0 nodes are pinned for a sum of 3"):
        secure_aggregation.answer(NodeContext(alone), task, pack_table(roster))


def test_against_an_untrusted_coordinator_the_seconds_stay_at_home(organisation):
    """Shares of noise are added after training; how long it took is no part of what they hide (bug 27)."""
    from types import SimpleNamespace

    from fedpeft_clients.rounds.local_round import _reply

    home, coordinator = organisation(
        privacy={"unit": "node", "trust": "distributed", "noise_multiplier": 2.0, "max_noise_to_signal": 1e9},
        exchange={"up": {"error_feedback": False}, "secure": {"enabled": True, "bits": 32}},
        federation={"nodes": 3},
    )
    task = coordinator.first_task()
    head = SimpleNamespace(seq=3, hash="00" * 32)
    trained = SimpleNamespace(notes={"train_s": 3.5}, loss=None)
    assert _reply(NodeContext(home), task, 1.0, head, trained).train_s == 0.0


def test_a_base_that_no_clip_bounds_is_refused_before_the_budget_is_touched(organisation, tiny_model_folder):
    """A record beyond the table of positions would end the round by an error, which tells of that record."""
    base = {"model": str(tiny_model_folder("gpt2")), "device": "cpu", "threads": 1}
    home, coordinator = organisation(base=base, data={"max_length": 257}, **PRIVATE)
    with pytest.raises(ConfigError, match="257 is above the 256 positions"):
        train(NodeContext(home), coordinator.first_task(), b"")
    assert not home.ledger.exists() or not reserved(home)

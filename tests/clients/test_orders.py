"""A hostile coordinator with good keys: what it may ask of a node in a round, and what the node refuses.

It knows base, config, ``run.seed`` and all that it has sent, and wants the records of chosen steps: a start
that makes gradients speak, one step, one round again and again from other states, the same records each time.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from fedpeft.data.batches import epochs
from fedpeft.errors import FederationError, FedPeftError
from fedpeft.privacy import Ledger
from fedpeft.protocol.encoding import pack_table
from fedpeft.protocol.messages import TRAIN, SecureTask
from fedpeft.rng import stream
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.rounds import local_round, secure_aggregation
from fedpeft_clients.rounds.handlers import train
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.node_state import held_rounds
from tests.clients.conftest import deal

SECURE = {"exchange": {"up": {"density": 1.0}, "secure": {"enabled": True}}, "federation": {"nodes": 3}}
PRIVATE = {
    "unit": "record",
    "noise_multiplier": 1.0,
    "sampling_probability": 0.3,
    "max_noise_to_signal": 99.0,
}
OPEN = {"unit": "none", "noise_multiplier": None, "sampling_probability": None, "max_noise_to_signal": 1.0}


def rule(home, task, blob=b""):
    """The rule by which a node refuses an order; nothing may have been opened or kept for it."""
    before, records = held_rounds(home.states), home.train.read_bytes()
    home.train.unlink()
    try:
        with pytest.raises(PolicyError) as refusal:
            train(NodeContext(home), task, blob)
    finally:
        home.train.write_bytes(records)
    assert held_rounds(home.states) == before
    return refusal.value.rule


def warm(home, seed=0):
    """A state that is not the agreed start but as near to it as a round of training ends."""
    node, reach = NodeContext(home), np.random.default_rng(seed).uniform(-0.01, 0.01, size(home))
    return node.attached.initial() + reach.astype(np.float32)


def size(home):
    return NodeContext(home).attached.layout.size


def test_round_one_starts_from_the_agreed_adapter_and_no_other(organisation):
    home, coordinator = organisation()
    assert rule(home, *coordinator.whole(warm(home))) == "start"
    first = coordinator.first_task()
    reply = train(NodeContext(home), first, b"")
    assert rule(home, *coordinator.whole(warm(home))) == "again"
    assert train(NodeContext(home), first, b"") == reply


def test_the_agreed_start_may_be_sent_whole(organisation):
    home, coordinator = organisation()
    agreed = NodeContext(home).attached.initial()
    assert train(NodeContext(home), *coordinator.whole(agreed))[0].round == 1


@pytest.mark.parametrize("poison", ["rows", "everywhere", "one value", "huge"])
def test_a_state_that_training_cannot_reach_is_refused_before_anything_is_spent(organisation, poison):
    """Memory neurons need rows far beyond what rounds of training move; no record is read for them."""
    home, coordinator = organisation(privacy=PRIVATE)
    train(NodeContext(home), coordinator.first_task(), b"")
    values, spent = warm(home), len(NodeContext(home).ledger.entries())
    if poison == "rows":
        values[: size(home) // 8] *= 20
    elif poison == "everywhere":
        values *= 3
    else:
        values[5] = 1e30 if poison == "huge" else 0.021
    assert rule(home, *coordinator.whole(values, round=2)) == "broadcast"
    assert len(NodeContext(home).ledger.entries()) == spent
    assert train(NodeContext(home), *coordinator.whole(warm(home), round=2))[0].round == 2


@pytest.mark.parametrize("lost", [(), ("states",), ("outbox",)])
def test_a_node_takes_one_state_a_round(organisation, lost):
    """Also after a restart, and where one of the two places that remember the answer is gone."""
    import shutil

    home, coordinator = organisation()
    train(NodeContext(home), coordinator.first_task(), b"")
    order = coordinator.whole(warm(home, 1), round=2)
    reply = train(NodeContext(home), *order)
    for folder in lost:
        shutil.rmtree(getattr(home, folder))
    for seed in range(2, 5):
        assert rule(home, *coordinator.whole(warm(home, seed), round=2)) == "again"
    assert train(NodeContext(home), *order) == reply


def test_rounds_do_not_go_back(organisation):
    """What was not answered in its turn is not answered later; what was is sent again."""
    home, coordinator = organisation()
    first = coordinator.first_task()
    reply = train(NodeContext(home), first, b"")
    train(NodeContext(home), *coordinator.whole(warm(home), round=3))
    assert rule(home, *coordinator.whole(warm(home, 1), round=2)) == "back"
    assert train(NodeContext(home), first, b"") == reply


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"steps": 1}, "steps"),
        ({"steps": 3}, "steps"),
        ({"lr": 1e-5}, "rate"),
        ({"lr": 1.0}, "rate"),
        ({"round": 4}, "rounds"),
        ({"round": 0}, "rounds"),
        ({"attempt": 1}, "secure"),
    ],
)
def test_an_order_asks_for_what_was_agreed_and_nothing_else(organisation, change, name):
    home, coordinator = organisation()
    assert rule(home, replace(coordinator.first_task(), **change)) == name


def test_the_coordinator_is_told_the_rule(joined):
    config = joined.config()
    joined.offer(config)
    reply = joined.say(TRAIN, joined.first_task(config, steps=1))[1]
    assert (reply.error.code, reply.error.reason) == (7, "PolicySteps")


def test_a_refused_order_costs_nothing(joined):
    from fedpeft.privacy import Ledger

    config = joined.config()
    joined.offer(config)
    for change in ({"steps": 1}, {"state": bytes(32)}, {"lr": 1e-9}):
        assert joined.say(TRAIN, joined.first_task(config, **change))[1].has_error()
    assert [e for e in Ledger(joined.organisation.ledger).entries() if e.kind == "reserve"] == []


def drawn(monkeypatch, work):
    """Indices of the batches that a round drew."""
    from fedpeft.training import local

    seen, real = [], epochs

    def watching(*arguments):
        for batch in real(*arguments):
            seen.append(batch.tolist())
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(local, "epochs", watching)
        work()
    return seen


def public(config, name="clinic", count=12):
    """What whoever knows the config expects."""
    rng = stream(config.run.seed, 1, name, "batches")
    federation = config.federation
    return [b.tolist() for b in islice(epochs(count, federation.batch_size, rng), federation.local_steps)]


def one_round(joined, **sections):
    config = joined.config(**sections)
    assert joined.offer(config) == ("agreed", "")
    assert not joined.say(TRAIN, joined.first_task(config))[1].has_error()
    return config


def test_batches_of_an_organisation_follow_from_no_seed(joined, monkeypatch):
    joined.policy(privacy={"units": ["none"]})
    found = []
    for seed in (1, 2):
        settings = {"privacy": OPEN, "run": {"seed": seed}}
        batches = drawn(monkeypatch, lambda settings=settings: one_round(joined, **settings))
        assert len(batches) == 2 and batches != public(joined.config(**settings))
        found.append(batches)
    assert found[0] != found[1]


def test_batches_follow_from_the_seed_where_run_and_policy_say_so(joined, monkeypatch):
    """For reproducing a deployment; policy and terms say it, and it is marked as not private."""
    seeded = {"privacy": {**OPEN, "randomness": "seeded"}}
    joined.policy(privacy={"units": ["none"]})
    assert joined.offer(joined.config(**seeded)) == ("refused", "randomness")
    joined.policy(privacy={"seeded": True})
    batches = drawn(monkeypatch, lambda: one_round(joined, **seeded))
    assert batches == public(joined.config(**seeded))


def test_batches_of_a_simulation_follow_from_its_seed(organisation, monkeypatch):
    home, coordinator = organisation()
    assert home.signing_seed is not None
    batches = drawn(monkeypatch, lambda: train(NodeContext(home), coordinator.first_task(), b""))
    assert batches == public(home.config)


def begun(home, state):
    """A secure sum whose first phase this node has answered."""
    keys = pack_table({name: bytes.fromhex(key) for name, key in home.roster.items()})
    secure_aggregation.answer(NodeContext(home), SecureTask("keys", 1, 1, state, 3, 8, 0, [1]), keys)


def test_a_secure_sum_is_of_the_state_that_is_trained_from(organisation):
    """Else nodes that train from different models share masks, and the sum shows one of them alone."""
    roster = ("bank", "clinic", "court")
    home, coordinator = organisation(roster=roster, **SECURE)
    task = coordinator.first_task(attempt=1)
    begun(home, bytes(32))
    assert rule(home, task) == "secure"
    home, coordinator = organisation("court", roster=roster, **SECURE)
    task = coordinator.first_task(attempt=1)
    begun(home, task.state)
    with pytest.raises(FedPeftError) as error:
        train(NodeContext(home), task, pack_table({}))
    assert not isinstance(error.value, PolicyError)


@pytest.mark.parametrize(("more", "scales"), [(0, -1), (0, 1), (1, 0), (-1, 0), (-1, -1)])
def test_a_secure_sum_of_other_size_or_scales_is_refused_before_the_ledger(organisation, more, scales):
    """A sum has one integer for each value and one vote for each scale, or no node could answer it."""
    roster = ("bank", "clinic", "court")
    made = {name: organisation(name, roster=roster, **SECURE) for name in roster}
    home, coordinator = made["clinic"]
    layout, task = NodeContext(home).attached.layout, coordinator.first_task(attempt=1)
    given = [950] * (len(layout.names) + scales)
    terms = SecureTask("keys", 1, 1, task.state, 3, layout.size + len(layout.names) + more, 0, given)
    box = pack_table(deal([one for one, _ in made.values()], terms)["clinic"])
    with pytest.raises(FederationError, match="this run's are of"):
        train(NodeContext(home), replace(task, inbox=len(box)), box)
    assert not Ledger(home.ledger).entries()


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({}, True),
        (SECURE, False),
        ({"privacy": PRIVATE}, False),
    ],
)
def test_seconds_of_training_leave_only_where_single_records_may_show(organisation, sections, told):
    from types import SimpleNamespace

    home, coordinator = organisation(**sections)
    head = SimpleNamespace(seq=3, hash="00" * 32)
    trained = local_round._Trained({"train_s": 3.5}, [], [], None)
    reply = local_round._reply(NodeContext(home), coordinator.first_task(), 0.0, head, trained)
    assert reply.train_s == (3.5 if told else 0.0)

"""Whole federations under secure aggregation: what leaves a node is masked, and the sum is exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.errors import FederationError
from fedpeft.exchange import OVERHEAD_BYTES
from fedpeft.protocol.encoding import pack, pack_table, unpack
from fedpeft.protocol.messages import SecureReply, TrainReply
from fedpeft.secagg.messages import RECEIPT_BYTES

SECURE = {"up": {"density": 1.0}, "secure": {"enabled": True}}
FOUR = {"nodes": 4, "rounds": 3, "quorum": 2}
DISTRIBUTED = {
    "privacy": {"unit": "node", "trust": "distributed", "noise_multiplier": 0.01, "max_noise_to_signal": 1e9},
    "exchange": {"up": {"error_feedback": False}, "secure": {"enabled": True, "bits": 32}},
}


def rounds_of(events):
    return [event for event in events if event["event"] == "round"]


def integers_of(home, round):
    """What a node added to a round's sum, as it keeps it for another attempt."""
    from fedpeft_clients.rounds.local_round import INTEGERS

    with np.load(home / "state" / f"{round:04d}.npz") as stored:
        return stored[f"residual/{INTEGERS}"]


def run_with(prepared, spoil):
    """Run in process with nodes whose replies pass through ``spoil(name, message, reply)``."""
    from fedpeft_clients.app import app as honest
    from fedpeft_server.app import make_app

    made, events = ClientApp(), []

    def answer(message, context):
        name = context.node_config["home"].rpartition("/")[2]
        return spoil(name, message, lambda: honest(message=message, context=context))

    made.query()(answer)
    made.query("secure")(answer)
    made.train()(answer)
    homes = [{"home": str(home)} for home in prepared.homes]
    flower.run_local(make_app(events.append, prepared.run), made, homes, {})
    return rounds_of(events)


def phase_of(message):
    """The phase of secure aggregation that a message asks for, or None."""
    return message.content["facts"].get("phase") if message.metadata.message_type == "query.secure" else None


def mean_of(prepared, round):
    """The mean update as the coordinator opened it."""
    with np.load(prepared.run / "updates" / f"r{round:02d}" / "aggregate.npz") as stored:
        return stored["values"]


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_value_costs_a_byte_and_looks_random(federation, share):
    from fedpeft_server.rounds.checkpoints import latest

    exchange = {"up": {"density": 1.0}, "secure": {"enabled": True, "share": share}}
    prepared = federation(f"s{share}", federation=FOUR, exchange=exchange)
    events = rounds_of(prepared.go())
    assert all(event["applied"] and event["replies"] == 4 and not event["refused"] for event in events)
    size = integers_of(prepared.homes[0], 3).size
    votes = len(latest(prepared.run).facts["exponents"])
    assert size - votes == pytest.approx(share * events[0]["values_up"] / 4, rel=0.2)
    envelope = (prepared.run / "updates" / "r03" / "org-00.fpd").read_bytes()
    assert len(envelope) == size + RECEIPT_BYTES + OVERHEAD_BYTES
    counts = np.bincount(np.frombuffer(envelope[4 : 4 + size], np.uint8), minlength=256)
    assert counts.max() < size / 256 + 8 * (size / 256) ** 0.5


def test_the_mean_is_that_of_the_integers_times_their_scales(federation):
    """A twin from what the nodes keep: integers, public scales, votes that move them."""
    from fedpeft.exchange.codecs.public_ternary import scales_of
    from fedpeft_server.rounds.checkpoints import latest

    prepared = federation("twin", tapped=1, federation={**FOUR, "rounds": 1}, exchange=SECURE)
    prepared.go()
    task = json.loads(next((prepared.homes[0] / "secure").glob("r0001-1.json")).read_bytes())["task"]
    total, mean = sum(integers_of(home, 1) for home in prepared.homes), mean_of(prepared, 1)
    assert total.size == mean.size + len(task["scales"])
    assert len(set(task["scales"])) == 1  # the first guess is one for all
    assert mean == pytest.approx(total[: mean.size] * scales_of(task["scales"])[0] / 4, rel=1e-6)
    moved = np.array(latest(prepared.run).facts["exponents"]) - task["scales"]
    assert np.array_equal(moved, total[mean.size :])  # four voters, four steps when unanimous


@pytest.mark.parametrize(
    "sections",
    [{"exchange": SECURE}, pytest.param(DISTRIBUTED, marks=pytest.mark.slow)],
    ids=["ternary", "distributed"],
)
def test_processes_on_a_network_and_in_process_sum_alike(federation, sections):
    """The masks differ and fall out of the sum; with shares of noise only the shape is the same."""
    secure = {**sections["exchange"]["secure"], "colluders": 0}
    sections = {**sections, "exchange": {**sections["exchange"], "secure": secure}}
    here, there = (federation(name, **sections) for name in ("here", "there"))
    events = rounds_of(here.go()), rounds_of(there.go("deployment"))
    assert all(event["applied"] for events_of in events for event in events_of)
    assert here.envelopes.keys() == there.envelopes.keys()
    ups = [name for name in here.envelopes if "org-" in name]
    assert all(here.envelopes[name] != there.envelopes[name] for name in ups)
    if "privacy" not in sections:
        assert here.final["values"].tobytes() == there.final["values"].tobytes()


@pytest.mark.parametrize("phase", ["keys", "shares", "train", "agree", "reveal"])
def test_a_node_that_fails_in_a_phase_is_left_out_and_the_sum_stays_exact(federation, phase):
    """Before its vector is in, its update is not in the sum; afterwards the others open it without it."""
    prepared = federation(phase, tapped=1, federation={**FOUR, "rounds": 2}, exchange=SECURE)

    def spoil(name, message, honest):
        asked = phase_of(message) or message.metadata.message_type
        if name == "org-03" and message.metadata.group_id == "2" and asked == phase:
            raise ValueError("gone")
        return honest()

    events = run_with(prepared, spoil)
    assert [event["applied"] for event in events] == [True, True]
    assert "ValueError" in events[1]["refused"]["org-03"]
    counted = prepared.homes if phase in ("agree", "reveal") else prepared.homes[:3]
    total, mean = sum(integers_of(home, 2) for home in counted), mean_of(prepared, 2)
    assert np.array_equal(np.sign(mean), np.sign(total[: mean.size]))


def test_below_the_least_number_of_nodes_nothing_is_opened(federation):
    prepared = federation("few", federation={**FOUR, "rounds": 2}, exchange=SECURE)

    def spoil(name, message, honest):
        if name in ("org-02", "org-03") and message.metadata.group_id == "2" and phase_of(message) is None:
            raise ValueError("gone")
        return honest()

    events = run_with(prepared, spoil)
    assert [event["applied"] for event in events] == [True, False]
    assert "nodes survived" in events[1]["refused"]["secure sum"]


def test_a_masked_update_that_is_changed_on_the_way_is_left_out(federation):
    prepared = federation("flip", federation={**FOUR, "rounds": 1}, exchange=SECURE)

    def spoil(name, message, honest):
        reply = honest()
        if name == "org-01" and message.metadata.message_type == "train":
            facts, blob = unpack(reply, TrainReply, 10**6)
            return Message(pack(facts, blob[:9] + bytes([blob[9] ^ 1]) + blob[10:]), reply_to=message)
        return reply

    events = run_with(prepared, spoil)
    assert events[0]["applied"] and "does not verify" in events[0]["refused"]["org-01"]


def test_keys_that_are_changed_on_the_way_are_left_out(federation):
    prepared = federation("mitm", federation={**FOUR, "rounds": 1}, exchange=SECURE)

    def spoil(name, message, honest):
        reply = honest()
        if phase_of(message) == "keys" and name == "org-02":
            facts, blob = unpack(reply, SecureReply, 10**6)
            return Message(pack(facts, bytes(32) + blob[32:]), reply_to=message)
        return reply

    events = run_with(prepared, spoil)
    assert list(events[0]["refused"]) == ["org-02"] and events[0]["replies"] == 3


def test_a_coordinator_that_swaps_keys_is_refused_by_the_nodes(federation, monkeypatch):
    from fedpeft.secagg import CoordinatorRound

    prepared = federation("swap", federation={**FOUR, "rounds": 1}, exchange=SECURE)
    real = CoordinatorRound.advertisements

    def swapped(self):
        found = real(self)
        return {**found, "org-01": found["org-00"]}

    monkeypatch.setattr(CoordinatorRound, "advertisements", swapped)
    with pytest.raises(FederationError, match="no quorum"):
        prepared.go()
    assert not list((prepared.homes[0] / "state").glob("*.npz"))


def test_a_node_refuses_an_order_without_the_sum_that_was_agreed(organisation_secure):
    from fedpeft_clients.rounds.handlers import train
    from fedpeft_clients.rounds.node_context import NodeContext

    home, coordinator = organisation_secure
    with pytest.raises(FederationError, match="secure aggregation is not as agreed"):
        train(NodeContext(home), coordinator.first_task(), b"")
    assert not home.ledger.exists()


def test_a_roster_with_an_unknown_key_is_refused(organisation_secure):
    from fedpeft.protocol.messages import SecureTask
    from fedpeft_clients.rounds.node_context import NodeContext
    from fedpeft_clients.rounds.secure_aggregation import answer

    home, coordinator = organisation_secure
    task = SecureTask("keys", 1, 1, coordinator.first_task().state, 2, 8, 0, [])
    keys = {"clinic": bytes(32), "stranger": bytes([1]) * 32, "third": bytes([2]) * 32}
    with pytest.raises(FederationError, match=r"rule 'roster': .*'clinic' with a key that is not pinned"):
        answer(NodeContext(home), task, pack_table(keys))


@pytest.fixture
def organisation_secure(federation):
    """One node of a secure federation, and the order that an insecure coordinator would give it."""
    import time

    from fedpeft.protocol.messages import PROTOCOL, Hello, TrainTask, run_id
    from fedpeft.trust import Signer
    from fedpeft_clients.rounds.handlers import greet
    from fedpeft_clients.rounds.node_context import NodeContext
    from fedpeft_clients.rounds.run_home import open_home

    prepared = federation("one", federation=FOUR, exchange=SECURE)
    home = open_home(prepared.homes[0])

    class Coordinator:
        def first_task(self):
            hello = Hello(PROTOCOL, run_id(home.config), Signer.from_seed(b"coordinator").public)
            state = greet(NodeContext(home), hello).state
            return TrainTask(1, 2, home.config.federation.lr, "none", 0, [], state, [], time.time() + 60)

    return home, Coordinator()


def test_another_attempt_hides_the_same_integers_and_spends_nothing(federation, monkeypatch):
    """The coordinator is killed when all updates are in; it comes back and asks again."""
    from fedpeft.privacy import Ledger
    from fedpeft_server.rounds.secure_aggregation import SecureSums

    privacy = {"unit": "record", "noise_multiplier": 1.0, "public_records": 16, "max_noise_to_signal": 99.0}
    prepared = federation("again", federation={**FOUR, "rounds": 1}, exchange=SECURE, privacy=privacy)

    def killed(self, opened, orders):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SecureSums, "mean", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared.go()
    before = [integers_of(home, 1).tobytes() for home in prepared.homes]
    heads = [Ledger(home / "ledger.sqlite").head() for home in prepared.homes]
    first = prepared.envelopes
    assert rounds_of(prepared.go())[0]["applied"]
    assert before == [integers_of(home, 1).tobytes() for home in prepared.homes]
    assert heads == [Ledger(home / "ledger.sqlite").head() for home in prepared.homes]
    assert all(prepared.envelopes[name] != digest for name, digest in first.items() if "org-" in name)


def test_shares_of_noise_are_charged_in_each_nodes_ledger(federation):
    from fedpeft.privacy import Ledger

    settings = {**DISTRIBUTED, "privacy": {**DISTRIBUTED["privacy"], "noise_multiplier": 2.0}}
    prepared = federation("charged", federation={**FOUR, "rounds": 2}, **settings)
    events = rounds_of(prepared.go())
    assert all(event["applied"] for event in events)
    ledger = Ledger(prepared.homes[0] / "ledger.sqlite")
    spent = ledger.spent("org-00", unit="node", trust="distributed")
    assert 0 < spent < np.inf and ledger.spent("org-00", unit="node", trust="local") == np.inf
    kinds = [entry.body["event"]["kind"] for entry in ledger.entries() if entry.kind == "reserve"]
    assert kinds == ["grid_steps", "grid_steps"]


SUMMED = {
    "privacy": {
        "unit": "record",
        "trust": "distributed",
        "noise_multiplier": 1.5,
        "clip": 0.5,
        "sampling_probability": 0.5,
        "max_noise_to_signal": 1e9,
    },
    "federation": {
        **FOUR,
        "rounds": 2,
        "local_steps": 1,
        "batch_size": 6,
        "optimiser": "sgd",
        "lr": 0.7,
        "server": {"name": "mean"},
    },
    "exchange": {"up": {"error_feedback": False}, "secure": {"enabled": True, "bits": 16, "share": 0.5}},
}


def test_a_round_of_records_is_a_step_along_the_clipped_gradients_of_all_nodes(federation):
    """A naive twin: each node's clipped sum by its own draw, the mean of all, and the noise of the plan."""
    from fedpeft.config import load_config
    from fedpeft.privacy import plan_from_config

    seeded = {**SUMMED, "privacy": {**SUMMED["privacy"], "randomness": "seeded"}}
    quiet = {**seeded, "privacy": {**seeded["privacy"], "noise_multiplier": 1e-9}}
    noisy, still = federation("noisy", tapped=4, **seeded), federation("still", tapped=4, **quiet)
    assert all(event["applied"] for run in (noisy, still) for event in rounds_of(run.go()))
    stepped = np.any([own_steps(noisy), mean_of(noisy, 1)], axis=0)  # a noisy sum may be 0 by chance
    summed = np.flatnonzero(stepped)  # the half of the values that the round sums
    assert 0.4 < summed.size / mean_of(noisy, 1).size < 0.6
    plan = plan_from_config(load_config(noisy.run / "config.toml"), summed.size)
    assert plan is not None and plan.grid is not None
    step = plan.clip / plan.grid.steps_per_clip * 0.7 / 6
    np.testing.assert_allclose(mean_of(still, 1), own_steps(still), atol=1.01 * step)  # rounded up or down
    noise = (mean_of(noisy, 1) - own_steps(noisy)) / (0.7 / 6 / 4)
    assert noise[summed].std() == pytest.approx(1.5 * 0.5 * np.sqrt(4 / plan.grid.least_nodes), rel=0.1)


def own_steps(prepared):
    """The mean of the nodes' steps along their own clipped gradients, before grid and noise."""
    taps = [np.load(home / "taps" / "r01" / "update.npz")["values"] for home in prepared.homes]
    return np.mean(taps, axis=0)


def test_records_in_sums_are_charged_with_their_sampling_and_nothing_is_told_of_them(federation):
    from fedpeft.privacy import Ledger

    prepared = federation("summed", **SUMMED)
    events = rounds_of(prepared.go())
    assert all(event["applied"] for event in events)
    ledger = Ledger(prepared.homes[0] / "ledger.sqlite")
    entries = [entry.body for entry in ledger.entries() if entry.kind == "reserve"]
    assert [body["event"]["kind"] for body in entries] == ["grid_steps", "grid_steps"]
    assert [body["event"]["sampling_probability"] for body in entries] == [0.5, 0.5]
    assert {(body["unit"], body["trust"]) for body in entries} == {("record", "distributed")}
    spent = ledger.spent("org-00", unit="record", trust="distributed")
    assert 0 < spent < np.inf and ledger.spent("org-00", unit="record", trust="local") == np.inf
    assert all("loss" not in event for event in events)


@pytest.mark.slow
def test_records_in_sums_across_processes(federation):
    prepared = federation("there", **SUMMED)
    assert all(event["applied"] for event in rounds_of(prepared.go("deployment")))


# How a round goes on after something failed: by another attempt, or, once nodes were asked to open, not.


@pytest.mark.parametrize("lost", [1, 2])
def test_shares_that_are_lost_on_the_way_are_asked_for_again(federation, lost):
    """All four must open; one reply is lost, and a node that let its shares go repeats the very same ones."""
    strict = {"up": {"density": 1.0}, "secure": {"enabled": True, "threshold": 1.0}}
    prepared = federation("reveal", federation={**FOUR, "rounds": 2}, exchange=strict)
    left = [lost]

    def spoil(name, message, honest):
        reply = honest()
        if phase_of(message) == "reveal" and name == "org-02" and left[0]:
            left[0] -= 1
            raise ValueError("lost")
        return reply

    events = run_with(prepared, spoil)
    assert [event["applied"] for event in events] == [True, True]
    assert not any(event["refused"] for event in events)


def test_a_round_that_could_not_be_opened_is_lost_and_the_next_one_is_not(federation):
    """Nodes let their shares go once: asking the round again would wait for ever."""
    strict = {"up": {"density": 1.0}, "secure": {"enabled": True, "threshold": 1.0}}
    prepared = federation("lost", federation={**FOUR, "rounds": 3}, exchange=strict)

    def spoil(name, message, honest):
        if phase_of(message) == "reveal" and name == "org-02" and message.metadata.group_id == "2":
            raise ValueError("gone")
        return honest()

    events = run_with(prepared, spoil)
    assert [(event["round"], event["applied"]) for event in events] == [(1, True), (2, False), (3, True)]
    assert "3 nodes revealed shares, 4 are needed" in events[1]["refused"]["secure sum"]


def test_a_coordinator_that_dies_while_it_opens_goes_on_with_the_next_round(federation, monkeypatch):
    """Also where it would write a checkpoint every third round only."""
    from fedpeft.secagg import CoordinatorRound

    prepared = federation(
        "died", federation={**FOUR, "rounds": 4}, exchange=SECURE, run={"checkpoint_every": 3}
    )
    real, opened = CoordinatorRound.result, []

    def dying(self):
        opened.append(self.context.round)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(CoordinatorRound, "result", dying)
    with pytest.raises(KeyboardInterrupt):
        prepared.go()
    events = rounds_of(prepared.go())
    assert [(event["round"], event["applied"]) for event in events] == [(3, False), (4, True)]
    assert "was opened before" in events[0]["refused"]["org-00"]
    assert opened == [1, 2, 3, 4]


def test_updates_that_are_too_few_to_be_applied_are_not_opened(federation):
    """So that the round can be tried again: a sum of three nodes could be opened, but four are asked for."""
    from fedpeft_server.rounds.secure_progress import Progress

    prepared = federation("quorum", federation={**FOUR, "rounds": 2, "quorum": 4}, exchange=SECURE)

    def spoil(name, message, honest):
        if name == "org-03" and message.metadata.group_id == "2" and message.metadata.message_type == "train":
            raise ValueError("gone")
        return honest()

    events = run_with(prepared, spoil)
    assert [event["applied"] for event in events] == [True, False]
    assert Progress.of(prepared.run, 1).opening and not Progress.of(prepared.run, 2).opening
    assert not list((prepared.homes[0] / "secure" / "released").glob("*-2.revealed"))


def test_a_share_of_the_nodes_sums_over_the_roster_that_all_of_them_draw(federation):
    """Each round has its own roster of three of six, which nodes compute themselves."""
    from fedpeft.cohort import draw

    nodes = {"nodes": 6, "rounds": 3, "quorum": 2, "participation": 0.5}
    prepared = federation("drawn", federation=nodes, exchange=SECURE)
    events = rounds_of(prepared.go())
    names = [f"org-{index:02}" for index in range(6)]
    assert all(event["applied"] and event["replies"] == 3 for event in events)
    for number in (1, 2, 3):
        expected = draw(names, 0.5, 0, number)
        held = [
            home.name
            for home in prepared.homes
            if list((home / "secure" / "released").glob(f"*-{number}.accepted"))
        ]
        assert held == expected


def test_a_sum_needs_all_its_nodes_to_begin_with(federation):
    prepared = federation("absent", federation={**FOUR, "rounds": 1, "deadline": 1.0}, exchange=SECURE)
    prepared.homes.pop()
    with pytest.raises(FederationError, match="3 nodes are here, the secure sums of this run are of 4"):
        prepared.go()

"""What one node does and refuses to do."""

import json
import shutil

import numpy as np
import pytest

from fedpeft.errors import ConfigError, FederationError, PrivacyError
from fedpeft.trust import Signer
from fedpeft_clients.rounds.handlers import greet, train
from fedpeft_clients.rounds.local_round import load_examples
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.run_home import create_home, open_home

PRIVATE = {
    "privacy": {
        "unit": "record",
        "noise_multiplier": 1.0,
        "sampling_probability": 0.3,
        "budget": 9.0,
        "max_noise_to_signal": 99.0,
    }
}


def test_hello_reports_what_the_node_computed(organisation):
    home, coordinator = organisation()
    reply = greet(NodeContext(home), coordinator.hello())
    assert (reply.name, reply.rank, reply.versions) == ("clinic", 2, [])
    assert len(reply.key) == len(reply.layout) == len(reply.state) == 32
    assert reply.run == coordinator.hello().run


def test_another_coordinator_is_not_trusted(organisation):
    home, coordinator = organisation()
    greet(NodeContext(home), coordinator.hello())
    hello = coordinator.hello()
    stranger = type(hello)(hello.protocol, hello.run, Signer.from_seed(b"stranger").public)
    with pytest.raises(FederationError, match="not the coordinator"):
        greet(NodeContext(home), stranger)


def test_a_repeated_order_sends_the_stored_bytes_and_spends_nothing(organisation):
    from fedpeft.privacy import Ledger

    home, coordinator = organisation(**PRIVATE)
    task = coordinator.first_task()
    reply, envelope = train(NodeContext(home), task, b"")
    spent = Ledger(home.ledger).spent(home.lineage)
    assert train(NodeContext(home), task, b"") == (reply, envelope)
    assert (home.outbox / "r01.fpd").read_bytes() == envelope
    shutil.rmtree(home.outbox)
    assert train(NodeContext(home), task, b"") == (reply, envelope)
    assert (home.outbox / "r01.fpd").read_bytes() == envelope
    assert Ledger(home.ledger).spent(home.lineage) == spent > 0
    assert reply.epsilon == pytest.approx(spent, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "3 steps are asked for, 2 are agreed"),
        ({"round": 4}, "round 4 is not one of the 3 agreed rounds"),
        ({"steps": 1}, "1 steps are asked for, 2 are agreed"),
        ({"lr": 1.0}, "learning rate 1 is asked for, 0.01 is agreed"),
        ({"lr": 1e-5}, "learning rate 1e-05 is asked for, 0.01 is agreed"),
        ({"expires": 1.0}, "has expired"),
        ({"state": bytes(32)}, "round 1 begins at the agreed starting adapter"),
        ({"state": bytes(32), "round": 2}, "not the one announced"),
        ({"broadcast": "delta", "since": 1, "round": 2}, "do not fit its order"),
        ({"broadcast": "delta", "since": 2, "round": 2}, "do not fit its order"),
        ({"broadcast": "delta", "since": 3, "round": 2}, "do not fit its order"),
        ({"broadcast": "full", "round": 2}, "do not fit its order"),
        ({"sizes": [0]}, "do not fit its order"),
        ({"broadcast": "surprise"}, "unknown kind"),
    ],
)
def test_orders_beyond_the_agreement_are_refused_before_data_are_opened(organisation, change, message):
    from fedpeft.errors import FedPeftError

    home, coordinator = organisation()
    task = coordinator.first_task(**change)
    home.train.unlink()
    with pytest.raises(FedPeftError, match=message):
        train(NodeContext(home), task, b"")
    assert not home.ledger.exists()


def test_the_ledger_is_written_before_the_records_are_opened(organisation):
    from fedpeft.privacy import Ledger

    home, coordinator = organisation(**PRIVATE)
    task = coordinator.first_task()
    home.train.unlink()
    with pytest.raises(FileNotFoundError):
        train(NodeContext(home), task, b"")
    assert Ledger(home.ledger).spent(home.lineage) > 0


def test_a_spent_budget_refuses_the_round(organisation):
    home, coordinator = organisation(privacy={**PRIVATE["privacy"], "budget": 0.1})
    with pytest.raises(PrivacyError, match="budget"):
        train(NodeContext(home), coordinator.first_task(), b"")


@pytest.mark.parametrize("federation_round_two", [PRIVATE], indirect=True)
def test_a_rolled_back_ledger_is_noticed(federation_round_two):
    home, task, blob = federation_round_two
    home.ledger.unlink()
    for extra in home.path.glob("ledger.sqlite-*"):
        extra.unlink()
    with pytest.raises(PrivacyError, match="rolled back"):
        train(NodeContext(home), task, blob)


@pytest.mark.parametrize("federation_round_two", [PRIVATE], indirect=True)
def test_a_ledger_without_the_entry_that_the_coordinator_has_seen_is_refused(federation_round_two):
    """The whole node was rolled back, its state included; only the coordinator's copy can tell."""
    from dataclasses import replace

    home, task, blob = federation_round_two
    shutil.rmtree(home.states)
    with pytest.raises(PrivacyError, match="rolled back"):
        train(NodeContext(home), replace(task, ledger_entry=12, ledger=bytes(32)), blob)


@pytest.mark.parametrize("federation_round_two", [PRIVATE], indirect=True)
def test_under_privacy_the_seconds_stay_at_home(federation_round_two):
    """Seconds would tell how many records were drawn, and a loss is covered by no claim."""
    home, task, blob = federation_round_two
    reply, _ = train(NodeContext(home), task, blob)
    seconds = [json.loads(line) for line in home.times.read_text().splitlines()]
    assert reply.train_s == 0.0
    assert [note["round"] for note in seconds] == [1, 2] and all(note["train_s"] > 0 for note in seconds)
    assert all(set(note) == {"round", "train_s"} for note in seconds)


def test_the_training_loss_is_noted_at_home_and_no_reply_has_it_without_noise(federation_round_two):
    home, task, blob = federation_round_two
    reply, _ = train(NodeContext(home), task, blob)
    notes = [json.loads(line) for line in home.times.read_text().splitlines()]
    assert [note["loss"] > 0 for note in notes] == [True, True]
    assert reply.loss == [] and "loss" not in (home.outbox / "answers.jsonl").read_text()


def test_a_reproducible_run_under_privacy_is_recorded_as_not_private(organisation):
    from fedpeft.privacy import Ledger

    envelopes = []
    for name in ("clinic", "clinic2"):
        home, coordinator = organisation(name, privacy={**PRIVATE["privacy"], "randomness": "seeded"})
        reply, envelope = train(NodeContext(home), coordinator.first_task(), b"")
        assert reply.epsilon == "unbounded" and Ledger(home.ledger).spent(home.lineage) == float("inf")
        shutil.rmtree(home.path)
        home, coordinator = organisation(name, privacy={**PRIVATE["privacy"], "randomness": "seeded"})
        assert train(NodeContext(home), coordinator.first_task(), b"")[1] == envelope
        envelopes.append(envelope)
    assert envelopes[0] != envelopes[1]


def test_old_answers_are_sent_again_from_the_outbox(federation_round_two):
    home, task, blob = federation_round_two
    reply, envelope = train(NodeContext(home), task, blob)
    shutil.rmtree(home.states)
    with (home.outbox / "answers.jsonl").open("ab") as index:
        index.write(b'{"torn')
    assert train(NodeContext(home), task, blob) == (reply, envelope)


@pytest.fixture
def federation_round_two(organisation, request):
    """A node after round 1, and the order for round 2."""

    home, coordinator = organisation(**getattr(request, "param", {}))
    train(NodeContext(home), coordinator.first_task(), b"")
    values = NodeContext(home).attached.initial() + np.float32(0.01)
    return home, *coordinator.whole(values, round=2)


def test_a_whole_state_is_trained_from(federation_round_two):
    home, task, blob = federation_round_two
    reply, envelope = train(NodeContext(home), task, blob)
    assert reply.round == 2
    assert reply.ledger_entry == 6  # of this run: per round reserved, started, released
    assert len(envelope) > 64


def test_changed_broadcast_bytes_are_refused(federation_round_two):
    from fedpeft.errors import EnvelopeError

    home, task, blob = federation_round_two
    with pytest.raises(EnvelopeError, match="does not verify"):
        train(NodeContext(home), task, blob[:-1] + bytes([blob[-1] ^ 1]))


class Chain:
    """A coordinator's broadcasts of random deltas, and the orders that send them."""

    def __init__(self, home, coordinator):

        self.coordinator, self.desk = coordinator, NodeContext(home)
        self.states = {1: self.desk.attached.initial()}
        self.links = {}
        for round in (2, 3):
            self._broadcast(round)

    def _broadcast(self, round):
        from fedpeft.exchange import Context, Update, plan_from_config, seal
        from fedpeft.protocol.messages import COORDINATOR, state_digest

        layout, before = self.desk.attached.layout, self.states[round - 1]
        down = self.desk.home.config.exchange.down.model_copy(update={"error_feedback": False})
        plan = plan_from_config(down, private=False)
        noise = np.random.default_rng(round).normal(scale=1e-3, size=layout.size).astype(np.float32)
        update, _ = plan.run(Update(layout, noise, round, 0), {})
        context = Context(self.desk.run, round, COORDINATOR, state_digest(layout, before), "down")
        self.links[round] = seal(update, plan, context, self.coordinator.signer)
        self.states[round] = before + update.values

    def order(self, round, since):
        from fedpeft.protocol.messages import state_digest

        links = [self.links[number] for number in range(since + 1, round + 1)]
        state = state_digest(self.desk.attached.layout, self.states[round])
        sizes = [len(link) for link in links]
        facts = {
            "round": round,
            "broadcast": "delta",
            "since": since,
            "sizes": sizes,
            "state": state,
        }
        return self.coordinator.first_task(**facts), b"".join(links)


def test_a_node_that_missed_rounds_follows_their_broadcasts_and_keeps_its_residual(organisation):
    from fedpeft_clients.rounds.node_state import load_state

    home, coordinator = organisation()
    train(NodeContext(home), coordinator.first_task(), b"")
    first = load_state(home.states, 1)
    chain = Chain(home, coordinator)
    train(NodeContext(home), *chain.order(3, since=1))
    third = load_state(home.states, 3)
    assert np.array_equal(third.values, chain.states[3])
    assert not load_state(home.states, 2)

    stranger, other = organisation("newcomer")
    other.first_task()
    train(NodeContext(stranger), *chain.order(3, since=1))
    assert np.array_equal(load_state(stranger.states, 3).values, chain.states[3])
    alone = load_state(stranger.states, 3).residuals["residual"]
    assert first.residuals["residual"].any()
    assert not np.array_equal(third.residuals["residual"], alone)


def test_links_of_another_chain_are_refused(organisation):
    from dataclasses import replace

    from fedpeft.errors import EnvelopeError

    home, coordinator = organisation()
    train(NodeContext(home), coordinator.first_task(), b"")
    chain = Chain(home, coordinator)
    task, blob = chain.order(3, since=1)
    swapped = chain.links[3] + chain.links[2]
    with pytest.raises(EnvelopeError, match=r"does not verify|has \d+ bytes"):
        train(NodeContext(home), replace(task, sizes=task.sizes[::-1]), swapped)
    with pytest.raises(FederationError, match="does not hold the state of round 2"):
        train(NodeContext(home), *chain.order(3, since=2))
    with pytest.raises(FederationError, match="not the one announced"):
        train(NodeContext(home), replace(task, state=bytes(32)), blob)


TERNARY = ("add_residual", "sparsify", "ternarise", "keep_residual")


@pytest.mark.parametrize(("privacy", "steps"), [({}, TERNARY), (PRIVATE, ("quantise",))])
def test_taps_show_every_stage_and_the_truth(organisation, privacy, steps):

    home, coordinator = organisation(tapped=True, audit={"rounds": [1]}, **privacy)
    train(NodeContext(home), coordinator.first_task(), b"")
    folder = home.path / "taps" / "r01"
    meta, truth = (json.loads((folder / name).read_text()) for name in ("meta.json", "truth.json"))
    expected = ["gradient", "update", *steps, "envelope"]
    assert meta["stages"] == expected
    size = NodeContext(home).attached.layout.size
    for stage in expected:
        with np.load(folder / f"{stage}.npz") as stored:
            assert stored["values"].shape == (size,)
    assert all(row in truth["all_token_ids"] for row in truth["token_ids"])
    assert len(truth["draws"]) == meta["steps"]
    examples = load_examples(NodeContext(home))
    places = sorted({place for step in truth["draws"] for place in step})
    assert [examples[place].ids.tolist() for place in places] == truth["all_token_ids"]
    if not privacy:
        assert len(truth["token_ids"]) == 4


def test_an_untapped_home_writes_no_taps(organisation):
    home, coordinator = organisation()
    train(NodeContext(home), coordinator.first_task(), b"")
    assert not (home.path / "taps").exists()


def test_homes_are_validated(tmp_path, organisation):
    home, _ = organisation()
    assert open_home(home.path) == home
    with pytest.raises(ConfigError, match=r"no node\.json"):
        open_home(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="letters, digits"):
        create_home(tmp_path / "x", "../x", [], home.config)
    (home.path / "node.json").write_text('{"name": "clinic"}')
    with pytest.raises(ConfigError, match=r"not a valid node\.json"):
        open_home(home.path)

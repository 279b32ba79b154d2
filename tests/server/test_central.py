"""The round loop under a trusted coordinator's noise, with made-up nodes behind the real messages."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.aggregation.central_dp import CentralNoise
from fedpeft.aggregation.global_state import initial_state
from fedpeft.config import build_config
from fedpeft.errors import FederationError, PrivacyError
from fedpeft.exchange import Context, DenseFp32, ExchangePlan, Layout, Update, seal
from fedpeft.privacy import Ledger, noise
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import HelloReply, TrainReply, TrainTask, run_id, state_digest
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import RunStore, create_run
from fedpeft.trust import Signer
from fedpeft_server.rounds import checkpoints, round_loop
from fedpeft_server.rounds.broadcast_cache import Broadcasts
from fedpeft_server.rounds.checkpoints import load_arrays
from fedpeft_server.rounds.roster import Agreed
from fedpeft_server.rounds.run_setup import Setup

LAYOUT = Layout.of({"w": np.zeros((4, 5))})
DENSE = {"codec": "dense-fp32", "error_feedback": False}
PLAIN = ExchangePlan((), DenseFp32())


@dataclass
class Made:
    """A run of made-up nodes.

    Attributes:
        run: its directory.
        setup: as the coordinator prepares it.
        values: what a node sends in a round; None: it fails.
        asked: (round, node) in the order of asking.
    """

    run: Path
    setup: Setup
    values: object = lambda round, index: np.ones(LAYOUT.size)
    asked: list = field(default_factory=list)

    def go(self, nodes=3, until=None):
        """Run to the end, or until an event of this round was told."""
        store = RunStore.open(self.run)

        def report(event):
            if until is not None and event.get("round") == until:
                raise KeyboardInterrupt

        grid = flower.LocalGrid(self._app(), [{"index": index} for index in range(nodes)])
        try:
            round_loop._resume(self.setup, store, report).run(grid)
        finally:
            grid.close()
        return list(store.events("round"))

    @property
    def ledger(self):
        return Ledger(self.run / "ledger.sqlite")

    @property
    def final(self):
        return load_arrays(self.run / "state" / "final.npz")[0]["values"]

    def reserved(self):
        return [entry.body for entry in self.ledger.entries() if entry.body["kind"] == "reserve"]

    def _app(self):
        app = ClientApp()
        signers = [Signer.from_seed(bytes([index]) * 32) for index in range(50)]
        facts = {
            "run": self.setup.run_id,
            "base": "ba5e",
            "layout": LAYOUT.digest,
            "state": state_digest(LAYOUT, np.zeros(LAYOUT.size, np.float32)),
        }

        @app.query()
        def hello(message, context):
            index = context.node_config["index"]
            key = signers[index].public
            reply = HelloReply(name=f"n{index}", key=key, rank=2, versions=[], **facts)
            return Message(pack(reply), reply_to=message)

        @app.train()
        def train(message, context):
            index = context.node_config["index"]
            task, _ = unpack(message, TrainTask, 1 << 20)
            self.asked.append((task.round, f"n{index}"))
            given = self.values(task.round, index)
            if given is None:
                raise RuntimeError("private text")
            update = Update(LAYOUT, np.asarray(given, np.float32), task.round, 1)
            context = Context(self.setup.run_id, task.round, f"n{index}", task.state, "up")
            reply = TrainReply(task.round, 1, 0.0, 0.0, len(self.asked), bytes(32))
            return Message(pack(reply, seal(update, PLAIN, context, signers[index])), reply_to=message)

        return app


@pytest.fixture
def make(tmp_path):
    def made(name="run", privacy=None, audit=None, **federation):
        protected = {"unit": "node", "trust": "central", "noise_multiplier": 1.5, "clip": 2.0}
        config = build_config(
            {
                "federation": {"nodes": 3, "rounds": 3, "quorum": 2, "deadline": 20.0, **federation},
                "privacy": protected | (privacy or {}) if privacy != "off" else {},
                "exchange": {"up": DENSE, "down": DENSE},
                "audit": audit or {"enabled": False},
                "run": {"checkpoint_every": 2},
            }
        )
        create_run(tmp_path / name, config)
        return Made(tmp_path / name, setup_of(tmp_path / name, config))

    return made


def setup_of(run, config):
    zeros, identity = np.zeros(LAYOUT.size, np.float32), run_id(config)
    plan, signer = RunPlan.from_config(config, LAYOUT.size), Signer.from_seed(bytes(32))
    agreed = Agreed(identity, "ba5e", lambda name: LAYOUT.digest, state_digest(LAYOUT, zeros), signer.public)
    noise = CentralNoise.of(plan.central) if plan.central else None
    state = initial_state(config, None, LAYOUT, zeros, noise)
    kept = Broadcasts(run / "broadcasts", 5)
    return Setup(run, config, identity, signer, agreed, state, kept, plan)


def no_noise(monkeypatch):
    drawn = []

    def silent(size, *source):
        drawn.append(size)
        return np.zeros(size)

    monkeypatch.setattr(noise, "gaussian", silent)
    return drawn


def test_each_round_is_reserved_before_anybody_is_asked_and_told_without_figures_of_updates(make):
    made = make(audit={"enabled": True})
    reserved = []
    made.values = lambda round, index: reserved.append(len(made.reserved())) or np.ones(LAYOUT.size)
    events = made.go()
    assert reserved == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    bodies = made.reserved()
    assert [body["round"] for body in bodies] == [1, 2, 3]
    assert {(body["lineage"], body["run"]) for body in bodies} == {
        (made.setup.config.run.name, made.setup.run_id.hex())
    }
    assert sum(entry.body["kind"] == "released" for entry in made.ledger.entries()) == 3
    epsilons = [event["spent"]["epsilon"] for event in events]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == pytest.approx(made.setup.plan.privacy.epsilon(), rel=2e-3)
    for event in events:
        assert event["applied"] and event["clip"] == 2.0 and event["noise"] == 1.5 * 2.0 / 3
        assert not {"mean", "norm", "naive_error", "density", "entropy_bits", "codecs"} & event.keys()
        json.dumps(event)


def test_the_audit_taps_the_noisy_mean_only(make):
    made = make(audit={"enabled": True, "rounds": [1]})
    made.values = lambda round, index: np.zeros(LAYOUT.size)
    made.go()
    tapped, _ = load_arrays(made.run / "updates" / "r01" / "aggregate.npz")
    assert (tapped["values"] != 0).all()


@pytest.mark.parametrize("silent", [0, 1, 2, 3])
def test_fewer_replies_change_neither_divisor_nor_noise(make, monkeypatch, silent):
    drawn = no_noise(monkeypatch)
    made = make(rounds=1)
    direction = np.ones(LAYOUT.size) / np.sqrt(LAYOUT.size)
    made.values = lambda round, index: None if index < silent else 100.0 * direction
    (event,) = made.go()
    assert event["applied"] and event["replies"] == 3 - silent
    assert event["noise"] == 1.5 * 2.0 / 3
    assert drawn == [LAYOUT.size]
    np.testing.assert_allclose(made.final, (3 - silent) * 2.0 / 3 * direction, rtol=1e-5)


@pytest.mark.parametrize("hostile", [np.nan, np.inf, 3e38, 1e-45])
def test_a_released_step_moves_by_at_most_the_clip_over_the_divisor_for_one_hostile_node(
    make, monkeypatch, hostile
):
    no_noise(monkeypatch)
    finals = []
    for index, sent in enumerate((0.0, hostile)):
        made = make(f"run{index}", rounds=1)
        rng = np.random.default_rng(0)
        normal = {node: rng.standard_normal(LAYOUT.size) for node in range(3)}

        def values(round, node, sent=sent, normal=normal):
            return np.full(LAYOUT.size, sent) if node == 1 else normal[node]

        made.values = values
        made.go()
        finals.append(made.final.astype(np.float64))
    assert np.linalg.norm(finals[1] - finals[0]) <= 2.0 / 3 * (1 + 1e-6)  # the file holds float32


def test_a_round_repeated_after_a_kill_has_other_noise_and_is_charged_again(make):
    made = make()
    with pytest.raises(KeyboardInterrupt):
        made.go(until=2)
    found = checkpoints.latest(made.run)
    assert found.round == 1  # every round is kept, whatever run.checkpoint_every says
    first = [entry for entry in made.ledger.entries() if entry.body["kind"] == "released"]
    made.go()
    assert [body["round"] for body in made.reserved()] == [1, 2, 2, 3]
    assert made.ledger.spent(made.setup.config.run.name) == pytest.approx(
        made.setup.plan.privacy.epsilon(4), rel=2e-3
    )
    releases = [entry.body["sha256"] for entry in made.ledger.entries() if entry.body["kind"] == "released"]
    assert len(releases) == 4 == len(set(releases)) and len(first) == 2
    assert [event["round"] for event in RunStore.open(made.run).events("round")] == [1, 2, 3]


def test_a_round_that_was_killed_when_nodes_were_asked_is_charged_again(make, monkeypatch):
    made, ask = make(), round_loop.Coordinator._ask

    def killed(self, *arguments):
        ask(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(round_loop.Coordinator, "_ask", killed)
        with pytest.raises(KeyboardInterrupt):
            made.go()
    made.go()
    assert [body["round"] for body in made.reserved()] == [1, 1, 2, 3]


def test_the_budget_ends_a_run_before_anybody_is_asked(make):
    made = make(privacy={"budget": 4.0})
    assert made.setup.plan.privacy.epsilon(1) < 4.0 < made.setup.plan.privacy.epsilon(2)
    with pytest.raises(PrivacyError, match="budget"):
        made.go()
    assert {round for round, _ in made.asked} == {1}
    assert checkpoints.latest(made.run).round == 1


def test_a_draw_of_nobody_is_a_round_of_noise(make, monkeypatch):
    monkeypatch.setattr(round_loop, "sample", lambda *given: [])
    made = make(selection="poisson", participation=0.5, rounds=4)
    events = made.go()
    assert made.asked == []
    assert [event["applied"] for event in events] == [True] * 4
    assert (made.final != 0).all()
    assert len(made.reserved()) == 4


def test_without_privacy_a_draw_of_nobody_is_a_round_without_a_step(make, monkeypatch):
    monkeypatch.setattr(
        round_loop, "sample", lambda names, federation, seed, round, source: ["n1"] * (round == 6)
    )
    made = make(privacy="off", selection="poisson", participation=0.5, rounds=6)
    events = made.go()
    assert [event["applied"] for event in events] == [False] * 5 + [True]  # one of one is a majority
    assert not (made.run / "ledger.sqlite").exists()


def test_the_draw_of_secret_coins_leaves_no_names(make):
    made = make(selection="poisson", participation=0.6, rounds=8)
    made.values = lambda round, index: None if index == 1 else np.ones(LAYOUT.size)
    events = made.go()
    drawn = {round: {name for number, name in made.asked if number == round} for round in range(1, 9)}
    assert len(set(map(frozenset, drawn.values()))) > 1
    for event in events:
        told = json.dumps(event)
        assert not any(f"n{index}" in told.replace("node", "") for index in range(3))
        assert event["replies"] + len(event["refused"]) == len(drawn[event["round"]])
    assert {body["event"]["sampling_probability"] for body in made.reserved()} == {0.6}


def test_turns_with_bands_are_one_reservation_and_keep_their_noise_through_a_kill(make):
    privacy = {"bands": 2}
    made = make(privacy=privacy, nodes=4, selection="cyclic", participation=0.5, rounds=6)
    with pytest.raises(KeyboardInterrupt):
        made.go(nodes=4, until=4)
    kept = checkpoints.latest(made.run)
    assert kept.round == 3 and kept.arrays["law/history"].shape == (1, LAYOUT.size)
    assert [body["steps"] for body in made.reserved()] == [3]
    made.go(nodes=4)
    assert [body["steps"] for body in made.reserved()] == [3, 2]
    for index in range(4):
        rounds = sorted({round for round, name in made.asked if name == f"n{index}"})
        assert rounds == list(range(1 + index % 2, 7, 2))


def test_an_adaptive_clip_is_told_and_survives_a_kill(make):
    privacy = {"adaptive_clip": True, "clip": 0.01, "noise_multiplier": 0.3, "clip_lr": 1.0}
    made = make(privacy=privacy, rounds=8)
    with pytest.raises(KeyboardInterrupt):
        made.go(until=5)
    kept = checkpoints.latest(made.run).arrays["law/clip"][0]
    events = made.go()
    clips = [event["clip"] for event in events]
    assert clips[0] == 0.01 and clips[4] == kept
    assert clips[-1] > 2 * clips[0]  # all updates are longer: it grows, but for noise of 5 deviations


def test_a_federation_that_is_gone_ends_the_run_and_spends_no_more_than_three_rounds(make):
    made = make(rounds=9)
    store = RunStore.open(made.run)
    grid = flower.LocalGrid(made._app(), [{"index": index} for index in range(3)])
    federation = round_loop._resume(made.setup, store, lambda event: None)
    asked = federation._sample
    gone = grid.get_node_ids

    def sample(number):
        grid.get_node_ids = (lambda: []) if number >= 2 else gone
        return asked(number)

    federation._sample = sample
    try:
        with pytest.raises(FederationError, match="no quorum"):
            federation.run(grid)
    finally:
        grid.close()
    assert len(made.reserved()) <= 5


def test_a_reproducible_run_repeats_its_noise_and_its_draws_and_claims_nothing(make):
    finals = []
    for name in ("a", "b"):
        made = make(name, privacy={"randomness": "seeded"}, selection="poisson", participation=0.5)
        events = made.go()
        assert [event["spent"]["epsilon"] for event in events] == ["unbounded"] * 3
        finals.append(made.final)
    np.testing.assert_array_equal(*finals)
    assert (finals[0] != 0).all()

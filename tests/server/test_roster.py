"""Who is let in, and who is asked."""

import threading

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.config.models import FederationConfig
from fedpeft.privacy.plan_builder import period
from fedpeft.protocol.encoding import pack
from fedpeft.protocol.messages import HelloReply
from fedpeft_server.rounds.roster import GREETINGS, Agreed, Roster, sample

AGREED = Agreed(b"r" * 16, "ba5e", lambda name: b"l" * 32, b"s" * 32, b"k" * 32)
GOOD = {
    "run": b"r" * 16,
    "base": "ba5e",
    "layout": b"l" * 32,
    "state": b"s" * 32,
    "key": b"1" * 32,
    "rank": 2,
}


def greet_all(*replies, times=1):
    app, asked = ClientApp(), []

    @app.query()
    def hello(message, context):
        asked.append(context.node_config["index"])
        facts = replies[context.node_config["index"]]
        if facts is None:
            raise RuntimeError("private text")
        return Message(pack(HelloReply(versions=[], **facts)), reply_to=message)

    grid = flower.LocalGrid(app, [{"index": index} for index in range(len(replies))])
    roster = Roster(AGREED)
    for _ in range(times):
        roster.refresh(grid, 10.0, threading.Event())
    grid.close()
    return roster, asked


def test_nodes_that_agree_are_members():
    roster, asked = greet_all({"name": "b", **GOOD}, {"name": "a", **GOOD}, times=3)
    assert sorted(roster.members) == ["a", "b"]
    assert roster.refused == {}
    assert sorted(asked) == [0, 1]


def test_each_disagreement_has_its_cause():
    roster, _ = greet_all(
        {"name": "run", **GOOD, "run": b"x" * 16},
        {"name": "base", **GOOD, "base": "0the4"},
        {"name": "layout", **GOOD, "layout": b"x" * 32},
        {"name": "state", **GOOD, "state": b"x" * 32},
        {"name": "key", **GOOD, "key": b"x"},
        {"name": "../escape", **GOOD},
        None,
    )
    assert roster.members == {}
    assert roster.refused == {
        "run": "its agreed config differs from this run's config",
        "base": "its base has hash 0the4, this run's base has ba5e",
        "layout": "its adapter layout differs",
        "state": "its starting state differs",
        "key": "its public key is not 32 bytes",
        "node-1005": "fact 'name' of a message is missing or out of range",
        "node-1006": "RuntimeError",
    }


def test_a_name_belongs_to_its_first_key():
    roster, _ = greet_all({"name": "a", **GOOD}, {"name": "a", **GOOD, "key": b"2" * 32})
    assert roster.members["a"].key == b"1" * 32
    known = Roster(AGREED, keys={"a": b"9" * 32})
    assert known.keys["a"] == b"9" * 32


def test_silent_nodes_are_greeted_a_few_times_only():
    app = ClientApp()
    grid = flower.LocalGrid(app, [{}])
    grid.push_messages = lambda messages: ["lost" for _ in messages]  # what a network may do
    roster = Roster(AGREED)
    for _ in range(GREETINGS + 2):
        roster.refresh(grid, 0.05, threading.Event())
    grid.close()
    assert roster._greeted == {1000: GREETINGS}


NAMES = [f"n{index}" for index in range(10)]


def federation(selection, participation):
    return FederationConfig(selection=selection, participation=participation)


def test_a_seeded_draw_is_a_reproducible_share():
    third = federation("seeded", 0.3)
    assert sample(NAMES, federation("seeded", 1.0), 0, 1) == NAMES
    chosen = [sample(NAMES, third, 7, round) for round in range(1, 300)]
    assert all(len(set(part)) == 3 and part == sorted(part) for part in chosen)
    assert chosen == [sample(reversed(NAMES), third, 7, round) for round in range(1, 300)]
    counts = [sum(name in part for part in chosen) for name in NAMES]
    assert min(counts) > 60 and max(counts) < 120
    assert sample(NAMES, federation("seeded", 0.01), 0, 1) != []


def test_secret_coins_fall_for_each_node_alone_and_follow_no_seed():
    draws = [sample(NAMES, federation("poisson", 0.3), 7, 1) for _ in range(3000)]
    assert all(part == sorted(part) for part in draws)
    inside = np.array([[name in part for name in NAMES] for part in draws], float)
    assert abs(inside.mean(axis=0) - 0.3).max() < 6 * np.sqrt(0.21 / 3000)
    together = np.corrcoef(inside.T) - np.eye(10)
    assert abs(together).max() < 6 / np.sqrt(3000)
    sizes = inside.sum(axis=1)
    assert abs(sizes.var() - 10 * 0.21) < 0.4  # binomial: a fixed size would have none
    assert [] in draws and max(map(len, draws)) > 5
    assert sample([], federation("poisson", 0.3), 7, 1) == []


@pytest.mark.parametrize(("participation", "turns"), [(1.0, 1), (0.5, 2), (1 / 3, 3), (0.1, 10), (0.3, 3)])
def test_in_turns_each_node_is_asked_once_in_a_period(participation, turns):
    assert period(participation) == turns
    chosen = [sample(NAMES, federation("cyclic", participation), 0, round) for round in range(1, 41)]
    for name in NAMES:
        rounds = [index for index, part in enumerate(chosen) if name in part]
        assert set(np.diff(rounds)) == {turns}
    sizes = [len(part) for part in chosen]
    assert max(sizes) - min(sizes) <= 1


def test_a_late_node_changes_nobodys_turn():
    shares = federation("cyclic", 0.25)
    for round in range(1, 9):
        before = sample(NAMES, shares, 0, round)
        assert [name for name in sample([*NAMES, "a-late-one"], shares, 0, round) if name in NAMES] == before

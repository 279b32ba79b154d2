"""A bad reply of every kind is recorded with its cause, and the round goes on with the others."""

import time
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedpeft import flower
from fedpeft.exchange import Layout
from fedpeft.protocol.encoding import pack
from fedpeft.trust import Signer
from fedpeft_server.rounds import replies
from fedpeft_server.rounds.ask_nodes import Question, ask
from fedpeft_server.rounds.checkpoints import load_arrays

SIZE = 20
EARLIER = {}


def final(made):
    return load_arrays(made.run / "state" / "final.npz")[0]["values"]


def answer(message, facts, blob):
    return Message(pack(facts, blob), reply_to=message)


def unsealed(value):
    """A signed envelope that holds a value which no honest node can seal."""

    def make(made, message, facts, blob):
        from fedpeft.exchange import envelope

        body = blob[:4] + np.full(SIZE, value, "<f4").tobytes()
        task = made.order(message)
        signed = envelope._signed(body, made.setup.initial.layout, task)
        return answer(message, facts, body + Signer.from_seed(bytes([2]) * 32).sign(signed))

    return make


def other_group(made, message, facts, blob):
    reply = answer(message, facts, blob)
    reply.metadata.__dict__["_group_id"] = "1"
    return reply


def fails(made, message, facts, blob):
    raise ValueError("a patient's name")


OTHER = Layout.of({"w": np.zeros((5, 4))})
BAD = {
    "garbage": (
        lambda made, message, facts, blob: Message(
            RecordDict({"junk": ConfigRecord({"a": 1})}), reply_to=message
        ),
        "unexpected records in a message",
    ),
    "oversized": (
        lambda made, message, facts, blob: answer(message, facts, bytes(10**5)),
        "a message's payload has 100000 bytes, allowed are 148",
    ),
    "cut off": (
        lambda made, message, facts, blob: answer(message, facts, blob[:40]),
        "envelope has 40 bytes; 68 to 148 are possible for this layout",
    ),
    "NaN": (unsealed(np.nan), "payload holds a value that is not finite"),
    "infinite": (unsealed(np.inf), "payload holds a value that is not finite"),
    "replayed": (lambda made, message, facts, blob: answer(message, facts, EARLIER[1]), "does not verify"),
    "an earlier round's": (
        lambda made, message, facts, blob: answer(message, replace(facts, round=1), EARLIER[1]),
        "its reply is for round 1",
    ),
    "wrongly signed": (
        lambda made, message, facts, blob: answer(
            message, facts, made.sealed(message, 2, signer=Signer.from_seed(b"x"))
        ),
        "does not verify",
    ),
    "another node's": (
        lambda made, message, facts, blob: answer(message, facts, made.sealed(message, 1)),
        "does not verify",
    ),
    "wrong layout": (
        lambda made, message, facts, blob: answer(message, facts, made.sealed(message, 2, layout=OTHER)),
        "does not verify",
    ),
    "stale group": (other_group, "its reply belongs to another round's messages"),
    "error": (fails, "ValueError"),
    "ledger back": (
        lambda made, message, facts, blob: answer(message, replace(facts, ledger_entry=1), blob),
        "its privacy ledger went back",
    ),
    "no ledger": (
        lambda made, message, facts, blob: answer(message, replace(facts, ledger=b""), blob),
        "its privacy ledger went back",
    ),
    "too many steps": (
        lambda made, message, facts, blob: answer(message, replace(facts, steps=11), blob),
        "it reports 11 local steps",
    ),
    "too long": (
        lambda made, message, facts, blob: answer(
            message, facts, made.sealed(message, 2, np.full(SIZE, 1e6))
        ),
        "10 times the round's median",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_refused_alone(deploy, kind):
    spoil, cause = BAD[kind]
    made = deploy(local_steps=10, quorum=2)

    def bad(round, index, message, facts, blob):
        if index == 2 and round == 1:
            EARLIER[1] = blob
        return spoil(made, message, facts, blob) if (index, round) == (2, 2) else answer(message, facts, blob)

    made.spoil = bad
    events = made.go()
    assert [event["replies"] for event in events] == [3, 2, 3]
    assert all(event["applied"] for event in events)
    assert list(events[1]["refused"]) == ["n2"]
    assert cause in events[1]["refused"]["n2"]
    assert "patient" not in str(events)
    assert not (made.run / "updates" / "r02" / "n2.fpd").exists()
    np.testing.assert_allclose(final(made), np.full(SIZE, 2.0 + 1.5 + 2.0), rtol=1e-6)


def test_the_bytes_of_refused_updates_are_counted_and_their_values_are_not(deploy):
    made = deploy(rounds=1)
    made.values = lambda round, index: np.full(SIZE, 1e6 if index == 2 else 1.0)
    (event,) = made.go()
    assert event["bytes_up"] == 3 * (68 + 4 * SIZE)
    assert event["values_up"] == 2 * SIZE
    assert event["density"] == 1.0


def test_of_two_updates_nobody_can_say_which_is_too_long(deploy):
    made = deploy(rounds=1, nodes=2)
    made.values = lambda round, index: np.full(SIZE, 10.0 ** (6 * index))
    (event,) = made.go()
    assert event["refused"] == {}


def test_a_bound_that_is_set_holds_for_any_number_of_nodes(deploy):
    made = deploy(rounds=1, nodes=2, quorum=1, norm_bound=9.0)
    made.values = lambda round, index: np.full(SIZE, 2.0 + index)
    (event,) = made.go()
    assert event["refused"] == {"n1": "its update has norm 13.4, federation.norm_bound is 9"}


@pytest.mark.parametrize(("robust", "moved"), [("median", 3.0), ("trimmed-mean", 3.0), ("norm-clip", 2.4)])
def test_a_run_takes_the_robust_mean(deploy, robust, moved):
    made = deploy(rounds=1, nodes=5, robust=robust, norm_ratio=0.0)
    made.values = lambda round, index: np.full(SIZE, (1.0, 2.0, 3.0, 4.0, 500.0)[index])
    (event,) = made.go()
    np.testing.assert_allclose(final(made), np.full(SIZE, moved), rtol=1e-6)
    assert event["replies"] == 5
    assert {"trimmed", "clipped"} & event.keys()


def test_a_late_reply_counts_in_no_round(deploy):
    made = deploy(quorum=2, deadline=0.6)

    def slow(round, index, message, facts, blob):
        if (round, index) == (2, 2):
            time.sleep(0.9)
        return answer(message, facts, blob)

    made.spoil = slow
    events = made.go()
    assert [event["replies"] for event in events] == [3, 2, 3]
    assert events[1]["refused"] == {"n2": "no reply before the round closed"}
    assert not (made.run / "updates" / "r02" / "n2.fpd").exists()


def test_a_full_disk_of_the_coordinator_is_no_fault_of_the_nodes(deploy, monkeypatch):
    made = deploy()

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replies, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        made.go()
    assert made.told("round") == []


class Recording(flower.LocalGrid):
    """A grid that keeps what is pushed, and knows only some nodes, as after a revocation."""

    def __init__(self, *given):
        super().__init__(*given)
        self.pushed = []

    def push_messages(self, messages):
        self.pushed = list(messages)
        return ["" for _ in self.pushed]


def test_messages_live_about_as_long_as_the_deadline_and_unknown_nodes_are_not_waited_for():
    grid, started = Recording(None, [{}]), time.monotonic()
    assert ask(grid, Question("train", "3", 20.0), {1000: RecordDict()}) == {}
    assert time.monotonic() - started < 5
    (message,) = grid.pushed
    assert message.metadata.ttl == 21.0
    assert message.metadata.group_id == "3"
    grid.close()

"""One bad node never ends a run: its cause is written down and the others go on."""

import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.errors import FederationError
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import TrainReply


def misbehave(kind, message, context, honest):
    """What one bad node does instead of the honest reply."""
    if kind == "raise":
        raise ValueError("a patient's name")
    if kind == "garbage":
        return Message(RecordDict({"junk": ConfigRecord({"a": 1})}), reply_to=message)
    if kind == "slow":
        time.sleep(2.5)
    reply = honest(message=message, context=context)
    facts, blob = unpack(reply, TrainReply, 10**6)
    if kind == "flip":
        blob = blob[:-1] + bytes([blob[-1] ^ 1])
    if kind == "replay":
        facts = TrainReply(**{**vars(facts), "round": 1})
    if kind == "ledger":
        facts = TrainReply(**{**vars(facts), "ledger_entry": 0})
    return Message(pack(facts, b"\0" * 10**5 if kind == "huge" else blob), reply_to=message)


def run_with(prepared, kind, when=2):
    """Run a federation in which org-00 misbehaves in one round; the round events."""
    from fedpeft_clients.app import app as honest
    from fedpeft_server.app import make_app

    made, events = ClientApp(), []
    made.query()(lambda message, context: honest(message=message, context=context))

    @made.train()
    def train(message, context):
        if context.node_config["home"].endswith("org-00") and message.metadata.group_id == str(when):
            return misbehave(kind, message, context, honest)
        return honest(message=message, context=context)

    homes = [{"home": str(home)} for home in prepared.homes]
    flower.run_local(make_app(events.append, prepared.run), made, homes, {})
    return [event for event in events if event["event"] == "round"]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("raise", "ValueError"),
        ("garbage", "unexpected records in a message"),
        ("flip", "does not verify"),
        ("replay", "its reply is for round 1"),
        ("ledger", "privacy ledger went back"),
        ("huge", "payload has 100000 bytes"),
    ],
)
def test_a_bad_reply_is_refused_alone(federation, kind, cause):
    prepared = federation(kind, federation={"nodes": 3, "rounds": 3, "quorum": 2})
    events = run_with(prepared, kind)
    assert [event["replies"] for event in events] == [3, 2, 3]
    assert list(events[1]["refused"]) == ["org-00"]
    assert cause in events[1]["refused"]["org-00"]
    assert all(event["applied"] for event in events)
    assert not (prepared.run / "updates" / "r02" / "org-00.fpd").exists()
    assert np.isfinite(prepared.final["values"]).all()


def test_a_straggler_misses_its_round_and_comes_back(federation):
    prepared = federation("slow", federation={"nodes": 3, "rounds": 3, "quorum": 1, "deadline": 2.0})
    events = run_with(prepared, "slow")
    assert "no reply before the round closed" in events[1]["refused"]["org-00"]
    assert events[2]["replies"] >= 1
    assert np.isfinite(prepared.final["values"]).all()


def test_a_round_without_quorum_changes_nothing(federation):
    prepared = federation("lost", federation={"nodes": 2, "rounds": 2, "quorum": 2})
    alone = federation("alone", federation={"nodes": 2, "rounds": 2, "quorum": 2})
    events = run_with(prepared, "raise")
    assert [event["applied"] for event in events] == [True, False]
    alone.go()
    assert not np.array_equal(prepared.final["values"], alone.final["values"])


def test_nobody_ever_answers(federation):
    prepared = federation("none", federation={"nodes": 1, "rounds": 1})
    with pytest.raises(FederationError, match=r"no quorum in 1 consecutive rounds.*org-00: ValueError"):
        run_with(prepared, "raise", when=1)


def test_privacy_is_spent_and_reported(federation):
    privacy = {"unit": "record", "epsilon": 8.0, "public_records": 16, "max_noise_to_signal": 99.0}
    events = [event for event in federation("dp", privacy=privacy).go() if event["event"] == "round"]
    first, last = events[0]["epsilon"], events[-1]["epsilon"]
    assert all(0 < first[name] < last[name] <= 8.0 for name in first)

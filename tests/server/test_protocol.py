"""Messages are believed only as far as they are checked."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedpeft import flower
from fedpeft.config import Config
from fedpeft.errors import FederationError
from fedpeft.protocol.encoding import SMALL, pack, unpack
from fedpeft.protocol.messages import Hello, TrainReply, TrainTask, run_id

REPLY = TrainReply(round=2, steps=3, train_s=1.5, epsilon=0.0, ledger_entry=2, ledger=b"x" * 32)
TASK = TrainTask(1, 2, 0.1, "delta", 1, [40, 2], bytes(32), [0, 3], 5.0)


def message(content) -> Message:
    flower.identify(1, 1)
    return Message(content, 1, "train", group_id="1")


@pytest.mark.parametrize(
    ("facts", "blob"),
    [
        (REPLY, b"envelope"),
        (TASK, b""),
        (Hello(1, b"r" * 16, b"k" * 32), b""),
        (REPLY, bytes(SMALL)),
        (REPLY, bytes(SMALL + 1)),
    ],
)
def test_what_is_packed_is_what_is_unpacked(facts, blob):
    crossed = flower.deserialise(*flower.serialise(message(pack(facts, blob))))
    assert unpack(crossed, type(facts), SMALL + 1) == (facts, blob)


def test_a_small_message_is_three_objects():
    """Each object is a request of its own on the way."""
    assert len(flower.serialise(message(pack(REPLY, b"envelope")))[1]) == 3


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"round": -1}, "'round'"),
        ({"round": 2.0}, "'round'"),
        ({"round": True}, "'round'"),
        ({"train_s": float("nan")}, "'train_s'"),
        ({"epsilon": -0.1}, "'epsilon'"),
        ({"ledger": b"x" * 33}, "'ledger'"),
        ({"ledger": "text"}, "'ledger'"),
        ({"surprise": 1}, "an unexpected fact"),
    ],
)
def test_facts_out_of_range_are_refused(change, cause):
    content = pack(REPLY)
    for name, value in change.items():
        content["facts"][name] = value
    with pytest.raises(FederationError, match=cause):
        unpack(message(content), TrainReply, 10)


def test_a_missing_fact_is_refused():
    content = pack(REPLY)
    del content["facts"]["steps"]
    with pytest.raises(FederationError, match="'steps'"):
        unpack(message(content), TrainReply, 10)


def test_payloads_are_bounded_and_of_one_kind():
    with pytest.raises(FederationError, match="has 11 bytes, allowed are 10"):
        unpack(message(pack(REPLY, b"x" * 11)), TrainReply, 10)
    content = pack(REPLY)
    content["blob"] = ArrayRecord({"payload": Array("float32", (1,), "numpy.ndarray", b"1234")})
    with pytest.raises(FederationError, match="not a packed blob"):
        unpack(message(content), TrainReply, 10)
    with pytest.raises(FederationError, match="unexpected payload"):
        unpack(message(RecordDict({"facts": ConfigRecord({"round": 1})})), TrainReply, 10)
    with pytest.raises(FederationError, match="unexpected records"):
        unpack(message(RecordDict({"junk": ConfigRecord({})})), TrainReply, 10)


@pytest.mark.parametrize(
    ("reason", "cause"), [("ValueError", "ValueError"), ("the patient's name", "node error 2")]
)
def test_only_class_names_of_errors_are_repeated(reason, cause):
    reply = Message(Error(2, reason), reply_to=message(pack(REPLY)))
    with pytest.raises(FederationError, match=f"^{cause}$"):
        unpack(reply, TrainReply, 10)


def test_run_id_depends_on_what_changes_the_result_only():
    config = Config()
    same = config.model_copy(update={"federation": config.federation.model_copy(update={"backend": "ray"})})
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})})
    assert run_id(config) == run_id(same) != run_id(other)
    assert len(run_id(config)) == 16

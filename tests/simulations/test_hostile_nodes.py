"""Ten nodes that train, three of them hostile: the run completes, and its adapter is as good as ever."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.adapters import attach
from fedpeft.data import Record
from fedpeft.evaluation.held_out import load_run_base, tokens
from fedpeft.evaluation.metrics import evaluate
from fedpeft.exchange import Context, DenseFp32, ExchangePlan, Update, envelope, open_envelope, seal
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import TrainReply, TrainTask, run_id
from fedpeft.trust import Verifier
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.run_home import open_home

PLAIN = ExchangePlan((), DenseFp32())
WORDS = ["the", "patient", "asked", "for", "a", "letter", "to", "the", "heart", "team"]
NAN, HUGE, FLIPPED = "org-01", "org-04", "org-08"


def as_hostile(home, message, reply):
    """What a hostile node, with its own good key, sends in place of its update."""
    if home.name not in (NAN, HUGE, FLIPPED):
        return reply
    (order, _), (facts, blob) = unpack(message, TrainTask, 1 << 24), unpack(reply, TrainReply, 1 << 24)
    layout, signer = NodeContext(home).attached.layout, NodeContext(home).signer
    where = Context(run_id(home.config), order.round, home.name, order.state, "up")
    values = open_envelope(blob, layout, DenseFp32(), where, Verifier(signer.public)).dense()
    if home.name == NAN:
        body = blob[:4] + np.full(layout.size, np.nan, "<f4").tobytes()
        blob = body + signer.sign(envelope._signed(body, layout, where))
    else:
        changed = values * np.float32(1e6) if home.name == HUGE else -values
        blob = seal(Update(layout, changed, order.round, 1), PLAIN, where, signer)
    return Message(pack(facts, blob), reply_to=message)


def run_with(prepared, hostile):
    from fedpeft_clients.app import app as honest
    from fedpeft_server.app import make_app

    made, events = ClientApp(), []
    made.query()(lambda message, context: honest(message=message, context=context))

    @made.train()
    def train(message, context):
        home, reply = open_home(Path(context.node_config["home"])), honest(message=message, context=context)
        return as_hostile(home, message, reply) if hostile else reply

    homes = [{"home": str(home)} for home in prepared.homes]
    flower.run_local(make_app(events.append, prepared.run), made, homes, {})
    return [event for event in events if event["event"] == "round"]


def held_out_loss(prepared, values):
    config = open_home(prepared.homes[0]).config
    rng, words = (
        np.random.default_rng(99),
        ["the", "patient", "asked", "for", "a", "letter", "to", "the", "heart", "team"],
    )
    records = [Record(" ".join(rng.choice(words, 6)), str(rng.choice(["green", "red"]))) for _ in range(64)]
    base = load_run_base(config, [])
    attached = attach(base, config.adapter, config.run.seed)
    attached.begin(values)
    return evaluate(attached, tokens(records, base, config, []), None, base.tokenizer).loss


@pytest.mark.slow
def test_three_hostile_nodes_of_ten_change_the_result_by_less_than_a_twentieth(federation):
    dense = {"codec": "dense-fp32", "error_feedback": False}
    common = {"exchange": {"up": dense, "down": dense}, "audit": {"enabled": False}}
    asked = {"nodes": 10, "rounds": 4, "local_steps": 4, "lr": 0.05}
    honest = federation("honest", federation=asked | {"robust": "none"}, **common)
    withstood = federation("hostile", federation=asked | {"robust": "trimmed-mean", "trim": 0.2}, **common)
    plain = {"robust": "none", "norm_ratio": 0.0}
    naive = federation("naive", federation=asked | {"rounds": 1} | plain, **common)
    assert all(event["replies"] == 10 for event in run_with(honest, False))
    events = run_with(withstood, True)
    assert [event["applied"] for event in events] == [True] * 4
    for event in events:
        assert event["refused"].keys() == {NAN, HUGE}
        assert event["refused"][NAN] == "payload holds a value that is not finite"
        assert "10 times the round's median" in event["refused"][HUGE]
        assert event["trimmed"] == 2
        json.dumps(event)
    run_with(naive, True)
    start = held_out_loss(honest, np.zeros_like(honest.final["values"]))
    good, robust, poor = (held_out_loss(made, made.final["values"]) for made in (honest, withstood, naive))
    print(f"loss: base {start:.4f}, honest {good:.4f}, hostile {robust:.4f}, without protection {poor:.4f}")
    assert good < 0.8 * start
    assert robust < 1.05 * good
    assert poor > start

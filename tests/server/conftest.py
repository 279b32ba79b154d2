"""A deployed run in one process: the real coordinator, its real messages, and made-up nodes behind them."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.aggregation.global_state import initial_state
from fedpeft.aggregation.robust import rule_of
from fedpeft.config import build_config
from fedpeft.exchange import Context, DenseFp32, ExchangePlan, Layout, Update, seal
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import (
    HelloReply,
    RunProposal,
    Terms,
    TermsReply,
    TrainReply,
    TrainTask,
    run_id,
    state_digest,
)
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import RunStore, create_run
from fedpeft.trust import Signer
from fedpeft_server.rounds import round_loop, run_terms, wait_for_nodes
from fedpeft_server.rounds.broadcast_cache import Broadcasts
from fedpeft_server.rounds.roster import Agreed
from fedpeft_server.rounds.run_setup import Setup
from fedpeft_server.rounds.run_terms import Enrolled, EnrolledNode

LAYOUT = Layout.of({"w": np.zeros((4, 5))})
PLAIN = ExchangePlan((), DenseFp32())
DENSE = {"codec": "dense-fp32", "error_feedback": False}
SIGNERS = [Signer.from_seed(bytes([index]) * 32) for index in range(20)]
OWNER = Signer.from_seed(b"coordinator")


def line_of(index):
    return b"ecdsa-sha2-nistp256 KEY%d" % index


class KeyedGrid(flower.LocalGrid):
    """A local grid that knows its nodes by keys, as a SuperLink with node authentication does."""

    @property
    def lines(self):
        return {node: line_of(node - 1000) + b" a comment" for node in self.get_node_ids()}


@dataclass
class Deployed:
    """A run of made-up nodes ``n0``, ``n1``, … and everything that was said.

    Attributes:
        answers: what a node answers to the terms, in turn; the last one for ever; default: agreed.
        name, key: what a node says of itself in its greeting.
        values: what a node sends in a round.
        spoil: may put another message, or an exception, in place of an update's reply.
        offline: nodes that are away now.
        enrolled: the nodes by name, as the coordinator's operator keeps them.
        asked: (kind, node, round or 0) in order.
    """

    run: Path
    setup: Setup
    nodes: int = 3
    answers: dict = field(default_factory=dict)
    name: object = "n{}".format
    key: object = lambda index: SIGNERS[index].public
    values: object = lambda round, index: np.full(LAYOUT.size, 1.0 + index)
    spoil: object = lambda round, index, message, facts, blob: Message(pack(facts, blob), reply_to=message)
    offline: set = field(default_factory=set)
    enrolled: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    run_terms: RunProposal | None = None
    events: list = field(default_factory=list)
    watch: object = lambda event: None
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        for index in range(self.nodes):
            self.enrolled[f"n{index}"] = EnrolledNode(f"n{index}", line_of(index), SIGNERS[index].public)

    def go(self, flower_run=1, deployed=True):
        """Run to the end; the events of rounds."""
        store = RunStore.open(self.run)

        def report(event):
            self.events.append(event)
            self.watch(event)

        grid = KeyedGrid(self._app(), [{"index": index} for index in range(self.nodes)], flower_run)
        every = grid.get_node_ids
        grid.get_node_ids = lambda: [node for node in every() if node - 1000 not in self.offline]
        made = round_loop._resume(self.setup, store, report, self.stop)
        if deployed:
            made.deploy(Enrolled(lambda: dict(self.enrolled), OWNER))
        try:
            made.run(grid)
        finally:
            grid.close()
        return list(store.events("round"))

    def order(self, message):
        """What an envelope of node 2 that answers an order is signed for."""
        task, _ = unpack(message, TrainTask, 1 << 20)
        return Context(self.setup.run_id, task.round, "n2", task.state, "up")

    def sealed(self, message, index, values=None, *, signer=None, round=None, layout=LAYOUT):
        """An envelope for an order, or one that is wrong in one thing."""
        task, _ = unpack(message, TrainTask, 1 << 20)
        where = Context(self.setup.run_id, round or task.round, f"n{index}", task.state, "up")
        given = self.values(task.round, index) if values is None else values
        update = Update(layout, np.asarray(given, np.float32), where.round, 1)
        return seal(update, PLAIN, where, signer or SIGNERS[index])

    def told(self, kind):
        return [event for event in self.events if event["event"] == kind]

    def _app(self):
        app, counts = ClientApp(), {}

        @app.query("terms")
        def agree(message, context):
            index = context.node_config["index"]
            self.asked.append(("terms", index, 0))
            _, blob = unpack(message, Terms, 1 << 20)
            self.terms = RunProposal.decode(blob)
            given = self.answers.get(index, ["agreed"])
            counts[index] = counts.get(index, -1) + 1
            answer = given[min(counts[index], len(given) - 1)]
            if isinstance(answer, Exception):
                raise answer
            if not isinstance(answer, TermsReply):
                answer = TermsReply(f"n{index}", *[*answer.split(":"), ""][:2])
            return Message(pack(answer), reply_to=message)

        @app.query()
        def hello(message, context):
            index = context.node_config["index"]
            self.asked.append(("hello", index, 0))
            facts = {
                "run": self.setup.run_id,
                "base": "ba5e",
                "layout": LAYOUT.digest,
                "state": state_digest(LAYOUT, np.zeros(LAYOUT.size, np.float32)),
            }
            reply = HelloReply(name=self.name(index), key=self.key(index), rank=2, versions=[], **facts)
            return Message(pack(reply), reply_to=message)

        @app.train()
        def train(message, context):
            index = context.node_config["index"]
            task, _ = unpack(message, TrainTask, 1 << 20)
            self.asked.append(("train", index, task.round))
            facts = TrainReply(task.round, 1, 0.0, 0.0, task.round, bytes(32))
            return self.spoil(task.round, index, message, facts, self.sealed(message, index))

        return app


@pytest.fixture
def deploy(tmp_path, monkeypatch):
    """A function from settings of the federation to a deployed run, not yet started."""
    monkeypatch.setattr(flower, "public_keys", lambda grid: grid.lines)
    monkeypatch.setattr(wait_for_nodes, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(wait_for_nodes, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(run_terms, "AGAIN_SECONDS", 0.05)

    def made(name="run", nodes=3, exchange=None, **federation):
        asked = {"nodes": nodes, "rounds": 3, "quorum": 2, "deadline": 5.0, "robust": "none", **federation}
        config = build_config(
            {"federation": asked, "exchange": {"up": DENSE, "down": DENSE} | (exchange or {})}
        )
        create_run(tmp_path / name, config)
        return Deployed(tmp_path / name, setup_of(tmp_path / name, config), nodes)

    return made


def setup_of(run, config):
    zeros, identity = np.zeros(LAYOUT.size, np.float32), run_id(config)
    agreed = Agreed(identity, "ba5e", lambda name: LAYOUT.digest, state_digest(LAYOUT, zeros), OWNER.public)
    state = initial_state(config, None, LAYOUT, zeros, rule_of(config))
    kept = Broadcasts(run / "broadcasts", 5)
    plan = RunPlan.from_config(config, LAYOUT.size)
    return Setup(run, config, identity, OWNER, agreed, state, kept, plan)

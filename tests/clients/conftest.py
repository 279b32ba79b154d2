"""One organisation's home with a tiny base, and the orders of a coordinator without one."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

TRAINING = {"nodes": 2, "rounds": 3, "local_steps": 2, "batch_size": 4}


@dataclass
class Coordinator:
    """Enough of a coordinator to give one node its orders."""

    home: object

    @property
    def signer(self):
        from fedpeft.trust import Signer

        return Signer.from_seed(b"coordinator")

    def hello(self):
        from fedpeft.protocol.messages import PROTOCOL, Hello, run_id

        return Hello(PROTOCOL, run_id(self.home.config), self.signer.public)

    def first_task(self, **changes):
        import time

        from fedpeft.protocol.messages import TrainTask
        from fedpeft.training import LocalPlan
        from fedpeft_clients.rounds.handlers import greet
        from fedpeft_clients.rounds.node_context import NodeContext

        state = greet(NodeContext(self.home), self.hello()).state
        federation = self.home.config.federation
        lr = LocalPlan.of(federation, min(changes.get("round", 1), federation.rounds)).lr
        task = TrainTask(1, 2, lr, "none", 0, [], state, [], time.time() + 600)
        return replace(task, **changes)

    def whole(self, values, round=1):
        """An order that sends a whole state of the coordinator's choice, and its bytes."""
        from fedpeft.exchange import Context, DenseFp32, ExchangePlan, Update, seal
        from fedpeft.protocol.messages import COORDINATOR, NO_STATE, run_id, state_digest
        from fedpeft_clients.rounds.node_context import NodeContext

        layout, values = NodeContext(self.home).attached.layout, np.asarray(values, np.float32)
        context = Context(run_id(self.home.config), round, COORDINATOR, NO_STATE, "down")
        blob = seal(Update(layout, values, round, 0), ExchangePlan((), DenseFp32()), context, self.signer)
        facts = {"broadcast": "full", "sizes": [len(blob)], "state": state_digest(layout, values)}
        return self.first_task(round=round, **facts), blob


def deal(homes, task):
    """Keys and shares of an attempt, with all of its nodes; what each was dealt, by node and dealer."""
    from fedpeft.protocol.encoding import pack_table, unpack_table
    from fedpeft_clients.rounds import secure_aggregation
    from fedpeft_clients.rounds.node_context import NodeContext

    def all_answer(phase, table):
        asked = replace(task, phase=phase)
        nodes, blob = map(NodeContext, homes), pack_table(table)
        return {node.home.name: secure_aggregation.answer(node, asked, blob)[1] for node in nodes}

    keys = all_answer("keys", {home.name: NodeContext(home).signer.public for home in homes})
    dealt = {name: unpack_table(messages) for name, messages in all_answer("shares", keys).items()}
    return {name: {dealer: dealt[dealer][name] for dealer in dealt} for name in dealt}


@pytest.fixture
def organisation(tmp_path, tiny_model_folder):
    """A function from settings to a home and a coordinator that speaks to it."""
    from fedpeft.adapters import detach
    from fedpeft.config import build_config
    from fedpeft.data import Record
    from fedpeft_clients.rounds.run_home import Simulated, create_home

    rng = np.random.default_rng(0)
    records = [Record(f"note {rng.integers(1000)} is", str(rng.choice(["green", "red"]))) for _ in range(12)]

    def make(name="clinic", tapped=False, records=records, roster=(), **sections):
        base = {"model": str(tiny_model_folder("llama")), "device": "cpu", "threads": 1}
        settings = {"base": base, "adapter": {"rank": 2}, "data": {"max_length": 32}, **sections}
        settings["federation"] = {**TRAINING, **sections.get("federation", {})}
        home = create_home(
            tmp_path / name, name, records, build_config(settings), Simulated(tapped, (), roster)
        )
        return home, Coordinator(home)

    yield make
    detach()


POLICY = """
version = 1
{top}
[bases]
"{base}" = "{folder}"
[cohort]
min_nodes = 2
min_quorum = 1
[adapter]
max_rank = 8
[privacy]
lineage_epsilon = 40.0
yearly_epsilon = 40.0
max_epsilon = 20.0
"""
PRIVATE_RUN = {
    "unit": "record",
    "noise_multiplier": 1.0,
    "sampling_probability": 0.3,
    "max_noise_to_signal": 99.0,
}


@dataclass
class Joined:
    """A real organisation that has joined a coordinator, which speaks to its app as Flower would."""

    organisation: object
    grant: object
    signer: object
    settings: dict

    @property
    def link(self):
        from fedpeft_clients.governance.run_approval import CoordinatorLink

        return CoordinatorLink(self.organisation, self.grant)

    def policy(self, **changes):
        """Write settings into the policy; ``privacy={"units": [...]}`` and the like change tables."""
        import tomllib

        import tomli_w

        held = tomllib.loads(self.organisation.policy.read_text())
        for key, value in changes.items():
            held[key] = {**held.get(key, {}), **value} if isinstance(value, dict) and value else value
        self.organisation.policy.write_text(tomli_w.dumps(held))

    def config(self, **sections):
        from fedpeft.config import build_config

        merged = {
            key: {**self.settings.get(key, {}), **sections.get(key, {})}
            for key in {*self.settings, *sections}
        }
        return build_config(merged)

    def say(self, kind, facts, blob=b"", flower_run=7):
        """(what was asked, what leaves through the gate)."""
        from flwr.app import Context, Message, RecordDict

        from fedpeft import flower
        from fedpeft.protocol.encoding import pack
        from fedpeft_clients.app import app
        from fedpeft_clients.outbox.gate import OrganisationGate

        flower.identify(flower_run, 1)
        asked = Message(pack(facts, blob), 1000, kind, ttl=600, group_id="")
        asked.metadata.__dict__["_message_id"] = "asked"
        node = {"organisation": str(self.organisation.path), "coordinator": self.grant.fingerprint}
        reply = flower.guarded(app, asked, Context(flower_run, 1000, node, RecordDict(), {}))
        return asked, OrganisationGate(self.link)(asked, reply)

    def terms(self, config, signer=None, **changes):
        from dataclasses import replace

        from fedpeft.protocol.messages import PROTOCOL, RunProposal, Terms, run_id

        canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()
        run, key = run_id(config), (signer or self.signer)
        bare = RunProposal(canonical, **changes)
        signed = replace(bare, signature=key.sign(bare.message(run)))
        return Terms(PROTOCOL, run, key.public), signed.encode()

    def offer(self, config, flower_run=7, **changes):
        """The node's answer to a run's terms."""
        from fedpeft.protocol.encoding import unpack
        from fedpeft.protocol.messages import TERMS, TermsReply

        asked, blob = self.terms(config, **changes)
        reply = unpack(self.say(TERMS, asked, blob, flower_run)[1], TermsReply, 0)[0]
        return reply.answer, reply.rule

    def first_task(self, config, **changes):
        import time

        from fedpeft.protocol.encoding import unpack
        from fedpeft.protocol.messages import HELLO, PROTOCOL, Hello, HelloReply, TrainTask, run_id

        asked = Hello(PROTOCOL, run_id(config), self.signer.public)
        state = unpack(self.say(HELLO, asked)[1], HelloReply, 0)[0].state
        task = TrainTask(1, 2, config.federation.lr, "none", 0, [], state, [], time.time() + 600)
        return replace(task, **changes)

    def log(self):
        from fedpeft.trust.signed_log import entries_of

        return entries_of(self.organisation.outbox.read())


@pytest.fixture
def joined(tmp_path, tiny_model_folder):
    """An organisation ``clinic`` with a data set and a policy, and the coordinator that it has joined."""
    from fedpeft.adapters import detach
    from fedpeft.bases import content_hash
    from fedpeft.runstore import write_json
    from fedpeft.trust import Signer, fingerprint
    from fedpeft_clients.governance.organisation import DataSet, init_organisation

    rng = np.random.default_rng(0)
    rows = [{"q": f"note {rng.integers(1000)} is", "a": str(rng.choice(["green", "red"]))} for _ in range(12)]
    file, folder = tmp_path / "notes.jsonl", tiny_model_folder("llama")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = content_hash(folder)
    policy = POLICY.format(base=base, folder=folder, top="approval = false")
    organisation = init_organisation(tmp_path / "clinic", "clinic", policy)
    columns = {"prompt": "q", "completion": "a", "messages": None, "person": None, "partition_column": None}
    organisation.add("notes", DataSet(str(file), "notes", 12, {**columns, "format": "auto"}))
    signer = Signer.from_seed(b"coordinator")
    place = organisation.path / "coordinators" / fingerprint(signer.public)
    facts = {"address": "127.0.0.1:1", "coordinator": signer.public.hex(), "app": "0" * 64}
    write_json(place / "grant.json", {**facts, "federation": "east", "issued": 1})
    settings = {
        "base": {"model": "/elsewhere/llama", "sha256": base, "threads": 1},
        "adapter": {"rank": 2},
        "data": {"max_length": 32, "source": "/elsewhere/data"},
        "federation": TRAINING,
        "privacy": PRIVATE_RUN,
    }
    yield Joined(organisation, organisation.grant(), signer, settings)
    detach()

"""What each law of aggregation costs an honest federation, and what one hostile node of three does to it.

``python tests/simulations/robust_cost.py --seeds 3``; the embedded base and data, three organisations. The
hostile one trains as it should and then sends its update with the sign flipped, times a factor (a power of
two, which the codec carries exactly); 0: honest.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.config import build_config
from fedpeft.exchange import Context, Update, open_envelope, seal
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import TrainReply, TrainTask, run_id
from fedpeft.trust import Verifier
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.run_home import open_home
from fedpeft_simulations import federation_run


def flipped(home, message, reply, factor):
    """The reply of a node that wants the opposite of what it has trained."""
    (order, _), (facts, blob) = unpack(message, TrainTask, 1 << 28), unpack(reply, TrainReply, 1 << 28)
    layout, signer = NodeContext(home).attached.layout, NodeContext(home).signer
    where = Context(run_id(home.config), order.round, home.name, order.state, "up")
    plan = NodeContext(home).plan.up.at(where)
    values = open_envelope(blob, layout, plan.codec, where, Verifier(signer.public)).dense()
    changed = Update(layout, values * np.float32(-factor), order.round, 1)
    return Message(pack(facts, seal(changed, plan, where, signer)), reply_to=message)


def federated(config, out, factor):
    """Held-out figures of a federation whose last node is hostile, and causes of refusals; 0: honest."""
    from fedpeft_clients.app import app as honest
    from fedpeft_server.app import make_app

    store, made = federation_run._prepare(config, out, False, lambda event: None), ClientApp()
    refused: dict[str, str] = {}
    hostile = store.homes[-1].name if factor else ""
    made.query()(lambda message, context: honest(message=message, context=context))

    @made.train()
    def train(message, context):
        home, reply = open_home(Path(context.node_config["home"])), honest(message=message, context=context)
        return flipped(home, message, reply, factor) if home.name == hostile else reply

    homes = [{"home": str(home)} for home in store.homes]
    flower.run_local(
        make_app(lambda event: refused.update(event.get("refused", {})), store.path), made, homes, {}
    )
    _, score = federation_run._score_state(store, federation_run.load_final)
    return {"loss": score.loss, "accuracy": score.accuracy, "refused": refused}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--laws", default="none,norm-clip,geometric-median")
    parser.add_argument("--factors", default="0,1,8")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    for factor in map(float, given.factors.split(",")):
        for law in given.laws.split(","):
            for seed in range(1, given.seeds + 1):
                asked = {"nodes": 3, "rounds": given.rounds, "local_steps": 6, "batch_size": 12}
                config = build_config(
                    {
                        "base": {"threads": 1},
                        "federation": {**asked, "lr": 0.007, "robust": law, "server": {"lr": 2.0}},
                        "audit": {"enabled": False},
                        "run": {"seed": seed},
                    }
                )
                figures = federated(config, folder / "run", factor)
                print(json.dumps({"law": law, "factor": factor, "seed": seed, **figures}), flush=True)
                shutil.rmtree(folder)
                folder.mkdir()


if __name__ == "__main__":
    main()

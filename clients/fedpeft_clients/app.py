"""The ClientApp of a node; its home folder comes from the node's own configuration."""

from __future__ import annotations

import threading
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedpeft.errors import ConfigError
from fedpeft.exchange import OVERHEAD_BYTES
from fedpeft.protocol import LARGEST_TABLE, Hello, SecureTask, TrainTask, pack, unpack
from fedpeft_clients import secure, tasks
from fedpeft_clients.home import Home, open_home

LARGEST_BROADCAST = 2**31 - 1 + OVERHEAD_BYTES

_turn = threading.Lock()

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Introduce this node."""
    asked, _ = unpack(message, Hello, 0)
    with _turn:
        return Message(pack(tasks.greet(_home(context), asked)), reply_to=message)


@app.query("secure")
def secure_sum(message: Message, context: Context) -> Message:
    """Answer one phase of secure aggregation."""
    task, blob = unpack(message, SecureTask, LARGEST_TABLE)
    with _turn:
        reply, answer = secure.answer(_home(context), task, blob)
    return Message(pack(reply, answer), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round; nodes of one process share a base and take turns."""
    task, blob = unpack(message, TrainTask, LARGEST_BROADCAST)
    with _turn:
        reply, envelope = tasks.train(_home(context), task, blob)
    return Message(pack(reply, envelope), reply_to=message)


def _home(context: Context) -> Home:
    path = context.node_config.get("home")
    if path is None:
        raise ConfigError("this node has no home: give node config home=<folder with node.json>")
    return open_home(Path(str(path)))

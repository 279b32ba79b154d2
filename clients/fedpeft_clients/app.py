"""The ClientApp of a node; its home folder comes from the node's own configuration.

A simulated node names ``home``. An organisation's node names ``organisation`` and ``coordinator``: its homes
are those of the runs that it has agreed on, and policy and operator are asked again with every order.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedpeft import flower
from fedpeft.errors import ConfigError, FederationError, FedPeftError
from fedpeft.exchange import OVERHEAD_BYTES
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import LARGEST_TABLE, LARGEST_TERMS, Hello, SecureTask, Terms, TrainTask
from fedpeft_clients.governance import run_approval
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.governance.policy_rules import check_hours
from fedpeft_clients.outbox import ledger_witness
from fedpeft_clients.rounds import handlers, secure_aggregation
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.run_home import open_home

LARGEST_BROADCAST = 2**31 - 1 + OVERHEAD_BYTES
LOG = logging.getLogger("fedpeft.node")

_turn = threading.Lock()

app = ClientApp()

Handler = Callable[[Message, Context], Message]


def _alone(handler: Handler) -> Handler:
    """One order at a time; what a policy refuses is answered by its rule alone, and said here in words."""

    @wraps(handler)
    def answered(message: Message, context: Context) -> Message:
        try:
            with _turn:
                return handler(message, context)
        except PolicyError as refusal:
            _log(context, str(refusal))
            return flower.error_reply(message, flower.REFUSED, refusal.code)
        except Exception as error:
            _log(context, _words(error))
            raise

    return answered


@app.query("terms")
@_alone
def answer_terms(message: Message, context: Context) -> Message:
    """Answer the terms of a run."""
    asked, blob = unpack(message, Terms, LARGEST_TERMS)
    if "organisation" not in context.node_config:
        raise FederationError("a simulated node has agreed to its run already")
    link = run_approval.CoordinatorLink.of(context.node_config)
    return Message(pack(run_approval.answer(link, context.run_id, asked, blob)), reply_to=message)


@app.query()
@_alone
def hello(message: Message, context: Context) -> Message:
    """Introduce this node."""
    asked, _ = unpack(message, Hello, 0)
    return Message(pack(handlers.greet(_node(context), asked)), reply_to=message)


@app.query("secure")
@_alone
def secure_sum(message: Message, context: Context) -> Message:
    """Answer one phase of secure aggregation; a round that has begun may end after hours."""
    task, blob = unpack(message, SecureTask, LARGEST_TABLE)
    reply, answer = secure_aggregation.answer(_node(context, timed=False), task, blob)
    return Message(pack(reply, answer), reply_to=message)


@app.train()
@_alone
def train(message: Message, context: Context) -> Message:
    """Train one round; nodes of one process share a base and take turns."""
    task, blob = unpack(message, TrainTask, LARGEST_BROADCAST)
    reply, envelope = handlers.train(_node(context), task, blob)
    return Message(pack(reply, envelope), reply_to=message)


def _node(context: Context, timed: bool = True) -> NodeContext:
    """The node that a message is for; an organisation's after policy, hours and approval were checked."""
    if "organisation" in context.node_config:
        link = run_approval.CoordinatorLink.of(context.node_config)
        link.organisation.outbox.require_ready()
        ledger_witness.require(link.organisation)
        if timed:
            check_hours(link.policy())
        return NodeContext(link.home(context.run_id))
    path = context.node_config.get("home")
    if path is None:
        raise ConfigError("this node has no home: give node config home=<folder with node.json>")
    return NodeContext(open_home(Path(str(path))))


def _log(context: Context, words: str) -> None:
    """Write to the organisation's own log what the coordinator does not get."""
    if "organisation" in context.node_config:
        LOG.warning("%s", words)


def _words(error: Exception) -> str:
    """What went wrong: fedpeft's own words hold no text of data; of other errors only the places are said."""
    if isinstance(error, FedPeftError):
        return f"{type(error).__name__}: {error}"
    places = [
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    return f"{type(error).__name__} at {' > '.join(places)}"

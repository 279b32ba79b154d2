"""What a node does with a coordinator's message: introduce itself, or answer the order of a round."""

from __future__ import annotations

import time
from dataclasses import replace

from fedpeft.errors import FederationError
from fedpeft.protocol.messages import Hello, HelloReply, TrainReply, TrainTask, spoken
from fedpeft.training import LocalPlan
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.rounds.local_round import INTEGERS, hidden, session_of, work
from fedpeft_clients.rounds.node_context import NodeContext, trust
from fedpeft_clients.rounds.node_state import (
    Answer,
    NodeState,
    answered,
    held_rounds,
    load_state,
    newest,
    put_out,
    save_state,
)
from fedpeft_clients.rounds.run_home import Home


def greet(node: NodeContext, hello: Hello) -> HelloReply:
    """Compute what must agree, from this node's own config and files.

    Raises:
        FederationError: another protocol, or another coordinator than the trusted one.
        PrivacyError: the noise of the agreed privacy plan would swamp whatever the run could learn.
        FedPeftError: the base or the adapter cannot be made as agreed.
    """
    _, old = spoken(hello.protocol, hello.oldest)
    if old:
        raise FederationError(f"the coordinator and this node share no protocol: upgrade the {old}")
    home = node.home
    trust(home, hello.coordinator)
    node.plan.checked()
    return HelloReply(
        name=home.name,
        run=node.run,
        base=node.base.sha256,
        layout=node.attached.layout.digest,
        state=node.digest_of(node.initial()),
        key=node.signer.public,
        rank=home.rank,
        versions=held_rounds(home.states),
    )


def train(node: NodeContext, task: TrainTask, blob: bytes) -> tuple[TrainReply, bytes]:
    """Train one round and return the facts and the sealed envelope.

    A node takes one state a round, and rounds do not go back. A repeated order for the same round and state
    is answered with the stored bytes: nothing is trained or spent again. A new attempt of the round's secure
    sum hides the very same integers under new masks. The ledger is written before the records are opened,
    the answer before it leaves.

    Raises:
        PolicyError: the order is not what this node agreed to; names the rule.
        FederationError: it came too late or does not fit.
        PrivacyError: the budget does not allow the round.
        FedPeftError: anything else that is wrong with base, records, plan or envelope.
    """
    home = node.home
    _check_order(home, task)
    answer = _answered(home, task)
    if answer is None or answer.attempt != task.attempt:
        broadcast, inbox = _cut(task, blob)
        if answer is None:
            state = work(node, task, node.receive(task, broadcast), inbox)
        else:
            state = _masked_again(node, task, inbox)
        save_state(home.states, state)
        answer = state.answer
    put_out(home.outbox, task.round, answer)
    return answer.reply, answer.envelope


def _answered(home: Home, task: TrainTask) -> Answer | None:
    """What this node sent in the round; None where it is the round's turn."""
    answer = answered(home.states, home.outbox, task.round)
    if answer is None and task.round < (done := newest(home.states, home.outbox)):
        raise PolicyError(
            "back", f"round {task.round} is asked for after round {done}; rounds do not go back"
        )
    if answer is not None and answer.digest != task.state:
        raise PolicyError(
            "again", f"round {task.round} was answered from another state; a node takes one state a round"
        )
    return answer


def _masked_again(node: NodeContext, task: TrainTask, inbox: bytes) -> NodeState:
    """The round as it was trained, for another attempt of its secure sum."""
    state, session = load_state(node.home.states, task.round), session_of(node, task)
    if state is None or session is None:
        raise PolicyError("back", f"round {task.round}: its secure sum is over, it cannot be tried again")
    envelope = hidden(node, task, session, state.residuals[INTEGERS], inbox)
    return replace(state, answer=Answer(task.state, state.answer.reply, envelope, task.attempt))


def _cut(task: TrainTask, blob: bytes) -> tuple[bytes, bytes]:
    """The broadcast, and the shares that other nodes dealt to this one."""
    if task.inbox > len(blob):
        raise FederationError(f"round {task.round}: the blob is shorter than its shares")
    cut = len(blob) - task.inbox
    return blob[:cut], blob[cut:]


def _check_order(home: Home, task: TrainTask) -> None:
    """Refuse what is not as agreed: a coordinator chooses the state to train from, and nothing else."""
    federation = home.config.federation
    if not 1 <= task.round <= federation.rounds:
        raise PolicyError("rounds", f"round {task.round} is not one of the {federation.rounds} agreed rounds")
    if task.steps != federation.local_steps:
        raise PolicyError("steps", f"{task.steps} steps are asked for, {federation.local_steps} are agreed")
    if task.lr != (agreed := LocalPlan.of(federation, task.round).lr):
        raise PolicyError("rate", f"learning rate {task.lr:g} is asked for, {agreed:g} is agreed")
    if task.broadcast not in ("none", "delta", "full"):
        raise FederationError("the broadcast is of an unknown kind")
    if time.time() > task.expires:
        raise FederationError(f"the order for round {task.round} has expired")

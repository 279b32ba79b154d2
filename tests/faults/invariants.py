"""What must hold after every fault, read from the files that the deployment left."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from deployment import ENDED, Deployment, Node, events_of, rounds_of, status_of

from fedpeft.errors import FedPeftError
from fedpeft.privacy import Ledger
from fedpeft.privacy.ledger.budget import lineages
from fedpeft.privacy.ledger.exports import load_chain
from fedpeft.trust import Signer
from fedpeft.trust.signed_log import SignedLog, entries_of
from fedpeft_clients.governance.organisation import OUTBOX
from fedpeft_clients.governance.policy import parse_policy
from fedpeft_server.rounds.checkpoints import latest

STATES = ("submitted", "running", *ENDED)
_TRIES = 5


def checkpointed(run: Path) -> int:
    """The last round that the coordinator has acknowledged: its checkpoint is on the disk, and it loads."""
    found = _settled(lambda: latest(run))
    if found is not None:
        assert all(np.isfinite(one).all() for one in found.arrays.values() if one.dtype.kind == "f")
    return found.round if found else 0


def run_holds(run: Path) -> None:
    """A run's files are in order: a known state, rounds told once each and without a gap.

    While the coordinator's process writes, the newest round may be told before its checkpoint is there.
    """
    status = status_of(run)
    assert status["state"] in STATES, status
    if status["state"] in ("failed", "stopped"):
        assert status["cause"] and "Traceback" not in status["cause"], status
    told = [event["round"] for event in rounds_of(run)]
    assert told == list(range(1, len(told) + 1)), f"{run.name} tells rounds {told}"


def run_is_whole(run: Path) -> None:
    """A run that is done: all its rounds, a result that loads, an adapter that loads."""
    from safetensors.numpy import load_file

    run_holds(run)
    rounds = [event for event in events_of(run) if event["event"] == "done"][-1]["rounds"]
    assert len(rounds_of(run)) == rounds == checkpointed(run)
    judged = [event["round"] for event in events_of(run) if event["event"] == "evaluation"]
    assert judged[:: len(judged) - 1] == [0, rounds] and judged == sorted(set(judged)), f"judged {judged}"
    with np.load(run / "state" / "final.npz") as result:
        assert np.isfinite(result["values"]).all()
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert tensors and all(np.isfinite(tensor).all() for tensor in tensors.values())


def node_holds(node: Node) -> dict[str, int]:
    """A node's log and ledger verify, and nothing was spent or released twice; what they hold."""
    log = SignedLog(node.home / "outbox.jsonl", Signer.load_or_create(node.home / "signing.key"), OUTBOX)
    lines = _settled(lambda: _log_lines(log))
    chain = _settled(lambda: load_chain(node.home / "ledger.sqlite"))
    chain.require(None, log.signer.public)
    again = _reserved_soundly(chain.entries)
    _sent_what_was_released(entries_of(lines), chain.entries)
    return {"messages": len(lines), "entries": len(chain.entries), "reserved again": again}


def budget_holds(node: Node) -> dict[str, float]:
    """Epsilon of each data set, which is within the organisation's budget."""
    ledger = Ledger(node.home / "ledger.sqlite")
    budget = parse_policy((node.home / "policy.toml").read_text()).privacy.lineage_epsilon
    spent = {name: ledger.spent(name) for name in lineages(ledger.entries())}
    assert all(value <= budget for value in spent.values()), (spent, budget)
    return spent


def nothing_is_left_over(deployment: Deployment) -> None:
    """One process for each part, and none besides."""
    end, wanted = time.monotonic() + 20, {"server", *deployment.nodes}
    while True:
        found = list(deployment.processes().values())
        parts = {
            part: sum(f"fedpeft_server.service.{part}_process " in one for one in found)
            for part in ("link", "run")
        }
        if max(parts.values()) <= 1 and len(found) <= len(wanted) + sum(parts.values()):
            return
        assert time.monotonic() < end, found
        time.sleep(0.2)


def _log_lines(log: SignedLog) -> list[bytes]:
    return log.verified()[0]


def _settled(read: Callable[[], Any]) -> Any:
    """Read what a process may be writing at this moment; what is wrong stays wrong."""
    for _ in range(_TRIES):
        try:
            return read()
        except (FedPeftError, OSError):
            time.sleep(0.3)
    return read()


def _reserved_soundly(entries: Any) -> int:
    """A round is charged again only where its data were opened and nothing of it was released.

    Returns:
        How often that was so: training that a kill ended is paid for, and the next attempt too.
    """
    started = {entry.body["reservation"] for entry in entries if entry.kind == "started"}
    released = [entry.body["reservation"] for entry in entries if entry.kind == "released"]
    assert len(released) == len(set(released)), "a reservation released twice"
    rounds: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "reserve":
            rounds[tuple(entry.body[key] for key in ("lineage", "run", "round"))].append(entry.seq)
    for place, attempts in rounds.items():
        for former in attempts[:-1]:
            assert former in started and former not in released, f"{place} is charged again without need"
    return sum(len(attempts) - 1 for attempts in rounds.values())


def _sent_what_was_released(messages: Any, entries: Any) -> None:
    """Every update in the outbox log has the bytes that the ledger released, once for each round."""
    released = {entry.body["sha256"] for entry in entries if entry.kind == "released"}
    sent: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for message in messages:
        if message["kind"] == "train":
            assert message["sha256"] in released, f"round {message['round']} left without a reservation"
            sent[message["run"], message["round"]].add(message["sha256"])
    for place, versions in sent.items():
        assert len(versions) == 1, f"{place}: different bytes left for one round"

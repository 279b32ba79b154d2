"""What a node keeps between rounds: the state it holds, its residuals and the bytes it has sent.

One file per round is the commit point: it holds the state, the residuals *and* the reply. A node that is
killed before it exists does the round again from the round before; one that is killed afterwards sends the
stored bytes. The outbox is a copy of the reply, written before it leaves.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.errors import RunError
from fedpeft.exchange.layout import FloatVector
from fedpeft.protocol.messages import TrainReply
from fedpeft.runstore import write_atomic
from fedpeft.runstore.files import append_whole

STATES = 2
_RESIDUAL = "residual/"
_INDEX = "answers.jsonl"


@dataclass(frozen=True)
class Answer:
    """What was answered in a round.

    Attributes:
        digest: digest of the state that the round was trained from, 32 bytes.
        reply: the facts.
        envelope: the bytes.
        attempt: of the round's secure sum that the bytes were masked for; 0: they are not masked.
    """

    digest: bytes
    reply: TrainReply
    envelope: bytes
    attempt: int = 0


@dataclass(frozen=True)
class NodeState:
    """A node after one round.

    Attributes:
        round: the round that was trained.
        values: the state that the round was trained from, float32.
        answer: what was sent.
        residuals: what the exchange plan carries into the next round, by name.
    """

    round: int
    values: FloatVector
    answer: Answer
    residuals: Mapping[str, np.ndarray] = field(default_factory=dict)


def save_state(folder: Path, state: NodeState) -> None:
    """Store a round, atomically, and drop all but the last two."""
    arrays = {_RESIDUAL + name: value for name, value in state.residuals.items()}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        facts=np.frombuffer(json.dumps(_facts(state.answer)).encode(), np.uint8),
        envelope=np.frombuffer(state.answer.envelope, np.uint8),
        values=state.values,
        **arrays,
    )
    write_atomic(folder / f"{state.round:04d}.npz", buffer.getvalue())
    for old in held_rounds(folder)[:-STATES]:
        (folder / f"{old:04d}.npz").unlink()


def load_state(folder: Path, round: int) -> NodeState | None:
    """The state after a round, or None if the node does not hold it.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / f"{round:04d}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        answer = _answer(json.loads(arrays["facts"].tobytes()), arrays["envelope"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise RunError(f"cannot read the node's state {path.name}: {type(error).__name__}") from None
    residuals = {key.removeprefix(_RESIDUAL): arrays[key] for key in arrays if key.startswith(_RESIDUAL)}
    return NodeState(round, arrays["values"], answer, residuals)


def held_rounds(folder: Path) -> list[int]:
    """Rounds whose state the node holds, in order."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.npz"))


def answered(states: Path, outbox: Path, round: int) -> Answer | None:
    """What was answered in a round: as it is held, or else as it lies in the outbox."""
    state = load_state(states, round)
    return state.answer if state else sent(outbox, round)


def newest(states: Path, outbox: Path) -> int:
    """The last round that was answered, 0 if none was."""
    return max([*held_rounds(states)[-1:], *(line.get("answered", 0) for line in _index(outbox)), 0])


def put_out(folder: Path, round: int, answer: Answer) -> None:
    """Copy an answer to the outbox: ``rNN.fpd`` are the bytes that leave, a line of the index the facts."""
    write_atomic(folder / f"r{round:02d}.fpd", answer.envelope)
    facts = json.dumps({"answered": round, **_facts(answer)}, allow_nan=False)
    append_whole(folder / _INDEX, f"\n{facts}\n".encode(), 0o600)


def sent(folder: Path, round: int) -> Answer | None:
    """The newest answer of a round that lies in the outbox."""
    path = folder / f"r{round:02d}.fpd"
    answers = [facts for facts in _index(folder) if facts.pop("answered", None) == round]
    return _answer(answers[-1], path.read_bytes()) if answers and path.exists() else None


def _index(folder: Path) -> list[dict[str, Any]]:
    """All lines of the index of an outbox, in order."""
    path = folder / _INDEX
    return [_parsed(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _parsed(line: bytes) -> dict[str, Any]:
    """One line of the index; nothing for a line that a kill has torn."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}


def _facts(answer: Answer) -> dict[str, Any]:
    """An answer as JSON values, of which earlier versions know all but a loss."""
    fixed = {"ledger": answer.reply.ledger.hex(), "digest": answer.digest.hex(), "attempt": answer.attempt}
    facts = {**asdict(answer.reply), **fixed}
    return facts if answer.reply.loss else {name: fact for name, fact in facts.items() if name != "loss"}


def _answer(facts: dict[str, Any], envelope: bytes) -> Answer:
    read = dict(facts)
    digest, ledger = bytes.fromhex(read.pop("digest")), bytes.fromhex(read.pop("ledger"))
    attempt = int(read.pop("attempt"))
    return Answer(digest, TrainReply(ledger=ledger, **read), envelope, attempt)

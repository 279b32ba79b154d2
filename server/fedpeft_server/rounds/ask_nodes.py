"""Ask nodes and wait for what comes back; no reply, however wrong, ends a round."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.errors import FederationError
from fedpeft.protocol.encoding import error_cause
from fedpeft.protocol.messages import LARGEST_TABLE

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25
SHORTEST_GRACE = 30.0
"""Seconds that nodes have at least after most others have answered: a crashed one can be back by then."""
SILENT = {
    3: "its order expired before it was read",
    4: "its reply did not arrive whole",
    5: "went offline",
    8: "stopped while it worked",
}
"""Error codes with which Flower says that an order, a reply or a node was lost: nobody answered."""
RESTING = "PolicyHours"
"""What a node says whose operator lets it work at other hours of the day only."""
STOPPED = "the run was stopped, or whoever runs its nodes has ended"


@dataclass(frozen=True)
class Question:
    """What is asked of nodes at once.

    Attributes:
        kind: Flower message type.
        group: the round, as text.
        deadline: seconds to wait; also how long the messages live.
        stop: ends the waiting at once when it is set.
        largest: bytes that the payload of a reply may have; of a longer one nothing is read.
        grace: closes early: the last third at most, or the last of three or more, have so many times as long
            as the others took, at least `SHORTEST_GRACE`; 0: all have until the deadline.
    """

    kind: str
    group: str
    deadline: float
    stop: threading.Event = field(default_factory=threading.Event)
    largest: int = LARGEST_TABLE
    grace: float = 0.0

    def close(self, asked: int, answered: int, took: float) -> float:
        """Seconds after which to wait no longer, once so many have answered and so many seconds have gone.

        A hostile minority can neither hold the others up for longer, nor shut them out by answering at once:
        the time counts that is reached only when honest nodes, too, have answered.
        """
        spare = max(1, (asked - 1) // 3) if asked >= 3 else 0
        if not self.grace or asked - answered > spare:
            return self.deadline
        return min(self.deadline, took + max(SHORTEST_GRACE, self.grace * took))


@runtime_checkable
class Bounded(Protocol):
    """A grid that fetches replies over a network, and of each no more than a given size."""

    largest: int
    busy: bool


def ask(
    grid: Grid,
    question: Question,
    contents: Mapping[int, RecordDict],
    on_reply: Callable[[int], None] = lambda node: None,
) -> dict[int, Message]:
    """Send each node its content and return the replies that came in time, by node id.

    Replies are matched by the message they answer: errors made by a SuperLink carry another sender. A message
    dies about the deadline; what comes after the end is never used, nor is what answers nothing asked here.

    Raises:
        FederationError: the run was stopped.
    """
    started = time.monotonic()
    end = started + question.deadline
    bounded = _bounded(grid)
    if bounded is not None:
        bounded.largest = question.largest
    waiting = _push(grid, question, contents)
    replies: dict[int, Message] = {}
    pause = FIRST_PAUSE
    while waiting and (left := end - time.monotonic()) > 0:
        if question.stop.is_set():
            raise FederationError(STOPPED)
        arrived = list(grid.pull_messages(list(waiting)))
        for message in arrived:
            node = waiting.pop(message.metadata.reply_to_message_id, None)
            if node is not None:
                replies[node] = message
                on_reply(node)
        if arrived and question.grace:
            answers = sum(map(is_answer, replies.values()))
            lost, took = len(replies) - answers, time.monotonic() - started
            end = min(end, started + question.close(len(contents) - lost, answers, took))
        if not arrived and not (bounded is not None and bounded.busy):
            _wait(grid, waiting, min(pause, left))
        pause = FIRST_PAUSE if arrived else min(pause * 1.5, LONGEST_PAUSE)
    return replies


def _bounded(grid: object) -> Bounded | None:
    return grid if isinstance(grid, Bounded) else None


def _push(grid: Grid, question: Question, contents: Mapping[int, RecordDict]) -> dict[str, int]:
    """Nodes by message; a node that left the SuperLink has none."""
    messages = [
        Message(content, node, question.kind, ttl=question.deadline + 1.0, group_id=question.group)
        for node, content in contents.items()
    ]
    keys = list(grid.push_messages(messages))
    return {key: node for key, node in zip(keys, contents, strict=False) if key}


def _wait(grid: Grid, keys: Iterable[str], seconds: float) -> None:
    wait = getattr(grid, "wait", None)
    if wait is None:
        time.sleep(seconds)
    else:
        wait(keys, seconds)


def is_answer(message: Message) -> bool:
    """Whether a node itself replied, and not only to say that it rests now."""
    if not message.has_error():
        return True
    return message.error.code not in SILENT and message.error.reason != RESTING


def cause_of(message: Message) -> str:
    """A plain cause for an error reply; no text that a node has chosen."""
    return SILENT.get(message.error.code) or error_cause(message)

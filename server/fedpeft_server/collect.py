"""Ask nodes and wait for what comes back; no reply, however wrong, ends a round."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpeft.errors import FederationError

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.25


@dataclass(frozen=True)
class Question:
    """What is asked of nodes at once.

    Attributes:
        kind: Flower message type.
        group: the round, as text.
        deadline: seconds to wait; also how long the messages live.
        stop: ends the waiting at once when it is set.
    """

    kind: str
    group: str
    deadline: float
    stop: threading.Event = field(default_factory=threading.Event)


def ask(
    grid: Grid,
    question: Question,
    contents: Mapping[int, RecordDict],
    on_reply: Callable[[int], None] = lambda node: None,
) -> dict[int, Message]:
    """Send each node its content and return the replies that came in time, by node id.

    Replies are matched by the message they answer: errors made by a SuperLink carry another sender.
    """
    end = time.monotonic() + question.deadline
    waiting = dict(zip(_push(grid, question, contents), contents, strict=True))
    replies: dict[int, Message] = {}
    pause = FIRST_PAUSE
    while waiting and (left := end - time.monotonic()) > 0:
        if question.stop.is_set():
            raise FederationError("the run was stopped: whoever runs the nodes has ended")
        arrived = list(grid.pull_messages(list(waiting)))
        for message in arrived:
            node = waiting.pop(message.metadata.reply_to_message_id, None)
            if node is not None:
                replies[node] = message
                on_reply(node)
        if not arrived:
            _wait(grid, waiting, min(pause, left))
        pause = FIRST_PAUSE if arrived else min(pause * 1.5, LONGEST_PAUSE)
    return replies


def _push(grid: Grid, question: Question, contents: Mapping[int, RecordDict]) -> list[str]:
    messages = [
        Message(content, node, question.kind, ttl=question.deadline + 1.0, group_id=question.group)
        for node, content in contents.items()
    ]
    return list(grid.push_messages(messages))


def _wait(grid: Grid, keys: Iterable[str], seconds: float) -> None:
    wait = getattr(grid, "wait", None)
    if wait is None:
        time.sleep(seconds)
    else:
        wait(keys, seconds)

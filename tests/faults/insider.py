"""A hostile node that attacks through Flower's own calls, with good keys: ``python insider.py HOME KIND``.

It agrees to terms and greetings as it should, and then, all the time:

* poison: announces the names of parts that it has seen, with other children, in messages of its own accord
  and in replies that it never finishes; its updates are honest.
* flood: sends parts that nobody asked for, and replies of many tiny parts.
* bomb: sends replies of which few bytes stand for gigabytes, replies in another node's name, and frees and
  reads what is not its own.

``insider.jsonl`` in the home counts what it did.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile import serve

from fedpeft import flower
from fedpeft.flower import node_loop as node_side
from fedpeft.flower.fleet import Fleet
from tests.fedpeft.flower_stranger import Stranger, chunk, leaf, name_of, payload, poison, tree

PAUSE = 0.2
PART, TIMES, PIECES = 2**20, 100_000, 200


class Insider(Stranger):
    """The raw calls of a node that is otherwise served as always."""

    def __init__(self, home: Path, kind: str, honest: Callable[..., Any]) -> None:
        self.home, self.honest, self.counts = home, honest, Counter[str]()
        self.arrivals: list[Any] = []
        self.attack = {"poison": self._poison, "flood": self._flood, "bomb": self._steal}[kind]
        self.answer = {"poison": None, "flood": self._many_parts, "bomb": self._many_bytes}[kind]
        insider = self

        class Watched(Fleet):
            def __init__(self, connection: Any) -> None:
                super().__init__(connection)
                insider.fleet, insider.client = self, self._client

            def receive(self) -> Any:
                if (arrival := super().receive()) is not None:
                    insider.arrivals = [*insider.arrivals[-20:], arrival]
                return arrival

        node_side.Fleet = Watched  # pyright: ignore[reportPrivateImportUsage]

    @property
    def number(self) -> int:
        """This node's number at the link."""
        return self.fleet.node_id

    def __call__(self, message: Any, context: Any) -> Any:
        """The honest reply, or an attack in its place."""
        if not message.metadata.message_type.startswith("train") or self.answer is None:
            return self.honest(message=message, context=context)
        self._count(self.answer, self.arrivals[-1])
        return flower.error_reply(message, flower.APP_FAILED, "Done")

    def go_on(self) -> None:
        """Attack until the process ends."""
        while True:
            threading.Event().wait(PAUSE)
            if self.arrivals:
                self._count(self.attack)
            (self.home / "insider.jsonl").write_text(json.dumps(self.counts))

    def _count(self, act: Callable[..., Any], *given: Any) -> None:
        try:
            act(*given)
        except Exception as error:
            self.counts[f"{act.__name__} {type(error).__name__}"] += 1
        else:
            self.counts[act.__name__] += 1

    def _names(self) -> list[str]:
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

        trees = [arrival.tree for arrival in self.arrivals]
        return list({one.object_id for whole in trees for one in iterate_object_tree(whole)})

    def _poison(self) -> None:
        newest = self.arrivals[-1]
        for name in self._names():
            poison(self, newest.run_id, name)
        other = tree(os.urandom(8), *map(leaf, self._names()))
        self.announce(self.facts(newest), other)

    def _flood(self) -> None:
        content, newest = chunk(os.urandom(4 * PART)), self.arrivals[-1]
        answer = poison(self, newest.run_id, name_of(content))
        self.put(newest.run_id, getattr(answer, "session_id", ""), content)

    def _steal(self) -> None:
        newest = self.arrivals[-1]
        self.reply(newest, None, [], src_node_id=self.number ^ 1)
        for name in self._names():
            self.confirm(newest.run_id, name)
            self.pull(newest.run_id, name_of(name.encode()))

    def _many_parts(self, arrival: Any) -> None:
        chunks = [chunk(os.urandom(16)) for _ in range(PIECES)]
        record, contents = payload(chunks, list(range(PIECES)), 16 * PIECES)
        self.reply(arrival, record, contents)

    def _many_bytes(self, arrival: Any) -> None:
        record, contents = payload([chunk(bytes(PART))], [0] * TIMES, PART * TIMES)
        self.reply(arrival, record, contents)


def main(home: Path, kind: str) -> None:
    """Serve the coordinator that the home has joined."""
    from fedpeft_clients.app import app as honest

    insider: Any = Insider(home, kind, honest)
    threading.Thread(target=insider.go_on, daemon=True).start()
    serve(home, insider, 120.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""When each node was last heard of, and what went wrong with it last; for the operator's eyes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.runstore import read_json, write_json
from fedpeft_server.service.node_registry import Registry

if TYPE_CHECKING:
    from flwr.serverapp import Grid

POLL_SECONDS = 5.0
FILE = "contacts.json"


@dataclass(frozen=True)
class Contact:
    """What is known of a node in a run.

    Attributes:
        seen: seconds since the epoch at which the link last held it for online; 0: not yet.
        round: newest round with a valid update of it; 0: none yet.
        cause: why its newest reply was refused; empty if it was not.
    """

    seen: float = 0.0
    round: int = 0
    cause: str = ""


@dataclass
class Contacts:
    """``contacts.json`` of a run; the runner writes it, status and metrics read it."""

    run: Path
    known: dict[str, Contact] = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.known = read_contacts(self.run)

    def report(self, event: dict[str, Any]) -> None:
        """Take in an event of ``metrics.jsonl``."""
        refused: dict[str, str] = event.get("refused") or event.get("missing") or {}
        valid: Iterable[str] = event.get("ledger") or event.get("nodes") or ()
        with self._lock:
            for name in valid:
                old = self.known.get(name, Contact())
                self.known[name] = replace(old, round=max(old.round, event.get("round", 0)), cause="")
            for name, cause in refused.items():
                self.known[name] = replace(self.known.get(name, Contact()), cause=cause)
            self._write()

    @contextmanager
    def watching(self, grid: Grid, registry: Registry) -> Generator[None]:
        """Ask the link now and then who is online, as long as the block lasts."""
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(grid, registry, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(POLL_SECONDS)

    def _watch(self, grid: Grid, registry: Registry, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.seen(online(grid, registry))
            except Exception as error:
                print(f"cannot see who is online: {type(error).__name__}", file=sys.stderr)
            stop.wait(POLL_SECONDS)

    def seen(self, names: Iterable[str]) -> None:
        """Note that these nodes are online now."""
        now = time.time()
        with self._lock:
            for name in names:
                self.known[name] = replace(self.known.get(name, Contact()), seen=now)
            self._write()

    def _write(self) -> None:
        write_json(self.run / FILE, {name: asdict(self.known[name]) for name in sorted(self.known)})


def read_contacts(run: Path) -> dict[str, Contact]:
    """What is known of the nodes of a run; empty before its first process."""
    return {name: Contact(**value) for name, value in read_json(run / FILE, {}).items()}


def online(grid: Grid, registry: Registry) -> list[str]:
    """Names of the enrolled nodes that the link holds for online."""
    from fedpeft.flower import public_keys

    names = {node.transport: name for name, node in registry.enrolled().items()}
    return [names[line] for key in public_keys(grid).values() if (line := key.decode()) in names]

"""Keeps the SuperLink's list of transport keys equal to the nodes that are enrolled."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fedpeft.errors import FederationError
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import ServerHome
from fedpeft_server.service.service_log import Emit

PAUSE = 0.5
SLOW_PAUSE = 5.0
_CONNECT_SECONDS = 1.0


@dataclass
class Registrar:
    """Registers who is enrolled and unregisters who was revoked; both may be done again at any time.

    So the registry is the only truth: what changes while the service is down, and what an empty database
    has forgotten, is put right at the next start.

    Attributes:
        home: the coordinator.
        emit: where events go.
        generation: number of the link process that runs; after a new one everything is registered again.
    """

    home: ServerHome
    emit: Emit
    generation: Callable[[], int]
    _synced: tuple[int, frozenset[str], frozenset[str]] | None = field(default=None)

    def run(self, stop: threading.Event) -> None:
        """Follow the registry until the event is set; faults are logged and tried again."""
        while not stop.is_set():
            done = self._try()
            stop.wait(PAUSE if done else SLOW_PAUSE)

    def _try(self) -> bool:
        try:
            return self.sync()
        except Exception as error:
            self.emit("registration failed", "error", cause=f"{type(error).__name__}: {error}")
            return False

    def sync(self) -> bool:
        """Bring the SuperLink in line with the registry; whether that is so now.

        Raises:
            Fault: the SuperLink does not answer.
        """
        registry = Registry(self.home)
        wanted = frozenset(node.transport for node in registry.enrolled().values())
        goal = (self.generation(), wanted, frozenset(registry.revoked()))
        if self._synced == goal or not listens(self.home.settings.inside_port):
            return True
        self._register(wanted, goal[2])
        self._synced = goal
        self.emit("registrations in line", enrolled=len(wanted), revoked=len(goal[2]))
        return True

    def _register(self, wanted: frozenset[str], revoked: frozenset[str]) -> None:
        from fedpeft.flower import Fault, node_numbers, register_node, unregister_node

        link = self.home.link
        known = node_numbers(link)
        for line in sorted(revoked):
            unregister_node(link, line.encode(), known)
        for line in sorted(wanted - revoked):
            try:
                register_node(link, line.encode(), known)
            except Fault:
                raise
            except FederationError as error:
                self.emit("transport key not taken", "error", key=line[-16:], cause=str(error))


def listens(port: int) -> bool:
    """Whether something answers on a loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), _CONNECT_SECONDS):
            return True
    except OSError:
        return False

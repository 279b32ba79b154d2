"""Finds a link that lives but does not answer, and ends it, so that it is started again."""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass

from fedpeft_server.service.child_process import Child
from fedpeft_server.service.service_log import Emit

PAUSE = 10.0
TIMEOUT = 10.0
MOST_SILENCES = 6


@dataclass
class Probe:
    """Asks the link for its health now and then.

    Attributes:
        port: of the link on loopback.
        link: its process.
        emit: where events go.
        silences: unanswered questions in a row since the link last answered; None before its first answer,
            as a link takes its time to start.
    """

    port: int
    link: Child
    emit: Emit
    silences: int | None = None

    def run(self, stop: threading.Event) -> None:
        """Ask until the event is set."""
        starts = 0
        while not stop.wait(PAUSE):
            if self.link.starts != starts:
                starts, self.silences = self.link.starts, None
            self.ask()

    def ask(self) -> None:
        """Ask once; after six silences the process is killed."""
        if self.answers():
            self.silences = 0
        elif self.silences is not None:
            self.silences += 1
            if self.silences >= MOST_SILENCES and self.link.alive:
                self.emit("link does not answer and is ended", "error", silences=self.silences)
                self.link.kill()

    def answers(self) -> bool:
        """Whether the link answers in time, whatever it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

"""The enrolment service: one call over TLS, bytes in and bytes out, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from fedpeft.errors import FederationError, FedPeftError
from fedpeft.flower import Admission, Limits, OpenCall, Refusal, public_port, thin_app
from fedpeft.protocol.enrolment import MAX_BYTES, PATH, Answer, Request
from fedpeft_server.service.node_registry import Registry, Ruling
from fedpeft_server.service.server_home import ServerHome
from fedpeft_server.service.service_log import Emit

MOST_NETWORKS = 49
"""Strangers on so many networks do not block nodes that join from another one."""
LIMITS = Limits(burst=20, per_second=4, all_burst=1000, all_per_second=200)
"""All who connect here are strangers; the limit of all is above what so many networks may take."""


@dataclass(frozen=True)
class EnrolmentService:
    """Answers requests; every one of them, however wrong, gets a plain cause."""

    home: ServerHome
    emit: Emit
    clock: Callable[[], float] = time.time

    def call(self, data: bytes, peer: str) -> bytes | Refusal:
        """The answer to the bytes of a request; faults of this machine go to its operator's log."""
        try:
            return self.answer(data, peer).encode()
        except (FedPeftError, OSError) as error:
            self.emit("enrolment failed", "error", peer=peer, cause=f"{type(error).__name__}: {error}")
            return Refusal(503, "the coordinator has a fault: try again later\n")

    def answer(self, data: bytes, peer: str) -> Answer:
        """The answer to the bytes of a request."""
        try:
            request = Request.decode(data)
        except FederationError as error:
            return self._refused(str(error), peer)
        ruling = Registry(self.home).check(request, self.clock())
        if ruling.state == "refused":
            return self._refused(ruling.cause, peer, request.name)
        return self._granted(request, ruling)

    def _refused(self, cause: str, peer: str, name: str = "") -> Answer:
        self.emit("enrolment refused", "warning", peer=peer, node=name, cause=cause)
        return Answer("refused", cause)

    def _granted(self, request: Request, ruling: Ruling) -> Answer:
        if ruling.state == "waiting":
            return Answer("waiting", ruling.cause)
        answer = Answer(
            "enrolled", app=self._app, federation=self.home.settings.name, issued=int(self.clock())
        )
        return answer.signed(self.home.signer, request.fingerprint())

    @cached_property
    def _app(self) -> str:
        return thin_app()[1]


def serving(home: ServerHome, emit: Emit) -> AbstractContextManager[Admission]:
    """Serve enrolments in threads of this process; a renewed certificate is used without a restart.

    A connection carries one request, and has ten seconds for it. Strangers on at most `MOST_NETWORKS`
    networks keep nobody out who comes from another one.

    Yields:
        Who is connected.

    Raises:
        ConfigError: the certificate or the key cannot be read.
        FederationError: the port is taken.
    """
    settings, pair = home.settings, (home.path / "server.crt", home.path / "server.key")
    call = OpenCall(PATH, MAX_BYTES, EnrolmentService(home, emit).call)
    return public_port(call, settings.bind, settings.enrolment_port, pair, LIMITS)

"""What strangers without a token can do to who wants to join: they hold on, and never stop."""

import contextlib
import os
import socket
import ssl
import threading
import time

import pytest

from fedpeft.flower import Admission, Limits, free_port
from fedpeft.protocol.enrolment import PATH, Answer, Request
from fedpeft.trust import Signer, new_transport_key
from fedpeft_server.service.enrolment_service import LIMITS, MOST_NETWORKS, serving
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import ServerHome, Settings
from tests.fedpeft.flower_world import wait_for

STRANGER, HONEST = "127.0.0.2", "127.0.0.1"
HELD = 64
"""Connections that a stranger wants to hold: twice what a network may have, half of what all may have."""
HALVES = {
    "silent": None,
    "hello": b"",
    "head": f"POST {PATH} HTTP/1.1\r\nHost:".encode(),
    "body": f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode(),
}
ATTEMPTS = 5


@pytest.fixture
def home(tmp_path):
    ports = [free_port() for _ in range(4)]
    return ServerHome.create(tmp_path / "server", Settings("north", HONEST, HONEST, *ports))


class Stranger(threading.Thread):
    """Holds half requests from one address, and begins a new one for each that is ended.

    Attributes:
        half: what it says over TLS; None: it does not even begin with TLS.
        made: connections begun.
    """

    def __init__(self, port, half, address=STRANGER):
        super().__init__(daemon=True)
        self.port, self.half, self.address = port, half, address
        self.held, self.made, self.stop = [], 0, threading.Event()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def run(self):
        while not self.stop.wait(0.01):
            for one in filter(is_over, list(self.held)):
                one.close()
                self.held.remove(one)
            for _ in range(HELD - len(self.held)):
                self.made += 1
                with contextlib.suppress(OSError):
                    self.held.append(self._begin())
        for one in self.held:
            one.close()

    def _begin(self):
        plain = socket.create_connection((HONEST, self.port), 10, (self.address, 0))
        try:
            if self.half is None:
                return plain
            secured = self._context.wrap_socket(plain)
            secured.sendall(self.half)
            return secured
        except OSError:
            plain.close()
            raise


def is_over(connection):
    """Whether the other side has ended a connection."""
    try:
        connection.setblocking(False)
        return connection.recv(1) == b""
    except (ssl.SSLWantReadError, BlockingIOError):
        return False
    except OSError:
        return True


@contextlib.contextmanager
def strangers(home, *started):
    for one in started:
        one.start()
    try:
        yield
    finally:
        for one in started:
            one.stop.set()
            one.join(60)


def gets_in(home):
    """Whether one of a few requests of a node is answered."""
    keys, token = (new_transport_key(), Signer.generate()), Registry(home).new_token("clinic", 24)
    context = ssl.create_default_context(cafile=str(home.path / "ca.crt"))
    for _ in range(ATTEMPTS):
        body = Request.make("clinic", token, *keys, int(time.time())).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HONEST, home.settings.enrolment_port), 10, (HONEST, 0)) as plain,
            context.wrap_socket(plain, server_hostname=HONEST) as link,
        ):
            link.sendall(head + body)
            said = b"".join(iter(lambda link=link: link.recv(2**16), b""))
            return Answer.decode(said.partition(b"\r\n\r\n")[2]).state == "waiting"
    return False


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("half", HALVES)
def test_a_stranger_who_never_stops_keeps_out_nobody_on_another_address(home, half):
    with serving(home, lambda *_, **__: None) as admission:
        idle = descriptors()
        stranger = Stranger(home.settings.enrolment_port, HALVES[half])
        with strangers(home, stranger):
            wait_for(lambda: stranger.made > 3 * HELD)
            for _ in range(3):
                before = stranger.made
                assert gets_in(home)
                assert admission.count()[0] <= HELD // 2 + 1
                wait_for(lambda before=before: stranger.made > before)
        wait_for(lambda: admission.count() == (0, 0) and descriptors() <= idle)


def test_a_crowd_on_many_networks_is_bounded_and_ends(home):
    crowd = [
        Stranger(home.settings.enrolment_port, HALVES["body"], f"127.10.{index}.1") for index in range(2, 8)
    ]
    with serving(home, lambda *_, **__: None) as admission:
        with strangers(home, *crowd):
            wait_for(lambda: all(one.made > HELD for one in crowd))
            assert gets_in(home)
            assert admission.count()[0] <= 2 * HELD
        wait_for(lambda: admission.count() == (0, 0))


@pytest.mark.parametrize(("limits", "networks"), [(LIMITS, MOST_NETWORKS), (Limits(), 1)])
def test_who_comes_from_elsewhere_is_always_let_in_and_never_turned_out(limits, networks):
    """At the enrolment port, and at the public port, which shows the CA; with a clock of our own."""
    now, turned_out, tries = 0.0, [], []
    admission = Admission(limits, lambda: now)
    for step in range(3000):
        now = step / 50
        for network in range(networks):
            admission.arrive(f"10.0.{network}.1", lambda: None)
        if step % 500 == 0:  # it stays as long as anybody may, ten seconds, and comes again
            if tries:
                admission.leave(tries[-1])
            tries.append(admission.arrive("10.1.0.1", lambda step=step: turned_out.append(step)))
    assert None not in tries and len(tries) == 6 and turned_out == []

"""How long an answer may take: a slow reader gets all of it, and who reads nothing is gone in the end."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time

import pytest

from fedpeft.flower.proof import Proven, Refusal
from fedpeft.flower.superlink import listener
from fedpeft.flower.superlink.connection_limits import Admission
from fedpeft.flower.superlink.request_check import Entrance
from tests.fedpeft.flower_world import make_certificates, wait_for

SIZE = 2**22
SMALL_BUFFER = 2**16
"""Of each side's kernel, so that most of an answer waits in the server's own."""


async def large(scope, receive, send):
    headers = [(b"content-length", str(SIZE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


def enrolled(scope):
    return Proven("key", None)


def unknown(scope):
    return Refusal(401, "who?\n")


@pytest.fixture(params=["plain", "tls"])
def ask(request, tmp_path):
    """Serve to senders with a proof, or none; a connection with one request made."""
    files, made, running = {}, contextlib.ExitStack(), []
    if request.param == "tls":
        make_certificates(tmp_path)
        files = {"ssl_certfile": tmp_path / "server.crt", "ssl_keyfile": tmp_path / "server.key"}

    def serve(proof=enrolled, header=""):
        gate = Entrance(large, proof, lambda method, path: False, 2**24)
        configured = listener.configuration(gate, lifespan="off", **files)
        configured.load()
        server = listener.Listener(configured, Admission())
        bound = made.enter_context(socket.socket())
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[bound]),), daemon=True)
        thread.start()
        running.append((server, thread))
        wait_for(lambda: server.started)
        client = made.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        client.settimeout(20)
        client.connect(bound.getsockname())
        if files:
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
            client = made.enter_context(context.wrap_socket(client, server_hostname="127.0.0.1"))
        client.sendall(f"POST /a HTTP/1.1\r\nhost: a\r\n{header}content-length: 0\r\n\r\n".encode())
        return server, client

    with made:
        yield serve
        for server, thread in running:
            server.should_exit = True
            thread.join(20)


def read_all(client):
    """Bytes until the server hangs up."""
    got = b""
    with contextlib.suppress(OSError):
        while part := client.recv(2**16):
            got += part
    return got


@pytest.mark.parametrize("header", ["", "connection: close\r\n"])
def test_a_slow_reader_gets_the_whole_answer_and_is_idle_only_then(ask, monkeypatch, header):
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(listener, "GOODBYE_SECONDS", 0.3)
    server, client = ask(header=header)
    time.sleep(2.0)
    assert len(read_all(client)) > SIZE
    wait_for(lambda: server.admission.count() == (0, 0))


def test_who_reads_nothing_is_gone_when_the_exchange_must_end(ask, monkeypatch):
    monkeypatch.setattr(listener, "EXCHANGE_SECONDS", 1.0)
    server, client = ask()
    wait_for(lambda: server.admission.count() == (0, 1))
    wait_for(lambda: server.admission.count() == (0, 0))
    assert len(read_all(client)) < SIZE


def test_a_stranger_that_does_not_hang_up_is_gone_soon_after_its_answer(ask, monkeypatch):
    monkeypatch.setattr(listener, "STRANGER_SECONDS", 60.0)
    monkeypatch.setattr(listener, "GOODBYE_SECONDS", 0.3)
    server, client = ask(unknown)
    wait_for(lambda: server.admission.count() == (0, 0))
    assert read_all(client).startswith(b"HTTP/1.1 401")

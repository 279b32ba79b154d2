"""A small world for the tests of the transport: a fenced link, nodes and a proxy, each a process of its own.

``python flower_world.py link FOLDER`` and ``python flower_world.py node FOLDER NAME {json}`` are those
processes.
"""

import datetime
import http.server
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedpeft import flower
from fedpeft.flower.superlink import listener
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import TrainReply
from fedpeft.trust import new_transport_key, public_line

REPLY = TrainReply(round=3, steps=2, train_s=0.5, epsilon=0.0, ledger_entry=1, ledger=b"")
SECRET = b"s" * 32


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(name, key, issuer, extension):
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(_name(name)).public_key(key.public_key())
    made = made.issuer_name(_name(issuer[0])).serial_number(x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(minutes=5))
    made = made.not_valid_after(now + datetime.timedelta(days=2)).add_extension(extension, False)
    return made.sign(issuer[1], hashes.SHA256()).public_bytes(Encoding.PEM)


def make_certificates(folder, prefix=""):
    """``ca.crt``, ``server.crt`` and ``server.key`` for 127.0.0.1."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    ca = _certificate("ca", authority, ("ca", authority), x509.BasicConstraints(True, 0))
    (folder / f"{prefix}ca.crt").write_bytes(ca)
    (folder / f"{prefix}server.crt").write_bytes(_certificate("s", server, ("ca", authority), loopback))
    private = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{prefix}server.key").write_bytes(private)


class World:
    """One folder, one link, its nodes."""

    def __init__(self, folder):
        self.folder = folder
        self.inside_port, self.port = flower.free_port(), flower.free_port()
        self.link_process, self.nodes = None, {}
        make_certificates(folder)
        (folder / "ports.json").write_text(json.dumps([self.inside_port, self.port]))

    @property
    def inside(self):
        return f"127.0.0.1:{self.inside_port}"

    @property
    def outside(self):
        return f"127.0.0.1:{self.port}"

    @property
    def link(self):
        return flower.SuperLink(self.inside, SECRET)

    def start_link(self):
        self.link_process = self._start("link", "link", str(self.folder))
        wait_for(lambda: answers(self.outside, self.folder / "ca.crt"))

    def kill_link(self):
        self.link_process.kill()
        self.link_process.wait()

    def enrol(self, name):
        """Make the node's key and register it."""
        private = new_transport_key()
        (self.folder / f"{name}.key").write_bytes(private)
        flower.register_node(self.link, public_line(private))
        return public_line(private)

    def start_node(self, name, **options):
        """Options: address, key (a file or None), ca, memory, longest, gate, sleep, stop_event."""
        self.nodes[name] = self._start(name, "node", str(self.folder), name, json.dumps(options))
        return self.nodes[name]

    def said(self, name):
        return (self.folder / f"{name}.log").read_text()

    def calls(self, name):
        file = self.folder / f"{name}.calls"
        return file.read_text().split() if file.exists() else []

    def close(self):
        for process in [*self.nodes.values(), self.link_process]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def _start(self, log, *arguments):
        environment = {**os.environ, "FLWR_HOME": str(self.folder / "flower"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", __file__, *arguments]
        with (self.folder / f"{log}.log").open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


class Proxy:
    """A proxy of the coordinator's, with its certificate, that answers some requests with an error."""

    def __init__(self, world, status):
        self._world, self._status, self._left = world, status, 0

    @property
    def address(self):
        return f"127.0.0.1:{self._server.server_port}"

    def fail(self, requests):
        self._left = requests

    def __enter__(self):
        import ssl

        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                proxy._answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        folder = self._world.folder
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._client = httpx.Client(verify=tls(folder / "ca.crt"))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def _answer(self, request):
        body = request.rfile.read(int(request.headers["content-length"]))
        if self._left > 0:
            self._left -= 1
            status, content = self._status, b"<html>no</html>"
        else:
            url = f"https://{self._world.outside}{request.path}"
            headers = {key: value for key, value in request.headers.items() if key.lower() != "host"}
            try:
                answer = self._client.post(url, content=body, headers=headers)
            except httpx.HTTPError:
                return
            status, content = answer.status_code, answer.content
        request.send_response(status)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


GUARD = 600.0
"""Seconds after which a wait has hung: far beyond what the slowest machine needs."""


def wait_for(ready):
    end = time.monotonic() + GUARD
    while not ready():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def answers(address, ca):
    try:
        return httpx.get(f"https://{address}/health", verify=tls(ca)).status_code == 200
    except httpx.HTTPError:
        return False


def tls(ca):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    return context


def rounds_app(rounds, nodes, got, pause=0.05, ttl=60.0):
    """A ServerApp that sends each node ``round-N`` and waits for all replies; ``got`` lists them by round."""
    app = ServerApp()

    @app.main()
    def main(grid, context):
        got["run"] = context.run_id
        wait_for(lambda: len(list(grid.get_node_ids())) >= nodes)
        got["keys"] = flower.public_keys(grid)
        got["seconds"] = []
        for number in range(1, rounds + 1):
            wait_for(lambda: len(list(grid.get_node_ids())) >= nodes)
            started = time.monotonic()
            got[number] = [_word(reply) for reply in exchange(grid, number, pause, ttl)]
            got["seconds"].append(time.monotonic() - started)

    return app


def exchange(grid, number, pause=0.05, ttl=60.0):
    """One round: all replies, sorted by who sent them."""
    body = f"round-{number}".encode()
    messages = [Message(pack(REPLY, body), node, "train", ttl=ttl) for node in sorted(grid.get_node_ids())]
    waiting, replies = set(grid.push_messages(messages)), []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(reply)
        time.sleep(pause)
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def _word(reply):
    if reply.has_error():
        return (reply.error.code, reply.error.reason)
    return unpack(reply, TrainReply, 1000)[1].decode()


def client_app(folder, name, sleep):
    app = ClientApp()

    @app.train()
    def train(message, context):
        _, body = unpack(message, TrainReply, 1000)
        with (folder / f"{name}.calls").open("a") as file:
            file.write(f"{body.decode()}\n")
        time.sleep(sleep)
        return Message(pack(REPLY, body + b" by " + name.encode()), reply_to=message)

    return app


def _gate(folder, name, mode):
    def gate(asked, reply):
        with (folder / f"{name}.gate").open("a") as file:
            file.write(f"{reply.error.reason if reply.has_error() else 'content'}\n")
        if mode == "closed" or (mode == "refuses" and not reply.has_error()):
            raise PermissionError("a patient's name")
        return reply

    return gate if mode else None


def _node(folder, name, options):
    key, ca = options.get("key", f"{name}.key"), options.get("ca", "ca.crt")
    ports = json.loads((folder / "ports.json").read_text())
    connection = flower.Connection(
        options.get("address", f"127.0.0.1:{ports[1]}"),
        (folder / ca).read_bytes(),
        (folder / key).read_bytes() if key else None,
        longest_step=options.get("longest"),
        memory=folder / f"{name}.number" if options.get("memory") else None,
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    allowed = frozenset([flower.thin_app()[1]])
    app, gate = client_app(folder, name, options.get("sleep", 0)), _gate(folder, name, options.get("gate"))
    tell = partial(print, flush=True)
    flower.serve_node(connection, app, {}, allowed, gate=gate, stop=stop, emit=tell)
    print("ended", threading.active_count(), flush=True)


def _link(folder):
    inside, outside = json.loads((folder / "ports.json").read_text())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    flower.hush()
    if (folder / "impatient").exists():
        listener.STRANGER_SECONDS = 4.0

    def handout(run, key):
        with (folder / "bundles").open("a") as file:
            file.write(f"{run} {key}\n")
        return (folder / "generous").exists()

    files = (folder / name for name in ("server.crt", "server.key", "ca.crt"))
    flower.serve_link(
        flower.LinkSettings(
            folder,
            inside,
            "127.0.0.1",
            outside,
            *files,
            SECRET,
            handout,
            stock=lambda key: (folder / "stock").exists(),
        ),
        stop,
    )


if __name__ == "__main__":
    if sys.argv[1] == "link":
        _link(Path(sys.argv[2]))
    else:
        _node(Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))

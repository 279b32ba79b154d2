"""What a node does with a hostile coordinator's redirects, compressed answers and endless bodies."""

import gzip
import http.server
import resource
import ssl
import threading
import zlib
from contextlib import contextmanager

import pytest

from fedpeft.flower import Connection, Fault
from fedpeft.flower.fleet import Fleet
from fedpeft.flower.wire import LARGEST_ANSWER
from fedpeft.trust import new_transport_key
from tests.fedpeft.flower_world import make_certificates


@contextmanager
def _server(answer, context=None):
    """A server on loopback that answers each request by ``answer(handler)`` and counts them."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            hits.append((self.command, dict(self.headers)))
            answer(self)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, hits
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def coordinator(tmp_path):
    """A function from an answer to a fleet that is about to ask a coordinator who answers that."""
    make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")

    @contextmanager
    def make(answer):
        with _server(answer, context) as (port, hits):
            ca = (tmp_path / "ca.crt").read_bytes()
            yield Fleet(Connection(f"127.0.0.1:{port}", ca, new_transport_key())), hits

    return make


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_redirect_is_never_followed(coordinator, status, scheme):
    def inside(handler):
        handler.send_response(200)
        handler.send_header("content-length", "0")
        handler.end_headers()

    with _server(inside) as (port, reached):

        def answer(handler):
            handler.send_response(status)
            handler.send_header("location", f"{scheme}://127.0.0.1:{port}/internal?delete=1")
            handler.send_header("content-length", "0")
            handler.end_headers()

        with coordinator(answer) as (fleet, asked), pytest.raises(Fault, match="a redirect") as caught:
            fleet.open()
    assert len(asked) == 1 and not reached
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip", "gzip, identity", "br", "GZIP"])
def test_a_compressed_answer_is_not_inflated(coordinator, encoding):
    bomb = gzip.compress(bytes(2**28)) if "gzip" in encoding.lower() else zlib.compress(bytes(2**28))

    def answer(handler):
        handler.send_response(200)
        handler.send_header("content-encoding", encoding)
        handler.send_header("content-length", str(len(bomb)))
        handler.end_headers()
        handler.wfile.write(bomb)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with coordinator(answer) as (fleet, asked), pytest.raises(Fault, match="is compressed"):
        fleet.open()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17, "KiB: the bomb is twice that"
    assert asked[0][1]["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_an_endless_answer_is_cut(coordinator, status):
    sent = []

    def answer(handler):
        handler.send_response(status)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(2**20))
                sent.append(2**20)
        except OSError:
            pass

    with coordinator(answer) as (fleet, _), pytest.raises(Fault, match="is too long"):
        fleet.open()
    assert sum(sent) < 4 * LARGEST_ANSWER

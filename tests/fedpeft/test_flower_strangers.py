"""What a stranger can do to a coordinator on its public port, and who may use the port on loopback."""

import contextlib
import socket
import ssl
import subprocess
import sys
import time

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedpeft import flower
from fedpeft.flower.fleet import Fleet
from fedpeft.flower.signature import Signing, by_secret
from fedpeft.trust import new_transport_key
from tests.fedpeft.flower_world import World, answers, tls, wait_for

PUSH = "/v1/fleet/push-object"
PROTOBUF = {"content-type": "application/protobuf"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    (made.folder / "impatient").touch()
    made.start_link()
    yield made
    made.close()


def memory(world):
    """MiB of the link."""
    with open(f"/proc/{world.link_process.pid}/status") as status:
        (line,) = (line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


class Stranger:
    """One connection; whatever the link does to it is no error here."""

    def __init__(self, world, address, secure=True):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.socket = socket.create_connection(("127.0.0.1", world.port), 10, (address, 0))
        if secure:
            with contextlib.suppress(OSError):
                self.socket = context.wrap_socket(self.socket)

    def send(self, data):
        with contextlib.suppress(OSError):
            self.socket.settimeout(10)
            self.socket.sendall(data)

    def answer(self):
        """All that the link says before it hangs up."""
        got = b""
        with contextlib.suppress(OSError):
            self.socket.settimeout(20)
            while part := self.socket.recv(65536):
                got += part
        return got

    @property
    def is_over(self):
        """Whether the link has ended it."""
        try:
            self.socket.setblocking(False)
            while self.socket.recv(65536):
                pass
            return True
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            return True


@pytest.fixture
def connect(world, request):
    """A function that makes connections, from an address of this test's own unless another is given."""
    made, own = [], f"127.9.{hash(request.node.name) % 250}.{len(request.node.name) % 250 + 1}"

    def stranger(address=own, secure=True):
        made.append(Stranger(world, address, secure))
        return made[-1]

    yield stranger
    for one in made:
        one.socket.close()


def post(world, headers, path=PUSH, body=b""):
    return httpx.post(
        f"https://{world.outside}{path}",
        content=body,
        headers=PROTOBUF | headers,
        verify=tls(world.folder / "ca.crt"),
    )


class Recorder(Fleet):
    """A node, and the requests that it sent."""

    def __init__(self, world, name, unsigned=False):
        files = [(world.folder / file).read_bytes() for file in ("ca.crt", f"{name}.key")]
        super().__init__(flower.Connection(world.outside, *files))
        self.sent, before = [], self._client._interceptors
        self._client._interceptors = (*(before[:-1] if unsigned else before), self)

    def intercept(self, context, call_next):
        self.sent.append(context.request)
        return call_next(context)


@pytest.fixture
def recorder(world):
    made = []

    def node(name, at=world, unsigned=False):
        made.append(Recorder(at, name, unsigned))
        return made[-1]

    yield node
    for one in made:
        one._client.close()


def signed(request):
    """The headers that a node put on a request."""
    kept = ("flwr-public-key", "flwr-timestamp", "flwr-signature")
    return {name: request.headers[name] for name in request.headers if name.startswith("fedpeft-")} | {
        name: request.headers[name] for name in kept
    }


def head(length, **headers):
    lines = {"Host": "x", "Content-Type": "application/protobuf", "Content-Length": str(length)} | headers
    return "\r\n".join([f"POST {PUSH} HTTP/1.1", *map(": ".join, lines.items()), "", ""]).encode()


def test_a_stranger_parks_no_body_in_memory(world, connect):
    before, held = memory(world), []
    for _ in range(16):
        held.append(connect())
        held[-1].send(head(2**24) + bytes(2**24 - 1))
    assert memory(world) - before < 32
    wait_for(lambda: all(one.is_over for one in held))


@pytest.mark.parametrize("size", [20_000, 400_000, 4_000_000])
def test_long_headers_are_refused_and_leave_no_line(world, connect, size):
    lines, stranger = world.said("link"), connect()
    stranger.send(head(0, **{"Content-Type": "A" * size}))
    answer = stranger.answer()
    assert answer == b"" or answer.split()[1] in (b"400", b"431")
    assert world.said("link") == lines


def test_what_a_stranger_writes_is_not_logged(world):
    lines = world.said("link")
    assert post(world, {"content-type": "\x1b[31m" + "A" * 10_000}).status_code == 401
    assert world.said("link") == lines


def test_half_requests_lock_nobody_out_and_end(world, connect):
    held = [connect() for _ in range(100)]
    for one in held:
        one.send(f"POST {PUSH} HTTP/1.1\r\nHost:".encode())
    assert answers(world.outside, world.folder / "ca.crt")
    assert sum(not one.is_over for one in held) <= 32
    wait_for(lambda: all(one.is_over for one in held))


def test_who_says_nothing_or_one_byte_at_a_time_is_ended(world, connect):
    silent, slow, waiting = connect(secure=False), connect(), connect()
    end = time.monotonic() + 40
    while not (silent.is_over and slow.is_over and waiting.is_over):
        assert time.monotonic() < end
        slow.send(b"a")
        time.sleep(0.5)


def test_a_crowd_from_many_addresses_leaves_room_for_a_node(world, connect):
    crowd = [connect(f"127.10.{index // 200}.{index % 200 + 2}") for index in range(200)]
    assert answers(world.outside, world.folder / "ca.crt")
    assert sum(not one.is_over for one in crowd) <= 128


def test_a_stranger_gets_one_answer_a_connection(connect):
    stranger = connect()
    stranger.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    assert stranger.answer().count(b"HTTP/1.1 200") == 1


def test_a_key_that_nobody_enrolled_sends_no_body(world, recorder):
    (world.folder / "unknown.key").write_bytes(new_transport_key())
    node = recorder("unknown")
    with pytest.raises(flower.Fault, match="does not admit this node's key"):
        node.open()
    (asked,) = node.sent
    answer = post(world, signed(asked), asked.url.path, asked.content)
    assert answer.status_code == 412 and answer.headers["connection"] == "close"
    with pytest.raises(flower.Fault, match="does not know this node's key"):
        node.receive()


def test_a_request_of_a_node_is_good_for_its_own_call_and_body_only(world, recorder):
    world.enrol("exact")
    node = recorder("exact")
    node.open()
    asked, me = node.sent[-1], Node(node_id=node.node_id)
    body = ActivateNodeRequest(public_key=node._public(), heartbeat_interval=30).SerializeToString()
    assert post(world, signed(asked), asked.url.path, asked.content).status_code != 401
    assert post(world, signed(asked), asked.url.path, body + b"\0\0").status_code == 401
    pull = PullMessagesRequest(node=me).SerializeToString()
    assert post(world, signed(asked), "/v1/fleet/pull-messages", pull).status_code == 401
    assert post(world, signed(asked), asked.url.path + "?a=b", asked.content).status_code == 401
    only_time = {name: value for name, value in signed(asked).items() if name.startswith("flwr")}
    assert post(world, only_time, asked.url.path, asked.content).status_code == 401
    old = {"fedpeft-time": str(float(asked.headers["fedpeft-time"]) - 1000)}
    assert post(world, signed(asked) | old, asked.url.path, asked.content).status_code == 401


def test_a_header_that_stands_twice_is_refused(world, recorder):
    """A node could show its own key to one reader, and to the next another's with what that signed."""
    world.enrol("victim"), world.enrol("own")
    victim, own = recorder("victim"), recorder("own")
    victim.open()
    seen = victim.sent[-1]
    request = httpx.Request("POST", f"https://{world.outside}{seen.url.path}", content=seen.content)
    _signed_by(own._client._interceptors[1:3], request)
    theirs = {name: value for name, value in signed(seen).items() if name.startswith("flwr")}
    pairs = [*theirs.items(), *signed(request).items(), *PROTOBUF.items()]
    with httpx.Client(verify=tls(world.folder / "ca.crt")) as client:
        assert client.post(request.url, content=seen.content, headers=pairs).status_code == 401


def test_what_a_node_sent_to_one_coordinator_is_refused_by_another(world, tmp_path, recorder):
    """The other coordinator has the same organisation enrolled, with the same key."""
    rogue = World(tmp_path)
    try:
        rogue.start_link()
        line = world.enrol("both")
        (rogue.folder / "both.key").write_bytes((world.folder / "both.key").read_bytes())
        flower.register_node(rogue.link, line)
        node = recorder("both", rogue)
        node.open()
        for asked in list(node.sent):
            for kept in (signed(asked), {k: v for k, v in signed(asked).items() if k.startswith("flwr")}):
                assert post(world, kept, asked.url.path, asked.content).status_code == 401
    finally:
        rogue.close()


def test_a_stock_node_that_was_enrolled_as_one_may_sign_the_time_alone(world, recorder):
    world.enrol("plain-flower")
    node = recorder("plain-flower", unsigned=True)
    with pytest.raises(flower.Fault):
        node.open()
    (world.folder / "stock").touch()
    try:
        node.open()
        assert node.node_id and node.receive() is None
    finally:
        (world.folder / "stock").unlink()


def test_bodies_of_one_node_are_bounded_together(world, connect, recorder):
    """Enrolled, it may announce 16 MiB; a third such body at once is refused."""
    world.enrol("heavy")
    node = recorder("heavy")
    node.open()
    body, over = bytes(2**24), []
    signing = node._client._interceptors[1], node._client._interceptors[2]
    for _ in range(3):
        request = httpx.Request("POST", f"https://{world.outside}{PUSH}", content=body, headers=PROTOBUF)
        _signed_by(signing, request)
        one = connect()
        one.send(head(2**24, **signed(request)) + bytes(1000))
        time.sleep(0.5)
        over.append(one.is_over)
    assert over == [False, False, True]


def _signed_by(interceptors, request):
    class Context:
        pass

    context = Context()
    context.request = request
    for one in interceptors:
        one.intercept(context, lambda _: None)


INSIDE = [
    "list-nodes",
    "register-node",
    "unregister-node",
    "start-run",
    "stop-run",
    "list-runs",
    "stream-logs",
]


@pytest.mark.parametrize(
    "call", [f"control/{name}" for name in INSIDE] + ["runtime/acquire-task", "fleet/get-run"]
)
def test_the_port_on_loopback_answers_nobody_without_the_secret(world, call):
    answer = httpx.post(f"http://{world.inside}/v1/{call}", content=b"", headers=PROTOBUF)
    assert answer.status_code == 401
    wrong = Signing("inside", by_secret(b"x" * 32))
    with pytest.raises(flower.Fault, match="does not know"):
        _list(world, wrong)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/", "/v1/control/list-nodes"])
def test_the_port_on_loopback_shows_no_pages(world, path):
    assert httpx.get(f"http://{world.inside}{path}").status_code in (401, 413)
    assert httpx.get(f"http://{world.inside}/health").status_code == 200


def test_who_holds_the_secret_uses_the_port_on_loopback(world):
    assert isinstance(_list(world, world.link.signing), ListNodesResponse)


FLOOD = """
import socket, sys
held = []
while True:
    held.append(socket.socket())
    if held[-1].connect_ex(("127.0.0.1", int(sys.argv[1]))):
        held.pop().close()
    if len(held) > 200:
        held.pop(0).close()
"""


def test_the_coordinators_own_calls_get_in_beside_a_flood_of_a_local_user(world):
    """Each call is a connection, and all come from one address."""
    with subprocess.Popen([sys.executable, "-c", FLOOD, str(world.inside_port)]) as flood:
        try:
            for _ in range(300):
                _list(world, world.link.signing)
        finally:
            flood.kill()


def test_the_link_of_a_simulation_needs_the_secret_too(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with flower.superlink() as link:
        url = f"http://{link.address}/v1/control/list-nodes"
        assert httpx.post(url, content=b"", headers=PROTOBUF).status_code == 401


def _list(world, signing):
    from flwr.supercore.control.control_http_client import ControlHttpClient

    from fedpeft.flower.faults import plain

    interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI"), signing]
    with (
        ControlHttpClient.from_server_address(world.inside, True, None, interceptors) as client,
        plain(world.inside),
    ):
        return client.ListNodes(ListNodesRequest())

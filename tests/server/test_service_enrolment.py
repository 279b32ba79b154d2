"""Enrolment end to end: a real CA and real TLS on loopback."""

import http.client
import socket
import ssl
import stat
import time
from contextlib import closing
from dataclasses import replace

import pytest

from fedpeft.errors import ConfigError
from fedpeft.flower import free_port, thin_app
from fedpeft.protocol.enrolment import MAX_BYTES, PATH, Answer, Request, Token
from fedpeft.trust import Signer, certificate_fingerprint, new_transport_key
from fedpeft_server.service import certificates
from fedpeft_server.service.enrolment_service import serving
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import ServerHome, Settings
from fedpeft_server.service.stock_nodes import BundleGate
from tests.fedpeft.flower_world import wait_for


@pytest.fixture
def home(tmp_path):
    ports = [free_port() for _ in range(4)]
    return ServerHome.create(tmp_path / "server", Settings("north", "127.0.0.1", "127.0.0.1", *ports))


@pytest.fixture
def told():
    return []


@pytest.fixture
def ask(home, told):
    """A function from a request (or bytes) to the service's answer."""

    def tell(event, level="info", **facts):
        told.append({"event": event, **facts})

    with serving(home, tell):

        def send(request):
            status, data = post(home, request if isinstance(request, bytes) else request.encode())
            assert status == 200
            return Answer.decode(data)

        yield send


def post(home, body, path=PATH, method="POST", headers=None):
    """Status and body of an answer."""
    context = ssl.create_default_context(cafile=str(home.path / "ca.crt"))
    port = home.settings.enrolment_port
    with closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)) as link:
        link.request(method, path, body, headers or {})
        answer = link.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def keys():
    return new_transport_key(), Signer.generate()


def request_of(keys, token, name="clinic", issued=None):
    return Request.make(name, token, *keys, int(time.time()) if issued is None else issued)


def test_the_way_in(home, ask, keys):
    registry = Registry(home)
    token = registry.new_token("clinic", 24)
    assert token.ca == certificate_fingerprint((home.path / "ca.crt").read_bytes())
    request = request_of(keys, token)
    waiting = ask(request)
    assert waiting.state == "waiting" and request.fingerprint() in waiting.cause
    assert registry.nodes()["clinic"].state == "waiting" and registry.enrolled() == {}
    with pytest.raises(ConfigError, match="another fingerprint"):
        registry.approve("clinic", "0000-" * 7 + "0000")
    registry.approve("clinic", request.fingerprint().upper())
    answer = ask(request_of(keys, token))
    assert answer.state == "enrolled" and answer.federation == "north" and answer.app == thin_app()[1]
    assert answer.coordinator == home.signer.public.hex() and answer.proven(request.fingerprint())
    assert list(registry.enrolled()) == ["clinic"]


def test_a_replayed_request_changes_nothing(home, ask, keys):
    token = Registry(home).new_token("clinic", 24)
    request = request_of(keys, token)
    ask(request)
    before = {name: (home.path / name).read_bytes() for name in ("nodes.json", "tokens.json")}
    assert ask(request).state == "waiting"
    assert before == {name: (home.path / name).read_bytes() for name in before}


def test_an_old_request_is_refused(home, ask, keys):
    token = Registry(home).new_token("clinic", 24)
    answer = ask(request_of(keys, token, issued=int(time.time()) - 3600))
    assert answer.state == "refused" and "clock" in answer.cause


def test_a_wrong_token_is_refused(home, ask, keys, told):
    token = Registry(home).new_token("clinic", 24)
    answer = ask(request_of(keys, replace(token, secret="0" * 32)))
    assert answer.state == "refused" and "unknown" in answer.cause
    assert Registry(home).nodes() == {}
    assert told[-1] == {
        "event": "enrolment refused",
        "peer": "127.0.0.1",
        "node": "clinic",
        "cause": answer.cause,
    }


def test_a_token_is_for_one_name(home, ask, keys):
    token = Registry(home).new_token("clinic", 24)
    answer = ask(request_of(keys, token, name="other"))
    assert answer.state == "refused" and "another name" in answer.cause


def test_an_expired_token_lets_no_new_key_in(home, ask, keys):
    registry = Registry(home)
    token = registry.new_token("clinic", 1e-9)
    answer = ask(request_of(keys, token))
    assert answer.state == "refused" and "expired" in answer.cause
    assert registry.nodes() == {}


def test_a_used_token_lets_no_second_key_in(home, ask, keys):
    token = Registry(home).new_token("clinic", 24)
    ask(request_of(keys, token))
    answer = ask(request_of((new_transport_key(), Signer.generate()), token))
    assert answer.state == "refused" and "used by another key" in answer.cause


def test_a_second_token_ends_the_first(home, ask, keys):
    first = Registry(home).new_token("clinic", 24)
    second = Registry(home).new_token("clinic", 24)
    assert ask(request_of(keys, first)).state == "refused"
    assert ask(request_of(keys, second)).state == "waiting"


@pytest.mark.parametrize("field", ["signature", "possession"])
def test_a_key_that_is_not_proven_is_refused(home, ask, keys, field):
    token = Registry(home).new_token("clinic", 24)
    stranger = request_of((new_transport_key(), Signer.generate()), token)
    answer = ask(replace(request_of(keys, token), **{field: getattr(stranger, field)}))
    assert answer.state == "refused" and "both of its keys" in answer.cause
    assert Registry(home).nodes() == {}


def test_a_transport_key_has_one_name(home, ask, keys):
    registry = Registry(home)
    ask(request_of(keys, registry.new_token("clinic", 24)))
    answer = ask(request_of(keys, registry.new_token("other", 24), name="other"))
    assert answer.state == "refused" and "another name" in answer.cause


def test_a_revoked_node_comes_back_with_a_new_key_only(home, ask, keys):
    registry = Registry(home)
    token = registry.new_token("clinic", 24)
    ask(request_of(keys, token))
    registry.approve("clinic", registry.nodes()["clinic"].fingerprint)
    with pytest.raises(ConfigError, match="revoke clinic"):
        registry.new_token("clinic", 24)
    registry.revoke("clinic")
    assert ask(request_of(keys, token)).state == "refused"
    again = registry.new_token("clinic", 24)
    assert "was revoked" in ask(request_of(keys, again)).cause
    fresh = (new_transport_key(), keys[1])
    assert ask(request_of(fresh, again)).state == "waiting"


def test_nonsense_gets_a_plain_cause(ask):
    assert ask(b"{}").state == "refused"
    assert "no JSON" in ask(b"\xff\x00").cause


def test_an_oversized_message_is_refused_unread(home, ask):
    for size in (MAX_BYTES + 1, 2**40):
        assert post(home, b"", headers={"Content-Length": str(size)})[0] == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", PATH), ("GET", "/health"), ("POST", "/v1/fleet/get-run"), ("POST", "/fedpeft.Enrolment/Join")],
)
def test_nothing_else_is_served(home, ask, method, path):
    assert post(home, b"", path, method)[0] == 404


def test_a_fault_of_the_coordinator_is_told_to_its_operator_alone(home, ask, keys, told):
    request = request_of(keys, Registry(home).new_token("clinic", 24))
    (home.path / "tokens.json").write_text("{damaged")
    status, said = post(home, request.encode())
    assert status == 503 and said == b"the coordinator has a fault: try again later\n"
    assert told[-1]["event"] == "enrolment failed" and "tokens.json" in told[-1]["cause"]


def test_only_a_node_that_was_enrolled_as_stock_is_one(home, ask, keys):
    registry, gate = Registry(home), BundleGate(home)
    others = new_transport_key(), Signer.generate()
    for name, pair, stock in (("clinic", keys, False), ("bank", others, True)):
        request = request_of(pair, registry.new_token(name, 24, stock), name=name)
        ask(request)
        assert not gate.is_stock(request.transport), "not before it is approved"
        registry.approve(name, request.fingerprint())
        assert gate.is_stock(request.transport) is stock
    registry.revoke("bank")
    assert not any(gate.is_stock(node.transport) for node in registry.nodes().values())


def test_tokens_are_stored_hashed_and_files_are_private(home, ask, keys):
    token = Registry(home).new_token("clinic", 24)
    ask(request_of(keys, token))
    for path in home.path.iterdir():
        assert token.secret.encode() not in (path.read_bytes() if path.is_file() else b"")
    for name in ("tokens.json", "nodes.json"):
        assert stat.S_IMODE((home.path / name).stat().st_mode) == 0o600


def served_certificate(home):
    context = ssl.create_default_context(cafile=str(home.path / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", home.settings.enrolment_port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        return secured.getpeercert(binary_form=True)


def test_a_renewed_certificate_is_served_without_a_restart(home, ask):
    authority, before = (home.path / "ca.crt").read_bytes(), served_certificate(home)
    certificates.renew(home.path, "127.0.0.1")
    wait_for(lambda: served_certificate(home) != before)
    assert (home.path / "ca.crt").read_bytes() == authority
    assert ask(b"{}").state == "refused"


def test_two_services_do_not_share_a_port(home, ask):
    from fedpeft.errors import FederationError

    with pytest.raises(FederationError, match="cannot listen on"), serving(home, lambda *_, **__: None):
        pass


@pytest.mark.parametrize("name", ["", "../x", "a b"])
def test_no_token_for_a_bad_name(home, name):
    with pytest.raises(ConfigError, match="is no name"):
        Registry(home).new_token(name, 24)


def test_unknown_nodes_are_named(home):
    with pytest.raises(ConfigError, match="known are: none"):
        Registry(home).approve("nobody", "x")
    assert Token.parse(str(Registry(home).new_token("a", 1))).port == home.settings.enrolment_port

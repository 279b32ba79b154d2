"""Joining a coordinator over real TLS on loopback, and refusing whoever only looks like one."""

from __future__ import annotations

import http.server
import os
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fedpeft.errors import ConfigError, FederationError
from fedpeft.flower import free_port, thin_app
from fedpeft.protocol.enrolment import Token
from fedpeft.trust import certificate_fingerprint, fingerprint
from fedpeft_clients.governance.joining import Address, fetch_ca, join
from fedpeft_clients.governance.organisation import init_organisation, open_organisation
from fedpeft_clients.governance.policy import template


@pytest.fixture
def organisation(tmp_path):
    return init_organisation(tmp_path / "clinic", "clinic", template("strict"))


@pytest.fixture
def server(tmp_path):
    """A coordinator's folder whose enrolment service and ``/ca.crt`` answer."""
    from fedpeft_server.service.enrolment_service import serving
    from fedpeft_server.service.server_home import ServerHome, Settings

    ports = [free_port() for _ in range(4)]
    home = ServerHome.create(tmp_path / "server", Settings("north", "127.0.0.1", "127.0.0.1", *ports))
    with serving(home, lambda event, level="info", **facts: None), _public_port(home):
        yield home


@contextmanager
def _public_port(home):
    class CaOnly(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/ca.crt" else 404)
            self.end_headers()
            self.wfile.write((home.path / "ca.crt").read_bytes())

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.path / "server.crt", home.path / "server.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", home.settings.port), CaOnly) as public:
        public.socket = context.wrap_socket(public.socket, server_side=True)
        threading.Thread(target=public.serve_forever, daemon=True).start()
        yield
        public.shutdown()


def registry(home):
    from fedpeft_server.service.node_registry import Registry

    return Registry(home)


def address_of(home):
    return Address("127.0.0.1", home.settings.port)


def test_a_node_waits_shows_its_fingerprint_and_is_let_in(server, organisation):
    token, told = registry(server).new_token("clinic", 24), []
    assert join(organisation, address_of(server), token, 0, told.append) is None
    shown = told[0].split()[-1]
    assert organisation.grants() == []
    registry(server).approve("clinic", shown)
    grant = join(organisation, address_of(server), token, 0)
    assert grant == organisation.grant() == open_organisation(organisation.path).grant(grant.fingerprint)
    assert grant.ca.read_bytes() == (server.path / "ca.crt").read_bytes()
    assert grant.fingerprint == fingerprint(server.signer.public)
    assert (grant.app, grant.address) == (thin_app()[1], str(address_of(server)))


def test_private_keys_are_for_their_owner_and_never_made_anew(organisation):
    assert organisation.path.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in organisation.path.iterdir())
    with pytest.raises(ConfigError, match="never overwritten"):
        init_organisation(organisation.path, "clinic", "")


def test_another_ca_than_the_tokens_is_refused_before_anything_is_sent(server, organisation):
    token = replace(registry(server).new_token("clinic", 24), ca="0000-" * 7 + "0000")
    with pytest.raises(FederationError, match="not the coordinator of this token"):
        join(organisation, address_of(server), token, 0)
    assert "clinic" not in registry(server).nodes()


def test_a_ca_that_stands_beside_the_tokens_is_not_believed(server, tmp_path):
    """Whoever sits between could add one of its own, and show certificates of that later."""
    from fedpeft_server.service import certificates

    token, alone = registry(server).new_token("clinic", 24), (server.path / "ca.crt").read_bytes()
    certificates.create(tmp_path, "north", "127.0.0.1")
    (server.path / "ca.crt").write_bytes(alone + (tmp_path / "ca.crt").read_bytes())
    assert fetch_ca(address_of(server), token) == alone


def test_a_coordinator_of_another_version_is_one_plain_line(server, organisation, monkeypatch):
    monkeypatch.setattr("fedpeft_clients.governance.joining.PATH", "/v2/join")
    with pytest.raises(FederationError, match="upgrade fedpeft, here or there"):
        join(organisation, address_of(server), registry(server).new_token("clinic", 24), 0)


def test_a_token_that_is_not_the_nodes_is_refused(server, organisation):
    token = registry(server).new_token("other", 24)
    with pytest.raises(FederationError, match="refuses"):
        join(organisation, address_of(server), token, 0)


def test_nobody_at_the_address_is_one_plain_line(organisation):
    token = Token("0000-" * 7 + "0000", free_port(), "0" * 32)
    with pytest.raises(FederationError, match="no coordinator answers"):
        fetch_ca(Address("127.0.0.1", free_port()), token)


def test_an_enrolment_service_with_another_certificate_is_not_believed(server, organisation, tmp_path):
    """Somebody who answers the token's port with a certificate of their own learns no token."""
    from fedpeft_server.service.enrolment_service import serving
    from fedpeft_server.service.server_home import ServerHome, Settings

    ports = [free_port() for _ in range(4)]
    thief = ServerHome.create(tmp_path / "thief", Settings("north", "127.0.0.1", "127.0.0.1", *ports))
    token = Token(
        certificate_fingerprint((server.path / "ca.crt").read_bytes()),
        thief.settings.enrolment_port,
        registry(thief).new_token("clinic", 24).secret,
    )
    with (
        serving(thief, lambda event, level="info", **facts: None),
        pytest.raises(FederationError, match="no coordinator answers"),
    ):
        join(organisation, address_of(server), token, 0)
    assert "clinic" not in registry(thief).nodes()


@pytest.mark.parametrize("text", ["", "host", "host:", "host:0", "host:70000", ":5", "https://host:5"])
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Address.parse(text)


def test_addresses():
    assert str(Address.parse("[::1]:80")) == "[::1]:80"
    assert str(Address.parse("host:80")) == "host:80"


@pytest.mark.parametrize("way", ["stdin", "file", "environment", "no file"])
def test_a_token_need_not_stand_in_the_process_list(organisation, tmp_path, way):
    """Each way the token is read, and the node goes on to ask an address where nobody is."""
    file, environment, token = tmp_path / "token", {}, f"fp1-{'0' * 32}-1-{'0' * 32}"
    file.write_text(f"{token}\n")
    command = ["node", "join", "127.0.0.1:1", "--wait", "0", "--home", str(organisation.path)]
    if way == "environment":
        environment = {"FEDPEFT_TOKEN": token}
    elif way != "stdin":
        command += ["--token-file", str(file if way == "file" else tmp_path / "none")]
    done = subprocess.run(
        [sys.executable, "-m", "fedpeft", *command],
        input=f"{token}\n" if way == "stdin" else "",
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    cause = "cannot be read" if way == "no file" else "no coordinator answers"
    assert done.returncode == (2 if way == "no file" else 7) and cause in done.stderr

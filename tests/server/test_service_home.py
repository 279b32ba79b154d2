"""A coordinator's folder, its certificates, and the commands that need no service."""

import json
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from fedpeft.cli import build_app
from fedpeft.data import read_written
from fedpeft.errors import ConfigError, FedPeftError, RunError
from fedpeft.flower import free_port
from fedpeft.runstore import RunStore
from fedpeft.trust import Signer, new_transport_key, public_line
from fedpeft_server.service import certificates
from fedpeft_server.service.node_registry import Node, Registry
from fedpeft_server.service.server_home import (
    ServerHome,
    Settings,
    bind_address,
    coordinators,
    is_up,
    only_home,
    read_status,
    take_lock,
)

PORTS = ("--port", "--enrolment-port", "--inside-port", "--metrics-port")
SECRETS = ("coordinator.key", "ca.key", "server.key", "secret")


@pytest.fixture
def home(tmp_path):
    ports = [free_port() for _ in range(4)]
    return ServerHome.create(tmp_path / "server", Settings("north", "127.0.0.1", "127.0.0.1", *ports))


@pytest.fixture
def run(home):
    """A function that runs a command on the home and returns its JSON."""

    def invoke(*words, code=0):
        result = CliRunner().invoke(build_app(), ["server", *words, "--home", str(home.path), "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.output)

    return invoke


def enrol(home, *names):
    entries = {
        name: Node(
            public_line(new_transport_key()).decode(), Signer.generate().public.hex(), name, "enrolled", 1.0
        )
        for name in names
    }
    Registry(home)._write("nodes.json", entries)


def refused(*words):
    """The error of a command that must fail."""
    result = CliRunner().invoke(build_app(), ["server", *words])
    assert isinstance(result.exception, FedPeftError), result.output
    return str(result.exception)


def test_init_makes_a_whole_coordinator(tmp_path):
    folder = tmp_path / "home"
    words = [word for name in PORTS for word in (name, str(free_port()))]
    result = CliRunner().invoke(
        build_app(), ["server", "init", "--host", "fed.example.org", *words, "--home", str(folder), "--json"]
    )
    assert result.exit_code == 0, result.output
    facts, home = json.loads(result.output), ServerHome.open(folder)
    assert facts["host"] == "fed.example.org" and facts["bind"] == bind_address("fed.example.org")
    assert len(facts["ca"]) == len(facts["key"]) == 39
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in SECRETS} == {0o600}
    assert home.settings.port == int(words[1])


def test_init_refuses_what_cannot_work(tmp_path):
    (tmp_path / "taken").mkdir()
    assert "exists" in refused("init", "--host", "a", "--port", "9000", "--home", str(tmp_path / "taken"))
    free = str(tmp_path / "free")
    assert "--bind" in refused("init", "--host", "0.0.0.0", "--port", "9000", "--home", free)
    assert "neither a name" in refused("init", "--host", "a b", "--port", "9000", "--home", free)
    assert "65535" in refused("init", "--host", "a", "--port", "65534", "--home", free)
    same = ("--port", "9000", "--metrics-port", "9000")
    assert "differ" in refused("init", "--host", "a", *same, "--home", free)
    assert not (tmp_path / "free").exists()


def test_commands_need_a_coordinator(tmp_path):
    assert "server init" in refused("nodes", "--home", str(tmp_path))


def test_the_only_coordinator_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path))
    assert "server init" in refused("nodes")
    for name, port in (("north", "9000"), ("south", "9010")):
        words = ["server", "init", "--host", "localhost", "--port", port, "--name", name]
        assert CliRunner().invoke(build_app(), words).exit_code == 0
        assert (coordinators() / name / "server.json").is_file()
        if name == "north":
            assert only_home() == tmp_path / "server" / "north"
    assert "give one with --home" in refused("nodes")
    monkeypatch.delenv("FEDPEFT_HOME")
    assert coordinators().parts[-2:] == ("fedpeft", "server")


def test_a_lost_key_is_not_replaced(home):
    home.signing_key.unlink()
    with pytest.raises(ConfigError, match="backup"):
        _ = home.signer


def test_addresses_to_listen_on():
    hosts = ("10.1.2.3", "::1", "localhost", "fed.example.org")
    every = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    assert [bind_address(host) for host in hosts] == ["10.1.2.3", "::1", "127.0.0.1", every]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the system has one address family")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_coordinator_with_a_name_is_reached_over_either_family(address):
    """Its name may have IPv6 addresses only, or IPv4 addresses only."""
    from fedpeft.flower.superlink.ports import bound

    with bound(bind_address("fed.example.org"), free_port()) as listener:
        listener.listen()
        socket.create_connection((address, listener.getsockname()[1]), timeout=10).close()


def test_certificates_are_as_promised(home):
    ca, server = (certificates.load(home.path / name) for name in ("ca.crt", "server.crt"))
    assert isinstance(ca.public_key().curve, ec.SECP384R1) and isinstance(
        server.public_key().curve, ec.SECP256R1
    )
    assert 3649 < certificates.days_left(ca) <= 3650 and 89 < certificates.days_left(server) <= 90
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert {str(one) for one in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificates.belongs(home.path)


def handshake(folder, authority, name):
    """Whether a client that trusts an authority accepts the server of a folder under a name."""
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(cafile=str(authority)),
    )
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve():
        try:
            server.wrap_socket(ours, server_side=True).close()
        except OSError:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(theirs, server_hostname=name).close()
    except ssl.SSLError:
        return False
    finally:
        theirs.close()
        thread.join()
    return True


def test_tls_holds_for_our_authority_and_names_only(home, tmp_path):
    authority = home.path / "ca.crt"
    assert handshake(home.path, authority, "127.0.0.1") and handshake(home.path, authority, "localhost")
    assert not handshake(home.path, authority, "fed.example.org")
    (tmp_path / "other").mkdir()
    certificates.create(tmp_path / "other", "other", "127.0.0.1")
    assert not handshake(home.path, tmp_path / "other" / "ca.crt", "127.0.0.1")


def test_renewal_keeps_authority_and_key(home, run):
    kept = {name: (home.path / name).read_bytes() for name in ("ca.crt", "ca.key", "server.key")}
    before = certificates.load(home.path / "server.crt").serial_number
    run("renew")
    assert kept == {name: (home.path / name).read_bytes() for name in kept}
    assert certificates.load(home.path / "server.crt").serial_number != before
    assert certificates.belongs(home.path) and handshake(home.path, home.path / "ca.crt", "localhost")


def test_renewal_is_due_in_the_last_third(home, monkeypatch):
    server = certificates.load(home.path / "server.crt")
    assert not certificates.needs_renewal(server)
    later = datetime.now(UTC) + timedelta(days=61)
    monkeypatch.setattr(certificates, "_now", lambda: later)
    assert certificates.needs_renewal(server)
    certificates.renew(home.path, "127.0.0.1")
    assert not certificates.needs_renewal(certificates.load(home.path / "server.crt"))


def test_no_certificate_outlives_its_authority(home, monkeypatch):
    end = certificates.load(home.path / "ca.crt").not_valid_after_utc
    monkeypatch.setattr(certificates, "_now", lambda: end - timedelta(days=10))
    certificates.renew(home.path, "127.0.0.1")
    assert certificates.load(home.path / "server.crt").not_valid_after_utc == end
    monkeypatch.setattr(certificates, "_now", lambda: end)
    with pytest.raises(ConfigError, match="new coordinator"):
        certificates.renew(home.path, "127.0.0.1")


def test_enroll_prints_a_token_and_nodes_lists(home, run):
    facts = run("enroll", "clinic")
    assert facts["token"].startswith(f"fp1-{facts['ca'].replace('-', '')}-{home.settings.enrolment_port}-")
    assert facts["address"] == f"127.0.0.1:{home.settings.port}"
    enrol(home, "clinic")
    assert run("nodes")["nodes"]["clinic"]["state"] == "enrolled"
    assert run("revoke", "clinic")["state"] == "revoked"
    assert "was" not in refused("approve", "clinic", "--fingerprint", "x", "--home", str(home.path))


SCENARIO = "[base]\nmodel = 'embedded'\n[federation]\nnodes = 2\nrounds = 3\n[run]\nname = 'first'\n"


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return str(path)


def test_submit_writes_a_run_directory(home, run, scenario):
    enrol(home, "a", "b")
    facts = run("submit", scenario, "--set", "federation.rounds=5")
    folder = home.run("first")
    assert facts["rounds"] == 5 and len(facts["base"]) == 64 and facts["privacy"] == ""
    assert read_status(folder).state == "submitted"
    config = (folder / "config.toml").read_text()
    assert f'sha256 = "{facts["base"]}"' in config and 'backend = "deployment"' in config
    assert json.loads((folder / "data" / "labels.json").read_text()) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert run("submit", scenario, "--name", "second")["run"] == "second"
    assert [path.name for path in home.run_folders()] == ["first", "second"]
    assert run("stop", "first")["asked"] and (folder / "stop").exists()
    assert [view["name"] for view in run("status")["runs"]] == ["first", "second"]


def test_a_run_is_judged_on_records_of_the_coordinators_own(home, run, scenario, tmp_path):
    enrol(home, "a", "b")
    columns = ("--set", "data.prompt=question", "--set", "data.completion=answer")
    rows = [{"question": f"colour {n}?", "answer": "red" if n % 2 else "green"} for n in range(6)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = ("--eval-data", str(tmp_path / "own.jsonl"))
    assert run("submit", scenario, *columns, *judge)["judged"] == 6
    store = RunStore.open(home.run("first"))
    assert [record.completion for record in read_written(store.test, store.config.data)][:2] == [
        "green",
        "red",
    ]
    place = ("--name", "other", "--home", str(home.path))
    assert "question" in refused("submit", scenario, *place, *judge)
    (tmp_path / "labels.json").write_text('["red"]')
    labels = ("--labels", str(tmp_path / "labels.json"))
    assert "1 labels" in refused("submit", scenario, *place, *columns, *judge, *labels)
    (tmp_path / "own.jsonl").write_text("")
    assert "own.jsonl" in refused("submit", scenario, *place, *columns, *judge)
    assert [path.name for path in home.runs.iterdir()] == ["first"]


def test_submit_refuses_what_cannot_run(home, run, scenario):
    place = ("--home", str(home.path))
    assert "0 are enrolled (none)" in refused("submit", scenario, *place)
    enrol(home, "a", "b")
    run("submit", scenario)
    assert "already" in refused("submit", scenario, *place)
    assert "letters, digits" in refused("submit", scenario, "--name", "../x", *place)
    other = (scenario, "--name", "other", *place)
    assert "nearest setting" in refused("submit", *other, "--set", "federation.round=2")
    assert "get the agreed base" in refused("submit", *other, "--set", f"base.sha256='{'0' * 64}'")
    assert "no chat template" in refused("submit", *other, "--set", "data.messages=messages")
    labelled = ("--set", "base.task=sequence-classification")
    assert "needs --labels" in refused("submit", *other, *labelled)
    assert "JSON list" in refused("submit", *other, *labelled, "--labels", str(home.path / "server.json"))
    assert [path.name for path in home.runs.iterdir()] == ["first"]


@pytest.mark.slow
def test_submit_refuses_noise_that_swamps_the_run(home, scenario, monkeypatch):
    enrol(home, "a", "b")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ("privacy.unit=node", "privacy.trust=central", "privacy.epsilon=1.0", "privacy.delta=1e-5")
    settings = [word for pair in words for word in ("--set", pair)]
    settings += ["--set", "exchange.up.error_feedback=false"]
    assert "noise" in refused("submit", scenario, *settings, "--home", str(home.path))
    assert list(home.runs.iterdir()) == []


def test_unknown_runs_are_refused(home):
    with pytest.raises(RunError, match="the runs are: none"):
        home.run("../server")


def test_doctor_finds_all_well(home, run):
    facts = run("doctor")
    assert facts["good"], facts
    texts = {one["what"]: one["text"] for one in facts["findings"]}
    assert texts["service"] == "does not run" and texts["server certificate"] == "90 days left"


def test_doctor_finds_a_taken_port(home, run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.settings.inside_port))
        taken.listen()
        findings = run("doctor", code=1)["findings"]
    wrong = [one["what"] for one in findings if not one["good"]]
    assert wrong == [f"inside_port {home.settings.inside_port} on 127.0.0.1"]


def test_doctor_finds_open_keys_and_foreign_certificates(home, run, tmp_path):
    (home.path / "ca.key").chmod(0o644)
    (tmp_path / "other").mkdir()
    certificates.create(tmp_path / "other", "other", "127.0.0.1")
    (home.path / "server.crt").write_bytes((tmp_path / "other" / "server.crt").read_bytes())
    (home.path / "nodes.json").write_text("[")
    wrong = {one["what"]: one["text"] for one in run("doctor", code=1)["findings"] if not one["good"]}
    assert set(wrong) == {"ca.key", "certificate chain", "nodes"}
    assert "chmod 0600" in wrong["ca.key"]


def test_locks_are_held_once(home):
    assert not is_up(home)
    with take_lock(home.path / "up.lock"):
        assert is_up(home)
    assert not is_up(home)

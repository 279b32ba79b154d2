"""The operators' log: no act without an entry, none changed, nothing done while it cannot be written."""

import json
import time

import pytest
from typer.testing import CliRunner

from fedpeft.cli import build_app
from fedpeft.errors import FedPeftError, RunError
from fedpeft.flower import free_port
from fedpeft.protocol.enrolment import Request, Token
from fedpeft.trust import Signer, new_transport_key
from fedpeft.trust.signed_log import entries_of
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import ServerHome, Settings


@pytest.fixture
def home(tmp_path):
    ports = [free_port() for _ in range(4)]
    return ServerHome.create(tmp_path / "server", Settings("north", "127.0.0.1", "127.0.0.1", *ports))


def server(home, *words, to_json=True):
    words = ["server", *words, "--home", str(home.path), *(["--json"] if to_json else [])]
    return CliRunner().invoke(build_app(), words)


def done(home, *words):
    result = server(home, *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def admit(home, name):
    """Let a node ask with its token, and approve it; its fingerprint."""
    token = done(home, "enroll", name)["token"]
    keys = new_transport_key(), Signer.generate()
    request = Request.make(name, Token.parse(token), *keys, int(time.time()))
    assert Registry(home).check(request, request.issued).state == "waiting"
    done(home, "approve", name, "--fingerprint", request.fingerprint())
    return request.fingerprint()


def test_every_act_of_an_operator_is_written_down_in_order(home, tmp_path):
    fingerprint = admit(home, "bank")
    scenario = tmp_path / "first.toml"
    scenario.write_text('[run]\nname = "first"\n[federation]\nnodes = 1\n')
    facts = done(home, "submit", str(scenario))
    done(home, "stop", "first")
    done(home, "renew")
    done(home, "revoke", "bank")
    entries = done(home, "log", "list")["entries"]
    assert [entry["action"] for entry in entries] == [
        "init", "enroll", "approve", "submit", "stop", "renew", "revoke",
    ]  # fmt: skip
    assert entries[2]["fingerprint"] == entries[6]["fingerprint"] == fingerprint
    assert entries[3]["run"] == facts["run"] and len(entries[3]["config"]) == 64
    assert all(isinstance(entry["uid"], int) for entry in entries)
    assert done(home, "log", "verify")["entries"] == 7
    assert "approve" in server(home, "log", "list", to_json=False).output


def test_no_token_is_in_the_log(home):
    token = done(home, "enroll", "bank")["token"]
    assert token not in home.operator_log.path.read_text()


def test_nothing_is_done_while_the_log_was_cut_and_doctor_says_so(home):
    admit(home, "bank")
    whole = home.operator_log.path.read_bytes()
    home.operator_log.path.write_bytes(b"".join(home.operator_log.read()[:-1]))
    for words in (("revoke", "bank"), ("enroll", "other"), ("renew",)):
        assert isinstance(server(home, *words).exception, RunError)
    assert list(Registry(home).enrolled()) == ["bank"]
    result = server(home, "doctor")
    wrong = [one for one in json.loads(result.output)["findings"] if not one["good"]]
    assert [one["what"] for one in wrong] == ["operator log"] and result.exit_code == 1
    home.operator_log.path.write_bytes(whole)
    assert done(home, "revoke", "bank")["state"] == "revoked"


def test_an_act_that_is_refused_leaves_no_entry(home):
    admit(home, "bank")
    before = len(home.operator_log.read())
    for words in (
        ("approve", "bank", "--fingerprint", "0000"),
        ("revoke", "nobody"),
        ("enroll", "bank"),
        ("stop", "no-run"),
    ):
        assert isinstance(server(home, *words).exception, FedPeftError)
    assert len(home.operator_log.read()) == before


def test_a_full_disk_leaves_the_node_as_it_was(home, monkeypatch):
    admit(home, "bank")

    def full(*_):
        raise OSError(28, "full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        Registry(home).revoke("bank")
    monkeypatch.undo()
    assert list(Registry(home).enrolled()) == ["bank"]


def test_an_export_is_checked_elsewhere_with_the_public_key_alone(home, tmp_path):
    admit(home, "bank")
    out = tmp_path / "operators.jsonl"
    key = done(home, "log", "export", "-o", str(out))["key"]
    assert done(home, "log", "verify", str(out), "--key", key)["entries"] == 3
    lines = out.read_bytes().replace(b'"approve"', b'"revoked"')
    out.write_bytes(lines)
    assert isinstance(server(home, "log", "verify", str(out), "--key", key).exception, RunError)
    assert entries_of(home.operator_log.read())[0]["action"] == "init"

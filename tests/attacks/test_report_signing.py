"""Signed reports: any changed byte, key or file is refused; the command signs, verifies and redacts."""

import json
from hashlib import sha256

import pytest

from fedpeft.errors import AuditError, ExchangeError
from fedpeft.trust import Signer
from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.report.assemble import Delivery
from fedpeft_attacks.report.signing import FILES, sign_report, signature_of, signer_in, verify_report
from fedpeft_attacks.results.findings import Report

# typer asks click for names that click deprecates, when it is first imported
pytestmark = pytest.mark.filterwarnings("ignore:'click.utils.get:DeprecationWarning")

LORA = {"aggregation": "naive", "rank": 8}


@pytest.fixture
def signed(tmp_path):
    """A folder with three files and a signature over them; the signer."""
    for name in FILES:
        (tmp_path / name).write_bytes(b"content of " + name.encode())
    signer = Signer.from_seed(b"hospital")
    sign_report(tmp_path, signer)
    return tmp_path, signer


def test_what_was_signed_verifies(signed):
    folder, signer = signed
    assert verify_report(folder) == signer.public.hex()
    assert verify_report(folder, signer.public.hex().upper()) == signer.public.hex()


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(signed, name):
    folder, _ = signed
    data = bytearray((folder / name).read_bytes())
    data[3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(AuditError, match=f"{name} is not the file that was signed"):
        verify_report(folder)


def _change(folder, change):
    signed = json.loads((folder / "report.sig").read_text())
    change(signed)
    (folder / "report.sig").write_text(json.dumps(signed))


def test_a_forged_signature_is_refused(signed):
    folder, signer = signed
    other = Signer.from_seed(b"forger").public.hex()
    (folder / "report.html").write_bytes(b"better news")
    forged = sha256(b"better news").hexdigest()
    _change(folder, lambda facts: facts["files"].update({"report.html": forged}))
    with pytest.raises(AuditError, match="is no signature by"):
        verify_report(folder)
    sign_report(folder, Signer.from_seed(b"forger"))
    assert verify_report(folder) == other
    with pytest.raises(AuditError, match=f"signed by {other}, not by {signer.public.hex()}"):
        verify_report(folder, signer.public.hex())


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("key"),
        lambda facts: facts.update(key="00"),
        lambda facts: facts.update(key=["a"]),
        lambda facts: facts.update(signature="zz"),
        lambda facts: facts.update(signature=facts["signature"][:-2]),
        lambda facts: facts.update(files=None),
        lambda facts: facts.update(key=facts["key"].upper()),
    ],
)
def test_a_damaged_signature_file_is_refused(signed, change):
    folder, _ = signed
    _change(folder, change)
    with pytest.raises(AuditError, match="is damaged"):
        verify_report(folder)


def test_a_missing_file_is_said(signed):
    folder, _ = signed
    (folder / "report.sig").rename(folder / "kept")
    with pytest.raises(AuditError, match="is not signed"):
        verify_report(folder)
    (folder / "kept").rename(folder / "report.sig")
    (folder / "model-card.md").unlink()
    with pytest.raises(AuditError, match="is missing"):
        verify_report(folder)


def test_keys_of_nodes_and_coordinators_are_found_and_none_is_made(tmp_path):
    with pytest.raises(AuditError, match="holds no key to sign with"):
        signer_in(tmp_path)
    assert not list(tmp_path.iterdir())
    coordinator = Signer.load_or_create(tmp_path / "coordinator.key")
    assert signer_in(tmp_path).public == coordinator.public
    node = Signer.load_or_create(tmp_path / "signing.key")
    assert signature_of(tmp_path).key == node.public.hex()
    assert signature_of(tmp_path).signer == tmp_path.name
    (tmp_path / "signing.key").write_bytes(b"short")
    with pytest.raises(ExchangeError, match="32 bytes"):
        signer_in(tmp_path)


def test_the_command_signs_and_verifies(make_run, command, tmp_path):
    run, home = make_run(LORA, batch=1), tmp_path / "hospital"
    key = Signer.load_or_create(home / "signing.key").public.hex()
    answer = command(run, "--attacks", "span", "--sign-with", home, "--json")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["signature"] == {
        "algorithm": "Ed25519",
        "signer": "hospital",
        "key": key,
        "file": "report.sig",
    }
    assert key in (run / "audit" / "report.html").read_text()
    assert f"signed by {key}" in command("--verify", run / "audit").stdout
    assert json.loads(command("--verify", run / "audit", "--key", key, "--json").stdout)["signed_by"] == key
    with (run / "audit" / "report.json").open("ab") as file:
        file.write(b" ")
    assert isinstance(command("--verify", run / "audit").exception, AuditError)
    assert "not signed" in command(run, "--attacks", "span").stdout
    assert not (run / "audit" / "report.sig").exists()
    wrong = command(run, "--sign-with", tmp_path / "nobody")
    assert isinstance(wrong.exception, AuditError)


def test_only_the_own_copy_holds_text(make_run, sentences, tmp_path):
    run = make_run(LORA, batch=1)
    own = audit(run, ["sparse-recovery"], tmp_path / "own", delivery=Delivery(own_copy=True))
    rows = [" ".join(f"w{token}" for token in sentences(1, seed)[0][1:-1]) for seed in (5000, 5001)]
    assert [example.stage for example in own.examples][:3] == ["gradient", "ternarise", "envelope"]
    assert own.examples[0].truth in rows
    assert own.examples[0].recovered == own.examples[0].truth  # a raw gradient of one record gives it all
    assert "□" in own.examples[1].recovered
    page = (tmp_path / "own" / "report.html").read_text()
    assert own.examples[0].truth in page
    assert "keep it inside the organisation" in page
    assert "w" + str(sentences(1, 5000)[0][1]) not in (tmp_path / "own" / "model-card.md").read_text()
    with pytest.raises(ValueError, match="own copy"):
        Report.model_validate(own.model_dump() | {"own_copy": False})

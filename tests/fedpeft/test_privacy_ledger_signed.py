"""Signatures, roll-backs and exports: what an outsider with a public key can and cannot be told."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger import Head, Ledger
from fedpeft.privacy.ledger.chain import Chain, Entry, message
from fedpeft.privacy.ledger.exports import export_text, load_chain
from fedpeft.privacy.ledger.store import insert, rows, session, transaction
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.trust import Signer

PLAN = PrivacyPlan(0.1, 1.0, 1.0, 8, 5, 4, 1e-5)
OWN, FOREIGN = Signer.from_seed(b"own"), Signer.from_seed(b"foreign")


@pytest.fixture
def ledger(tmp_path):
    """Entries: 1 key, then three rounds, each reserved, started and released."""
    ledger = Ledger(tmp_path / "ledger.sqlite", None, OWN)
    for round in (1, 2, 3):
        reservation = ledger.reserve("patients", "run", round, PLAN, 5)
        ledger.started(reservation)
        ledger.released(reservation, f"{round:064x}")
    return ledger


def raw(path, *statements):
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER IF EXISTS no_update")
        db.execute("DROP TRIGGER IF EXISTS no_delete")
        for statement in statements:
            db.execute(*statement) if isinstance(statement, tuple) else db.execute(statement)
    db.close()


def files(ledger):
    return [path for path in ledger.path.parent.iterdir() if path.name.startswith(ledger.path.name)]


def test_every_entry_is_signed_and_the_first_names_the_key(ledger):
    first, *others = ledger.entries()
    assert (first.kind, first.body["public"]) == ("key", OWN.public.hex())
    assert len(others) == 9 and all(len(entry.signature) == 64 for entry in [first, *others])
    assert Ledger(ledger.path).verify(key=OWN.public).seq == 10
    assert Ledger(ledger.path).spent("patients") == ledger.spent("patients") > 0


def test_the_signature_is_over_the_hash_under_its_own_name(ledger):
    from fedpeft.trust import Verifier

    entry = ledger.entries()[3]
    verifier = Verifier(OWN.public)
    assert verifier.verify(entry.signature, message(entry.hash))
    assert not verifier.verify(entry.signature, bytes.fromhex(entry.hash))


@pytest.mark.parametrize(
    ("attack", "cause"),
    [
        ("UPDATE entries SET signature = NULL WHERE seq = 4", "at entry 4: its signature is missing"),
        ("UPDATE entries SET signature = NULL", "at entry 1: its signature is missing"),
        ("UPDATE entries SET signature = zeroblob(64) WHERE seq = 10", "entry 10: its signature"),
        ("UPDATE entries SET signature = x'00' WHERE seq = 3", "entry 3: its signature"),
        (
            "UPDATE entries SET signature = (SELECT signature FROM entries WHERE seq = 5) WHERE seq = 4",
            "entry 4: its signature",
        ),
        ("UPDATE entries SET body = replace(body, '\"steps\": 5', '\"steps\": 1') WHERE seq = 5", "entry 5"),
        ("DELETE FROM entries WHERE seq = 1", "entry 2"),
        ("UPDATE entries SET seq = 99 - seq WHERE seq IN (6, 7)", "changed at entry"),
    ],
)
def test_changed_dropped_and_swapped_signatures_are_damage(ledger, attack, cause):
    raw(ledger.path, attack)
    for held in (ledger, Ledger(ledger.path), Ledger(ledger.path, None, OWN)):
        with pytest.raises(PrivacyError, match=cause):
            held.verify()
    with pytest.raises(PrivacyError, match="ledger was changed"):
        Ledger(ledger.path, None, OWN).reserve("patients", "run", 4, PLAN, 5)


def forged(ledger, signer, start):
    """The ledger from an entry on written anew by somebody with the file and another key."""
    with session(ledger.path) as db:
        old = rows(db)
    chain = Chain().extended(old[: start - 1])
    new = []
    for row in old[start - 1 :]:
        body = json.loads(row.body)
        if body["kind"] == "key":
            body["public"] = signer.public.hex() if signer else body["public"]
            body["kind"] = "key" if signer else "note"
        written = chain.next_row(body | {"time": 1.0}, signer)
        new.append(written)
        entry = Entry(row.seq, body, written.hash, written.signature)
        chain = Chain((*chain.rows, written), (*chain.entries, entry))
    raw(ledger.path, f"DELETE FROM entries WHERE seq >= {start}")
    with session(ledger.path) as db, transaction(db):
        for row in new:
            insert(db, row)


@pytest.mark.parametrize("signer", [FOREIGN, None], ids=["foreign key", "no key"])
def test_entries_written_anew_with_another_key_are_damage(ledger, signer):
    forged(Ledger(ledger.path), signer, 5)
    with pytest.raises(PrivacyError, match="changed at entry 5: its signature is missing or not by"):
        Ledger(ledger.path).verify()


@pytest.mark.parametrize("signer", [FOREIGN, None], ids=["foreign key", "no key"])
def test_a_ledger_written_anew_from_the_start_does_not_carry_the_own_key(ledger, signer):
    known = ledger.head()
    forged(Ledger(ledger.path), signer, 1)
    fresh = Ledger(ledger.path)
    with pytest.raises(PrivacyError, match="expected key"):
        fresh.verify(key=OWN.public)
    with pytest.raises(PrivacyError, match="rolled back or replaced"):
        fresh.verify(known)


def test_an_unsigned_entry_after_a_signed_one_is_damage(ledger):
    with session(ledger.path) as db:
        row = Chain().extended(rows(db)).next_row({"kind": "released", "reservation": 2}, None)
    raw(ledger.path, ("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row))
    with pytest.raises(PrivacyError, match="changed at entry 11: its signature is missing"):
        ledger.verify()


def test_nobody_writes_into_a_signed_ledger_without_its_key(ledger):
    for signer in (None, FOREIGN):
        stranger = Ledger(ledger.path, None, signer)
        assert stranger.spent("patients") > 0
        with pytest.raises(PrivacyError, match=f"signed by key {OWN.public.hex()}"):
            stranger.reserve("patients", "run", 4, PLAN, 5)
    assert ledger.verify(key=OWN.public).seq == 10


def test_a_second_key_and_a_signature_without_a_key_are_damage(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite", None, OWN)
    ledger.reserve("patients", "run", 1, PLAN, 5)
    with session(ledger.path) as db, transaction(db):
        insert(db, ledger.chain().next_row({"kind": "key", "public": FOREIGN.public.hex()}, FOREIGN))
    with pytest.raises(PrivacyError, match="names a second key"):
        Ledger(ledger.path).verify()
    other = Ledger(tmp_path / "other.sqlite")
    with session(other.path) as db, transaction(db):
        insert(db, Chain().next_row({"kind": "released", "reservation": 1}, OWN))
    with pytest.raises(PrivacyError, match="no entry names the key"):
        other.verify()


def test_an_unsigned_ledger_stays_valid_and_can_be_signed_from_now_on(tmp_path):
    plain = Ledger(tmp_path / "ledger.sqlite")
    plain.reserve("patients", "run", 1, PLAN, 5)
    assert plain.verify().seq == 1
    with pytest.raises(PrivacyError, match="not signed, expected key"):
        plain.verify(key=OWN.public)
    signed = Ledger(plain.path, None, OWN)
    assert signed.reserve("patients", "run", 2, PLAN, 5).head.seq == 3
    assert [entry.signature is None for entry in signed.entries()] == [True, False, False]
    assert signed.verify(key=OWN.public).seq == 3
    with pytest.raises(PrivacyError, match="signed by key"):
        plain.reserve("patients", "run", 3, PLAN, 5)


def test_a_snapshot_that_is_put_back_is_noticed(ledger, tmp_path):
    held = sqlite3.connect(ledger.path)  # keeps the write-ahead log, as a running node does
    held.execute("SELECT count(*) FROM entries").fetchone()
    ledger.reserve("patients", "run", 4, PLAN, 5)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    assert len(files(ledger)) == 3
    for file in files(ledger):
        shutil.copy(file, snapshot)
    known = ledger.reserve("patients", "run", 5, PLAN, 5).head
    held.close()
    for file in files(ledger):
        file.unlink()
    for file in snapshot.iterdir():
        shutil.copy(file, tmp_path)
    fresh = Ledger(ledger.path, None, OWN)
    assert fresh.verify(Head(11, fresh.entries()[10].hash)).seq == 11
    for held_by in (ledger, fresh):
        with pytest.raises(PrivacyError, match="entry 12: it was rolled back"):
            held_by.verify(known)
    with pytest.raises(PrivacyError, match="rolled back"):
        ledger.reserve("patients", "run", 6, PLAN, 5)


def test_a_branch_from_a_snapshot_is_noticed_by_its_hash(ledger, tmp_path):
    shutil.copy(ledger.path, tmp_path / "copy.sqlite")
    known = ledger.reserve("patients", "run", 4, PLAN, 5).head
    branch = Ledger(tmp_path / "copy.sqlite", None, OWN)
    assert branch.reserve("staff", "run", 4, PLAN, 5).head.seq == known.seq
    with pytest.raises(PrivacyError, match="rolled back or replaced"):
        branch.verify(known, OWN.public)


def test_an_export_is_verified_on_another_machine_with_the_public_key_alone(ledger, tmp_path):
    file = tmp_path / "elsewhere" / "export.jsonl"
    file.parent.mkdir()
    file.write_text(export_text(ledger.chain()), encoding="utf-8")
    assert file.read_text().count("\n") == 11
    head = ledger.head()
    script = (
        "import sys; from pathlib import Path; from fedpeft.privacy.ledger.exports import load_chain; "
        "print(load_chain(Path(sys.argv[1])).require(None, bytes.fromhex(sys.argv[2])).hash)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, file, OWN.public.hex()], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == head.hash
    assert load_chain(file).rows == load_chain(ledger.path).rows


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda lines: lines[:-1], "torn or changed"),
        (lambda lines: [lines[0], *lines[2:]], "changed at entry 2"),
        (
            lambda lines: [line.replace('\\"steps\\": 5', '\\"steps\\": 1') for line in lines],
            "changed at entry 2",
        ),
        (
            lambda lines: [line.replace(OWN.public.hex(), FOREIGN.public.hex()) for line in lines],
            "changed at",
        ),
        (
            lambda lines: [lines[0].replace(OWN.public.hex(), FOREIGN.public.hex()), *lines[1:]],
            "torn or changed",
        ),
        (lambda lines: [lines[0].replace('ledger": 2', 'ledger": 3'), *lines[1:]], "format 3"),
        (lambda lines: lines[1:], "neither a ledger nor its export"),
        (lambda lines: [*lines, "{}"], "neither a ledger nor its export"),
        (
            lambda lines: [lines[0], lines[1].replace('"seq": 1', '"seq": "1"')],
            "neither a ledger nor its export",
        ),
        (lambda lines: [lines[0], lines[1][:50]], "neither a ledger nor its export"),
        (lambda lines: [], "neither a ledger nor its export"),
    ],
)
def test_changed_exports_are_refused(ledger, tmp_path, change, cause):
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(change(export_text(ledger.chain()).splitlines())), encoding="utf-8")
    with pytest.raises(PrivacyError, match=cause):
        load_chain(file)


def test_reading_makes_no_file(tmp_path):
    with pytest.raises(PrivacyError, match="there is no ledger"):
        load_chain(tmp_path / "ledger.sqlite")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for file in files(ledger):
        file.unlink()
    with pytest.raises(PrivacyError, match="cannot be used"):
        ledger.entries()
    assert list(tmp_path.iterdir()) == []

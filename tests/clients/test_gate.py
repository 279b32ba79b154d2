"""Nothing leaves but through the gate: logged before it goes, bare of text, and known to the ledger."""

from __future__ import annotations

import json
import os

import pytest

from fedpeft.errors import RunError
from fedpeft.protocol import (
    HELLO,
    PROTOCOL,
    SECURE,
    TRAIN,
    Hello,
    SecureTask,
    TrainReply,
    pack,
    pack_table,
    run_id,
    unpack,
)
from fedpeft_clients import outbox_log
from fedpeft_clients.gate import OrganisationGate
from fedpeft_clients.outbox_log import Head, OutboxLog


def through(joined, reply_for):
    """What leaves when a made-up reply to an order meets the gate."""
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    asked, honest = joined.say(TRAIN, task)
    return OrganisationGate(joined.post)(asked, reply_for(asked, honest))


def test_an_error_leaves_with_its_code_and_class_alone(joined):
    from fedpeft import flower

    left = through(
        joined, lambda asked, _: flower.error_reply(asked, 2, "ValueError: patient 12 has measles")
    )
    assert (left.error.code, left.error.reason) == (2, "Error")
    assert joined.log()[-1]["reason"] == "Error"
    assert "measles" not in joined.organisation.outbox.read_text()


def test_an_unexpected_error_of_the_app_names_its_class_only(joined):
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    (file,) = [one.file for one in joined.organisation.datasets().values()]
    with open(file, "ab") as records:
        records.write(b'{"q": "secret \xff"}\n')
    left = joined.say(TRAIN, task)[1]
    assert (left.error.code, left.error.reason) == (2, "DataError")
    assert joined.log()[-1]["kind"] == "error"


def test_an_update_that_the_ledger_did_not_release_stays(joined):
    from flwr.app import Message

    def other_bytes(asked, honest):
        facts, envelope = unpack(honest, TrainReply, 10**6)
        return Message(pack(facts, envelope[:-1] + b"x"), reply_to=asked)

    left = through(joined, other_bytes)
    assert (left.error.code, left.error.reason) == (7, "PolicyLedger")


def test_an_update_of_another_round_than_the_ledgers_stays(joined):
    from dataclasses import replace

    from flwr.app import Message

    def other_round(asked, honest):
        facts, envelope = unpack(honest, TrainReply, 10**6)
        return Message(pack(replace(facts, round=2), envelope), reply_to=asked)

    assert through(joined, other_round).error.reason == "PolicyLedger"


def test_a_reply_that_is_not_of_the_protocol_stays(joined):
    from flwr.app import ConfigRecord, Message, RecordDict

    left = through(
        joined, lambda asked, _: Message(RecordDict({"x": ConfigRecord({"y": 1})}), reply_to=asked)
    )
    assert (left.error.code, left.error.reason) == (7, "PolicyForm")


def test_a_phase_of_a_secure_sum_that_was_not_agreed_is_an_error(joined):
    joined.offer(joined.config())
    left = joined.say(SECURE, SecureTask("keys", 1, 1, bytes(32), 2, 5, 0, []), pack_table({}))[1]
    assert left.error.reason == "FederationError"


def test_the_entry_is_on_the_disk_before_the_message_goes(joined, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        joined.say(HELLO, Hello(PROTOCOL, run_id(joined.config()), joined.signer.public))


def test_no_privacy_is_spent_while_the_log_cannot_be_written(joined, monkeypatch):
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    ledger, before = joined.organisation.ledger, len(joined.log())
    spent = ledger.read_bytes() if ledger.exists() else b""

    def full(*_):
        raise OSError(28, "full")

    with monkeypatch.context() as disk:
        disk.setattr(outbox_log, "write_json", full)
        with pytest.raises(OSError):
            joined.say(TRAIN, task)
    assert (ledger.read_bytes() if ledger.exists() else b"") == spent
    assert len(joined.log()) == before
    assert not joined.say(TRAIN, task)[1].has_error()


@pytest.fixture
def log(tmp_path):
    from fedpeft.trust import Signer

    made = OutboxLog(tmp_path / "outbox.jsonl", Signer.from_seed(b"clinic"))
    for number in range(3):
        made.append({"time": 1.5 * number, "kind": "train", "run": "ab", "bytes": number, "to": "x"})
    return made


def check(log):
    return outbox_log.verify(log.read(), log.signer.public, log.head())


def test_an_honest_log_holds(log):
    assert check(log).seq == 3 and log.head() == check(log)
    assert log.path.stat().st_mode & 0o077 == 0


def test_a_head_that_a_full_disk_held_back_catches_up(log, monkeypatch):
    """However often it happens, the log is never more than one entry ahead of its head."""
    real, calls = outbox_log.write_json, []

    def every_second(*arguments):
        calls.append(arguments)
        if len(calls) % 2 == 0:
            raise OSError(28, "full")
        real(*arguments)

    monkeypatch.setattr(outbox_log, "write_json", every_second)
    for _ in range(3):
        with pytest.raises(OSError):
            log.append({"kind": "train"})
    monkeypatch.undo()
    assert log.append({"kind": "train"})["seq"] == 7
    assert check(log).seq == 7


def test_any_flipped_bit_is_found(log):
    """Every bit of the newest entry, and one of each byte of those before."""
    good, head = log.path.read_bytes(), log.head()
    newest = len(good) - len(log.read()[-1])
    for place in range(len(good)):
        for bit in range(8) if place >= newest else [place % 8]:
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            log.path.write_bytes(bytes(bad))
            with pytest.raises(RunError):
                outbox_log.verify(log.read(), log.signer.public, head)


def test_any_flipped_bit_of_the_head_is_found(log):
    facts = json.loads(log.head_file.read_bytes())
    for change in ({"seq": 2}, {"hash": "0" * 64}, {"signature": "00"}, {"seq": 4}):
        log.head_file.write_text(json.dumps(facts | change))
        with pytest.raises(RunError):
            check(log)
    log.head_file.unlink()
    with pytest.raises(RunError):
        check(log)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:1] + lines[2:],
        lambda lines: lines[:-1],
        lambda lines: [],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: lines[:2] + lines[1:],
    ],
)
def test_entries_removed_reordered_repeated_or_cut_are_found(log, change):
    lines = log.read()
    log.path.write_bytes(b"".join(change(lines)))
    with pytest.raises(RunError):
        check(log)
    if change(lines)[-1:] != lines[-1:]:
        with pytest.raises(RunError, match="does not end"):
            log.append({"time": 9.0, "kind": "train"})


def test_an_entry_by_another_key_is_found(log):
    from fedpeft.trust import Signer

    forger = OutboxLog(log.path, Signer.from_seed(b"forger"))
    facts = {"seq": 4, "previous": check(log).hash, "time": 1.0}
    with log.path.open("ab") as file:
        file.write(outbox_log.line_of(outbox_log.sealed(facts, forger.signer)))
    with pytest.raises(RunError, match="entry 4"):
        check(log)


def test_a_torn_last_line_is_healed_as_its_message_never_left(log):
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"seq": 4, "ti')
    assert check(log).seq == 3
    assert log.append({"time": 9.0})["seq"] == 4
    assert log.path.read_bytes().startswith(whole + b"{") and check(log).seq == 4


def test_a_crash_between_entry_and_head_is_healed(log):
    head = log.head_file.read_bytes()
    log.append({"time": 9.0})
    log.head_file.write_bytes(head)
    assert check(log).seq == 4
    assert log.append({"time": 10.0})["seq"] == 5 and check(log).seq == 5


def test_two_processes_share_a_log(log):
    other = OutboxLog(log.path, log.signer)
    assert [one.append({"time": 9.0})["seq"] for one in (other, log, other)] == [4, 5, 6]
    assert check(log).seq == 6


def test_a_line_longer_than_a_block_is_found_again(log):
    log.append({"time": 9.0, "long": "x" * 200_000})
    assert log.append({"time": 9.0})["seq"] == 5 and check(log).seq == 5


def test_an_export_holds_elsewhere_with_the_public_key_alone(log):
    data = outbox_log.export(log, "clinic")
    header, head = outbox_log.verify_export(data, log.signer.public)
    assert header["name"] == "clinic" and head == check(log)


def test_any_changed_byte_of_an_export_is_found(log):
    good = outbox_log.export(log, "clinic")
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        with pytest.raises(RunError):
            outbox_log.verify_export(bytes(bad), log.signer.public)


def test_an_export_that_was_cut_or_is_by_another_key_is_refused(log):
    data = outbox_log.export(log, "clinic")
    for bad in (data[: data.rstrip().rfind(b"\n") + 1], data[:-1], b"", b"{}\n"):
        with pytest.raises(RunError):
            outbox_log.verify_export(bad, log.signer.public)
    with pytest.raises(RunError):
        outbox_log.verify_export(data, bytes(32))


def test_a_log_that_was_put_back_as_a_whole_is_not_seen_without_a_known_head(log):
    old = log.path.read_bytes(), log.head_file.read_bytes()
    log.append({"time": 9.0})
    log.path.write_bytes(old[0])
    log.head_file.write_bytes(old[1])
    assert check(log) == Head(3, log.head().hash)

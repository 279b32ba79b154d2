"""Nothing leaves but through the gate: logged before it goes, bare of text, and known to the ledger."""

from __future__ import annotations

import os

import pytest

from fedpeft.protocol.encoding import pack, pack_table, unpack
from fedpeft.protocol.messages import HELLO, PROTOCOL, SECURE, TRAIN, Hello, SecureTask, TrainReply, run_id
from fedpeft.trust import signed_log
from fedpeft_clients.outbox.gate import OrganisationGate


def through(joined, reply_for):
    """What leaves when a made-up reply to an order meets the gate."""
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    asked, honest = joined.say(TRAIN, task)
    return OrganisationGate(joined.link)(asked, reply_for(asked, honest))


def test_an_error_leaves_with_its_code_and_class_alone(joined):
    from fedpeft import flower

    left = through(
        joined, lambda asked, _: flower.error_reply(asked, 2, "ValueError: patient 12 has measles")
    )
    assert (left.error.code, left.error.reason) == (2, "Error")
    assert joined.log()[-1]["reason"] == "Error"
    assert "measles" not in joined.organisation.outbox.path.read_text()


def test_an_unexpected_error_of_the_app_names_its_class_only(joined, monkeypatch):
    from fedpeft_clients.rounds import local_round

    def broken(*arguments):
        raise KeyError("measles")

    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    monkeypatch.setattr(local_round, "load_examples", broken)
    left = joined.say(TRAIN, task)[1]
    assert (left.error.code, left.error.reason) == (2, "KeyError")
    assert joined.log()[-1]["kind"] == "error"
    assert "measles" not in joined.organisation.outbox.path.read_text()


def test_a_data_file_that_is_gone_is_told_by_its_rule_only(joined):
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    (file,) = [one.file for one in joined.organisation.datasets().values()]
    os.unlink(file)
    left = joined.say(TRAIN, task)[1]
    assert (left.error.code, left.error.reason) == (7, "PolicyData")


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
        disk.setattr(signed_log, "write_json", full)
        with pytest.raises(OSError):
            joined.say(TRAIN, task)
    assert (ledger.read_bytes() if ledger.exists() else b"") == spent
    assert len(joined.log()) == before
    assert not joined.say(TRAIN, task)[1].has_error()

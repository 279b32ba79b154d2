"""The signed log: what its verification finds, and what a crash or a full disk may leave behind."""

import json

import pytest

from fedpeft.errors import RunError
from fedpeft.trust import Signer, signed_log
from fedpeft.trust.signed_log import Head, LogFormat, SignedLog

OUTBOX = LogFormat("outbox")


@pytest.fixture
def log(tmp_path):
    made = SignedLog(tmp_path / "outbox.jsonl", Signer.from_seed(b"clinic"), OUTBOX)
    for number in range(3):
        made.append({"time": 1.5 * number, "kind": "train", "run": "ab", "bytes": number, "to": "x"})
    return made


def check(log):
    return log.verified()[1]


def test_an_honest_log_holds(log):
    assert check(log).seq == 3 and log.head() == check(log)
    assert log.path.stat().st_mode & 0o077 == 0


def test_a_head_that_a_full_disk_held_back_catches_up(log, monkeypatch):
    """However often it happens, the log is never more than one entry ahead of its head."""
    real, calls = signed_log.write_json, []

    def every_second(*arguments):
        calls.append(arguments)
        if len(calls) % 2 == 0:
            raise OSError(28, "full")
        real(*arguments)

    monkeypatch.setattr(signed_log, "write_json", every_second)
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
                OUTBOX.verify(log.read(), log.signer.public, head)


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
    forger = SignedLog(log.path, Signer.from_seed(b"forger"), OUTBOX)
    facts = {"seq": 4, "previous": check(log).hash, "time": 1.0}
    with log.path.open("ab") as file:
        file.write(signed_log.line_of(OUTBOX.sealed(facts, forger.signer)))
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
    other = SignedLog(log.path, log.signer, OUTBOX)
    assert [one.append({"time": 9.0})["seq"] for one in (other, log, other)] == [4, 5, 6]
    assert check(log).seq == 6


def test_a_line_longer_than_a_block_is_found_again(log):
    log.append({"time": 9.0, "long": "x" * 200_000})
    assert log.append({"time": 9.0})["seq"] == 5 and check(log).seq == 5


def test_an_export_holds_elsewhere_with_the_public_key_alone(log):
    data = log.export("clinic")
    header, head = OUTBOX.verify_export(data, log.signer.public)
    assert header["name"] == "clinic" and head == check(log)


def test_any_changed_byte_of_an_export_is_found(log):
    good = log.export("clinic")
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        with pytest.raises(RunError):
            OUTBOX.verify_export(bytes(bad), log.signer.public)


def test_an_export_that_was_cut_or_is_by_another_key_is_refused(log):
    data = log.export("clinic")
    for bad in (data[: data.rstrip().rfind(b"\n") + 1], data[:-1], b"", b"{}\n"):
        with pytest.raises(RunError):
            OUTBOX.verify_export(bad, log.signer.public)
    with pytest.raises(RunError):
        OUTBOX.verify_export(data, bytes(32))


def test_a_log_that_was_put_back_as_a_whole_is_not_seen_without_a_known_head(log):
    old = log.path.read_bytes(), log.head_file.read_bytes()
    log.append({"time": 9.0})
    log.path.write_bytes(old[0])
    log.head_file.write_bytes(old[1])
    assert check(log) == Head(3, log.head().hash)


def test_an_entry_of_one_kind_of_log_is_none_of_another(log):
    """A signature over what left is never one over what an operator did, though the key be the same."""
    with pytest.raises(RunError, match="operator log was changed at entry 1"):
        LogFormat("operator").verify(log.read(), log.signer.public, None, closed=False)
    with pytest.raises(RunError):
        LogFormat("operator").verify_export(log.export("clinic"), log.signer.public)

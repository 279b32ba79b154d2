"""Replies on their way in while a disk is full: none is lost, and none counts before it is whole."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpeft.flower.superlink import node_guard
from fedpeft.flower.superlink.message_parts import Place
from fedpeft.flower.superlink.uploads import DEFAULT_QUOTA, Shelf, Upload, Uploads

NODE, ORDER = 7, "order"


def part(kind, children, body):
    """A part as Flower writes it: its name and its bytes."""
    data = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(data).hexdigest(), data


@pytest.fixture
def parts():
    """The parts of one reply, those without children first."""
    record = part("ConfigRecord", [], b"{}")
    content = part("RecordDict", [record[0]], b"{}")
    return [record, content, part("Message", [content[0]], b"")]


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path / "uploads", DEFAULT_QUOTA, Shelf(lambda order: True, lambda root: True))


@pytest.fixture
def upload(parts):
    (record, _), (content, _), (message, _) = parts
    places = {record: Place(2, ()), content: Place(1, (record,)), message: Place(0, (content,))}
    header = SimpleNamespace(metadata=SimpleNamespace(run_id=1))
    return Upload(NODE, ORDER, header, SimpleNamespace(object_id=message), places, Path())


def full(*_):
    raise OSError(28, "full")


def test_a_part_that_could_not_be_written_may_be_sent_again(uploads, upload, parts, monkeypatch):
    session = uploads.begin(upload)
    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError):
            uploads.put(NODE, session, *parts[0])
    assert [uploads.put(NODE, session, *one) for one in parts] == [None, None, upload]


@pytest.mark.parametrize("fault", [full, lambda *_: False], ids=["raises", "says no"])
def test_a_reply_that_is_half_stored_is_not_answered(uploads, upload, parts, monkeypatch, fault):
    """Else its node would believe that it had delivered, and the round's privacy would be lost."""
    import flwr.common.serde as serde

    monkeypatch.setattr(node_guard, "_check_first", lambda upload: None)
    monkeypatch.setattr(serde, "message_from_proto", lambda header: header)
    state = SimpleNamespace(
        start_session=lambda run: "session",
        store_message_and_object_tree=lambda *_: (True, [name for name, _ in parts]),
        store_object=fault,
    )
    counter = node_guard._Counter.__new__(node_guard._Counter)
    counter._state, counter._uploads = state, uploads

    def deliver():
        session = uploads.begin(upload)
        upload.sizes.clear(), upload.written.clear()
        (whole,) = [found for one in parts if (found := uploads.put(NODE, session, *one))]
        counter._hand_on(whole)

    with pytest.raises((OSError, node_guard.Refused)):
        deliver()
    assert not uploads.answered(NODE, ORDER)
    state.store_object = lambda *_: True
    deliver()
    assert uploads.answered(NODE, ORDER)

"""Which broadcasts a node is sent that missed some."""

import pytest

from fedpeft_server.rounds.broadcast_cache import Broadcasts


@pytest.fixture
def kept(tmp_path):
    broadcasts = Broadcasts(tmp_path, 3)
    for round in range(2, 7):
        broadcasts.put(round, bytes([round]) * 10)
    return broadcasts


@pytest.mark.parametrize(
    ("since", "round", "limit", "sent"),
    [
        (5, 6, 99, [6]),
        (3, 6, 99, [4, 5, 6]),
        (2, 6, 99, [3, 4, 5, 6]),
        (1, 6, 99, None),
        (3, 6, 31, [4, 5, 6]),
        (3, 6, 30, None),
        (1, 2, 99, [2]),
        (6, 7, 99, None),
    ],
)
def test_all_that_was_missed_or_none(kept, since, round, limit, sent):
    expected = sent and [bytes([number]) * 10 for number in sent]
    assert kept.chain(since, round, limit) == expected


def test_a_broadcast_that_is_gone_breaks_the_chain(kept):
    kept.path(5).unlink()
    assert kept.chain(3, 6, 99) is None
    assert kept.chain(5, 6, 99) == [bytes([6]) * 10]


def test_nothing_kept_still_sends_the_newest(tmp_path):
    broadcasts = Broadcasts(tmp_path, 0)
    broadcasts.put(2, b"a")
    broadcasts.put(3, b"b")
    assert broadcasts.chain(2, 3, 9) == [b"b"]
    assert broadcasts.chain(1, 3, 9) is None

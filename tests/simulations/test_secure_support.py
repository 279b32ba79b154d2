"""Secure sums whose support follows the newest broadcast, and nodes that come back without having read it."""

import pytest

from fedpeft.privacy import Ledger
from fedpeft_server.rounds.secure_aggregation import SecureSums

FOLLOWING = {
    "federation": {"nodes": 4, "rounds": 4, "quorum": 2, "deadline": 20.0},
    "exchange": {
        "up": {"density": 1.0, "support": "released"},
        "secure": {"enabled": True, "share": 0.25, "threshold": 0.75},
        "cache_rounds": 0,
    },
}


def rounds_of(prepared):
    return [event for event in prepared.go() if event["event"] == "round"]


def interrupted(prepared, monkeypatch, round):
    """The rounds of a run up to one in which the coordinator dies with all updates in."""
    real = SecureSums.mean

    def dying(self, opened, orders):
        if orders.round == round:
            raise KeyboardInterrupt
        return real(self, opened, orders)

    with monkeypatch.context() as patch:
        patch.setattr(SecureSums, "mean", dying)
        with pytest.raises(KeyboardInterrupt):
            prepared.go()


@pytest.mark.parametrize("asked", [False, True], ids=["left-out", "refuses"])
def test_a_node_without_the_newest_broadcast_adds_nothing_at_other_positions(federation, monkeypatch, asked):
    """The first attempt fixed that the support follows the broadcast; who is sent the whole state lacks it.

    Asked nevertheless, by a coordinator that does not care, the node refuses before it is charged.
    """
    prepared = federation(**FOLLOWING)
    interrupted(prepared, monkeypatch, 1)
    away = prepared.homes.pop(0)
    interrupted(prepared, monkeypatch, 3)
    prepared.homes.insert(0, away)
    ledger = Ledger(away / "ledger.sqlite")
    before = ledger.head()
    if asked:
        monkeypatch.setattr(SecureSums, "_without_the_newest", lambda *_: {})
    third, fourth = rounds_of(prepared)
    assert third["applied"] and third["replies"] == 3
    assert ("PolicySecure" if asked else "has not read") in third["refused"]["org-00"]
    assert fourth["applied"] and fourth["replies"] == 4
    rounds = [entry.body["round"] for entry in ledger.entries()[before.seq :] if entry.kind == "reserve"]
    assert set(rounds) == {4}


def test_a_round_that_too_few_nodes_can_still_answer_is_lost_and_the_next_one_is_not(federation, monkeypatch):
    """Asking it again would wait for ever: terms of a round that nodes were told do not change."""
    prepared = federation(**FOLLOWING)
    interrupted(prepared, monkeypatch, 3)
    lost = dict.fromkeys(("org-02", "org-03"), "it has not read the broadcast")
    monkeypatch.setattr(
        SecureSums, "_without_the_newest", lambda self, orders, _: lost if orders.round == 3 else {}
    )
    third, fourth = rounds_of(prepared)
    assert not third["applied"] and "2 nodes cannot take part" in third["refused"]["org-00"]
    assert fourth["applied"] and fourth["replies"] == 4

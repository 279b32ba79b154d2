"""A hostile node does all that it is there for, and a campaign whose node does not says so."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostile import CHEAP, COSTLY, GOOD, Hostile, ignore_books, noted, order
from replies import NOT_ASKED, TAKEN, Replies, judged

from fedpeft.errors import PrivacyError
from fedpeft.privacy import Budget, Ledger, PrivacyPlan
from fedpeft_clients.governance.organisation import init_organisation
from fedpeft_clients.outbox import ledger_witness
from fedpeft_clients.rounds import ledger_view

PLAN = PrivacyPlan(0.1, 3.0, 1.0, 4, 2, 3, 1e-5)
RUN = Path("run-01")


def asked(round):
    """A message and a context, as far as they are noted."""
    metadata = SimpleNamespace(group_id=str(round))
    return SimpleNamespace(metadata=metadata), SimpleNamespace(run_id=7)


def test_every_kind_has_its_turn_whatever_the_seed(tmp_path):
    for seed in range(3):
        node = Hostile(tmp_path / str(seed), seed, None)
        node.home.mkdir()
        for round in range(len(CHEAP) + 1):
            node._note(*asked(round), node._kind())
        assert Counter(entry["kind"] for entry in noted(node.home)) == Counter([GOOD, *CHEAP])


def test_an_order_stands_until_it_is_obeyed(tmp_path):
    node = Hostile(tmp_path, 0, None)
    given = order(tmp_path, "hang")
    assert node._kind() == node._kind() == "hang" and given.exists()
    node._note(*asked(1), "not sent: PrivacyError")
    assert node._kind() == "hang"
    node._note(*asked(2), "hang")
    assert not given.exists() and node._kind() in (GOOD, *CHEAP)


def test_no_book_of_its_own_stops_a_hostile_node(tmp_path, monkeypatch):
    """It has no gate, so that its outbox log lacks what its ledger released; its budget is spent."""
    for module in (ledger_view, ledger_witness):
        monkeypatch.setattr(module, "require", module.require)
    monkeypatch.setattr(Ledger, "budget", None, raising=False)
    rogue = init_organisation(tmp_path / "rogue", "rogue", "version = 1")
    spent = Ledger(rogue.ledger, None, rogue.signer).reserve("notes", "run", 1, PLAN, 2)
    poor = Budget(spent.epsilon, repeats=0)

    def reserve(round):
        return Ledger(rogue.ledger, poor, rogue.signer).reserve("notes", "run", round, PLAN, 2)

    with pytest.raises(PrivacyError, match="budget"):
        reserve(2)
    with pytest.raises(PrivacyError, match="outbox log"):
        ledger_witness.require(rogue)
    ignore_books()
    rounds = range(2, 3 * PLAN.rounds)
    assert [reserve(round).attempt for round in rounds] == [1] * len(rounds)
    ledger_witness.require(rogue)
    ledger_view.require(Ledger(rogue.ledger), "run", 99, "00")


def event(ledger=(), **refused):
    return {"ledger": dict.fromkeys(ledger), "refused": refused}


def test_what_a_node_did_is_held_against_the_newest_event_of_its_round():
    done = [((RUN, 1), "nan"), ((RUN, 1), GOOD), ((RUN, 2), "huge"), ((RUN, 3), "dies"), ((RUN, 9), "hang")]
    events = {
        (RUN, 1): event(["bank", "rogue"]),
        (RUN, 2): event(["bank"], rogue="its update has norm 2.5e+06, federation.norm_bound is 1000"),
        (RUN, 3): event(["bank"]),
    }
    found = judged(done, events, "rogue")
    assert found.sent == Counter(["nan", GOOD, "huge", "dies", "hang"]) and found.hostile == 4
    refusal = "its update has norm N, federation.norm_bound is N"
    assert found.told == {GOOD: {TAKEN: 1}, "huge": {refusal: 1}, "dies": {NOT_ASKED: 1}}
    assert f"| huge | 1 | {refusal} (1) |" in found.table()


def test_a_kind_that_was_scheduled_is_sent_and_judged_as_it_should_be():
    kinds = (GOOD, *CHEAP, *COSTLY)
    right = {kind: Counter({"refused": 1}) for kind in kinds} | {GOOD: Counter({TAKEN: 1, "refused": 1})}
    right["sign-flip"] = Counter({TAKEN: 1})
    sent = Counter(kinds)
    assert Replies(sent, right).wrong(kinds) == []
    own = Counter({"not sent: PrivacyError": 30}) + sent - Counter(["hang"])
    assert Replies(own, right).wrong(kinds) == ["hang: never sent"]
    assert Replies(own, right).wrong([*CHEAP, GOOD]) == []
    assert Replies(sent, right | {"nan": Counter({TAKEN: 1})}).wrong(kinds) == [
        "nan: taken in, and should not have been"
    ]
    unheard = right | {"dies": Counter({NOT_ASKED: 2}), GOOD: Counter({"PrivacyError": 9})}
    assert Replies(sent, unheard).wrong(kinds) == [
        "good: never taken in",
        "dies: the coordinator wrote nothing down",
    ]

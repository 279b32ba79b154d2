"""Terms bind whoever offered them: what was shown is what was approved, and nothing else is done.

The adversary is a coordinator that the organisation has joined: it swaps terms before or after the operator's
word, floods a node with offers, or wants to know how much others train on the same data.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.protocol.encoding import unpack
from fedpeft.protocol.messages import TRAIN, TrainReply, run_id
from fedpeft.runstore import write_json
from fedpeft.trust import Signer, fingerprint
from fedpeft_clients.cli.status import describe_offers
from fedpeft_clients.governance import run_approval
from fedpeft_clients.governance.run_approval import approve, offers

LABELS = ("green", "red")


def shown(joined):
    """The newest offer as 'fedpeft node runs' shows it."""
    return describe_offers(joined.organisation)[0]


def second(joined):
    """Another coordinator that the same organisation has joined."""
    signer = Signer.from_seed(b"B")
    place = joined.organisation.path / "coordinators" / fingerprint(signer.public)
    facts = json.loads((joined.grant.folder / "grant.json").read_text())
    write_json(place / "grant.json", {**facts, "coordinator": signer.public.hex(), "federation": "west"})
    return replace(joined, grant=joined.organisation.grant(place.name), signer=signer)


def agreed(joined, **sections):
    """A run that was approved as it was shown."""
    config = joined.config(**sections)
    assert joined.offer(config, labels=LABELS) == ("waiting", "")
    approve(joined.organisation, run_id(config).hex(), shown(joined)["hash"])
    assert joined.offer(config, labels=LABELS) == ("agreed", "")
    return config


CHANGES = {
    "threads": {"base": {"threads": 2}},
    "tokens at once": {"run": {"tokens_at_once": 10**5}},
    "engine": {"run": {"engine": "loop"}},
    "deadline": {"federation": {"deadline": 1e9}},
    "backend": {"federation": {"backend": "ray"}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_agreed_on_cannot_be_offered_otherwise(joined, name):
    """These settings are no part of the run's id."""
    joined.policy(approval=True)
    config = agreed(joined)
    before = (joined.organisation.runs / run_id(config).hex() / "node.json").read_bytes()
    other = joined.config(**CHANGES[name])
    assert run_id(other) == run_id(config) and other != config
    assert joined.offer(other, labels=LABELS) == ("refused", "terms")
    assert (joined.organisation.runs / run_id(config).hex() / "node.json").read_bytes() == before
    assert offers(joined.organisation)[0].answer == "agreed"
    assert joined.offer(config, labels=LABELS) == ("agreed", "")
    assert not joined.say(TRAIN, joined.first_task(config))[1].has_error()


@pytest.mark.parametrize("change", [{"labels": ("green",)}, {"labels": ("red", "green")}, {}])
def test_agreed_labels_stay(joined, change):
    joined.policy(approval=True)
    config = agreed(joined)
    assert joined.offer(config, **change) == ("refused", "labels")


def test_terms_that_were_swapped_after_they_were_shown_are_not_approved(joined):
    joined.policy(approval=True)
    config = joined.config()
    joined.offer(config, labels=LABELS)
    read = shown(joined)
    joined.offer(config, labels=("green", "blue"))
    with pytest.raises(ConfigError, match="are not those of --terms"):
        approve(joined.organisation, read["run"][:12], read["hash"])
    assert joined.offer(config, labels=("green", "blue")) == ("waiting", "")
    joined.offer(config, labels=LABELS)
    approve(joined.organisation, read["run"][:12], read["hash"][:32])
    assert joined.offer(config, labels=LABELS) == ("agreed", "")


@pytest.mark.parametrize("named", [None, "", "0" * 64, "short"])
def test_nothing_is_approved_unseen(joined, named):
    """Nor by so few digits that a coordinator could find two terms that share them."""
    joined.policy(approval=True)
    config = joined.config()
    joined.offer(config)
    digits = shown(joined)["hash"][:16] if named == "short" else named
    with pytest.raises(ConfigError, match="are not those of --terms"):
        approve(joined.organisation, run_id(config).hex(), digits)
    assert joined.offer(config) == ("waiting", "")


def test_all_that_binds_is_shown(joined):
    """Labels, template, machine: before the operator's word, with the hash that the word is about."""
    joined.policy(approval=True)
    config = joined.config(
        base={"threads": 3}, data={"template": "Q {prompt} A {completion}"}, run={"tokens_at_once": 4096}
    )
    joined.offer(config, labels=("green", "hiv-positive"))
    words = "\n".join(shown(joined)["terms"])
    for word in (
        "hiv-positive",
        "labels: 2, SHA-256",
        "'Q {prompt} A {completion}'",
        "3 threads",
        "4096 tokens",
    ):
        assert word in words
    assert shown(joined)["hash"] in words and shown(joined)["labels"] == ["green", "hiv-positive"]
    other = dict(zip(("a", "b"), (tuple(map(str, range(n))) for n in (150, 151)), strict=True))
    seen = set()
    for labels in other.values():
        joined.offer(config, labels=labels)
        seen.add("\n".join(line for line in shown(joined)["terms"] if line.startswith("labels")))
    assert len(seen) == 2


@pytest.mark.parametrize("labels", [("green",), ("green", "green"), ()])
def test_classes_are_different_words_and_two_at_least(joined, labels):
    config = joined.config(base={"task": "sequence-classification"})
    assert joined.offer(config, labels=labels) == ("refused", "labels")


@pytest.mark.parametrize(
    ("section", "rule"),
    [({"base": {"threads": 1024}}, "threads"), ({"run": {"tokens_at_once": 10**9}}, "memory")],
)
def test_what_a_run_takes_of_the_machine_is_bounded(joined, section, rule):
    assert joined.offer(joined.config(**section)) == ("refused", rule)


def test_offers_of_one_coordinator_do_not_block_another(joined, monkeypatch):
    monkeypatch.setattr(run_approval, "MOST_OFFERS", 3)
    joined.policy(approval=True)
    b = second(joined)
    answers = [b.offer(b.config(run={"seed": seed})) for seed in range(1, 6)]
    assert answers == [("waiting", "")] * 3 + [("refused", "offers")] * 2
    assert joined.offer(joined.config()) == ("waiting", "")
    assert len(offers(joined.organisation)) == 4


def test_an_offer_of_another_coordinators_run_does_not_take_it(joined):
    """Equal configs have equal run ids; the word is about terms, which their coordinator has signed."""
    joined.policy(approval=True)
    b, config = second(joined), joined.config()
    assert b.offer(config) == joined.offer(config) == ("waiting", "")
    approve(joined.organisation, run_id(config).hex(), shown(joined)["hash"])
    assert b.offer(config) == ("waiting", "")
    assert joined.offer(config) == ("agreed", "")
    assert b.offer(config) == ("refused", "coordinator")
    assert joined.offer(config) == ("agreed", "")


def test_refused_offers_make_room_and_stay_refused(joined, monkeypatch):
    monkeypatch.setattr(run_approval, "MOST_OFFERS", 2)
    joined.policy(approval=True)
    first = joined.config(run={"seed": 1})
    joined.offer(first)
    approve(joined.organisation, run_id(first).hex(), None, refuse=True)
    assert joined.offer(first) == ("refused", "approval")
    for seed in (2, 3):
        assert joined.offer(joined.config(run={"seed": seed})) == ("waiting", "")
    assert len(offers(joined.organisation)) == 2
    assert joined.offer(first) == ("refused", "offers")
    approve(joined.organisation, offers(joined.organisation)[-1].run, None, refuse=True)
    assert joined.offer(joined.config(run={"seed": 2})) == ("refused", "approval")
    assert joined.offer(first) == ("refused", "approval")


def told(joined, seed, rounds=1):
    """Epsilon and ledger number of a run's newest update."""
    config = joined.config(run={"seed": seed}, privacy={"noise_multiplier": 3.0})
    assert joined.offer(config) == ("agreed", "")
    task = joined.first_task(config)
    facts = unpack(joined.say(TRAIN, task)[1], TrainReply, 10**6)[0]
    return facts.epsilon, facts.ledger_entry


def test_one_coordinator_is_not_told_of_another(joined):
    """Neither by epsilon nor by the number of the ledger's entries, though both spend one budget."""
    from fedpeft.privacy import Ledger

    joined.policy(privacy={"lineage_epsilon": 400.0, "yearly_epsilon": 400.0})
    alone = told(joined, 1)
    b = second(joined)
    assert told(b, 2) == alone and told(joined, 3) == alone
    ledger = Ledger(joined.organisation.ledger)
    assert ledger.spent("notes") > 1.3 * alone[0] and ledger.head().seq == 1 + 3 * alone[1]


def test_a_ledger_that_lost_what_its_coordinator_has_seen_is_refused(joined):
    """Numbers count the entries of one run; the hash stands for everything before them."""
    from fedpeft.privacy import Ledger
    from fedpeft_clients.rounds import ledger_view as facts

    told(joined, 1)
    told(second(joined), 2)
    ledger = Ledger(joined.organisation.ledger)
    run = run_id(joined.config(run={"seed": 1}, privacy={"noise_multiplier": 3.0})).hex()
    own = facts.of_run(ledger.entries(), run)
    assert [entry.kind for entry in own] == ["reserve", "started", "released"]
    facts.require(ledger, run, 3, own[-1].hash)
    for number, digest in ((4, own[-1].hash), (2, own[-1].hash), (3, ledger.head().hash)):
        with pytest.raises(PrivacyError, match="rolled back"):
            facts.require(ledger, run, number, digest)

"""A real organisation and the runs that it is offered: what it agrees to, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedpeft.protocol.encoding import unpack
from fedpeft.protocol.messages import HELLO, PROTOCOL, TERMS, TRAIN, Hello, TermsReply, TrainReply, run_id
from fedpeft.trust import Signer
from fedpeft_clients.governance.run_approval import approve, offers


def error_of(reply):
    return reply.error.code, reply.error.reason


def reservations(joined):
    from fedpeft.privacy import Ledger

    return [entry for entry in Ledger(joined.organisation.ledger).entries() if entry.kind == "reserve"]


def test_a_run_goes_from_its_terms_to_an_update(joined):
    from fedpeft.privacy import Ledger

    config = joined.config()
    assert joined.offer(config) == ("agreed", "")
    _, reply = joined.say(TRAIN, joined.first_task(config))
    facts, envelope = unpack(reply, TrainReply, 10**6)
    assert facts.epsilon > 0 and len(envelope) > 100
    entries = joined.log()
    assert [entry["kind"] for entry in entries] == ["terms", "hello", "train"]
    assert entries[-1]["epsilon"] == facts.epsilon and entries[-1]["audit"] in (
        "not detected",
        "not tested",
        "leaks",
    )
    assert entries[-1]["run"] == run_id(config).hex() and entries[-1]["bytes"] == len(envelope)
    assert Ledger(joined.organisation.ledger).spent("notes") > 0
    assert not list((joined.organisation.runs / entries[-1]["run"]).glob("train*"))


def test_a_continued_run_finds_its_home_and_sends_the_same_bytes(joined):
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    first = unpack(joined.say(TRAIN, task)[1], TrainReply, 10**6)
    assert joined.offer(config, flower_run=8) == ("agreed", "")
    assert unpack(joined.say(TRAIN, task, flower_run=8)[1], TrainReply, 10**6) == first
    digests = [entry["sha256"] for entry in joined.log() if entry["kind"] == "train"]
    assert len(digests) == 2 and len(set(digests)) == 1


def test_orders_before_the_terms_are_refused(joined):
    config = joined.config()
    asked = Hello(PROTOCOL, run_id(config), joined.signer.public)
    assert error_of(joined.say(HELLO, asked)[1]) == (7, "PolicyTerms")


def test_a_run_waits_for_its_operator_and_then_goes_on(joined):
    config = joined.config()
    joined.policy(approval=True)
    assert joined.offer(config) == ("waiting", "")
    assert not (joined.organisation.runs / run_id(config).hex() / "node.json").exists()
    approve(joined.organisation, run_id(config).hex()[:6], offers(joined.organisation)[0].digest, "notes")
    assert joined.offer(config) == ("agreed", "")
    assert offers(joined.organisation)[0].answer == "agreed"


def test_an_approval_is_for_these_very_terms(joined):
    config = joined.config()
    joined.policy(approval=True)
    joined.offer(config)
    approve(joined.organisation, run_id(config).hex(), offers(joined.organisation)[0].digest)
    assert joined.offer(config, labels=("other",)) == ("waiting", "")


def test_a_run_that_the_operator_refuses_ends_for_this_node(joined):
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    approve(joined.organisation, run_id(config).hex(), None, refuse=True)
    assert error_of(joined.say(TRAIN, task)[1]) == (7, "PolicyApproval")
    assert joined.offer(config) == ("refused", "approval")
    assert reservations(joined) == []


def test_an_order_is_held_against_the_policy_of_today(joined):
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    joined.policy(training={"rounds": [1, 2]})
    assert error_of(joined.say(TRAIN, task)[1]) == (7, "PolicyRounds")
    joined.organisation.policy.write_text("version = 1\nsurprise = true\n")
    assert error_of(joined.say(TRAIN, task)[1]) == (7, "PolicyPolicy")
    assert reservations(joined) == []


def test_a_smaller_budget_holds_from_the_next_order_on(joined):
    config = joined.config()
    joined.offer(config)
    task = joined.first_task(config)
    joined.policy(privacy={"lineage_epsilon": 0.01})
    assert error_of(joined.say(TRAIN, task)[1]) == (2, "PrivacyError")


def rows(count, first=0):
    return "".join(
        json.dumps({"q": f"what the nurse wrote down {n}", "a": "red"}) + "\n"
        for n in range(first, first + count)
    )


def test_records_that_became_another_lineages_are_refused_with_the_terms_and_before_a_round(joined, tmp_path):
    """The operator edits a file after it was added; two budgets would be spent on the same text."""
    from fedpeft_clients.governance.organisation import DataSet
    from fedpeft_clients.governance.record_overlap import admit

    notes = joined.organisation.datasets()["notes"]
    other = DataSet(str(tmp_path / "other.jsonl"), "other", 20, notes.columns)
    (tmp_path / "other.jsonl").write_text(rows(20))
    admit(joined.organisation, other, 0.1)
    joined.organisation.add("other", other)
    joined.policy(data="notes")
    config, file = joined.config(), tmp_path / "notes.jsonl"
    before = file.read_text()
    file.write_text(rows(20))
    assert joined.offer(config) == ("refused", "data")
    file.write_text(before)
    assert joined.offer(config) == ("agreed", "")
    task = joined.first_task(config)
    file.write_text(rows(10, 10) + rows(10, 100))
    reply = joined.say(TRAIN, task)[1]
    assert error_of(reply) == (7, "PolicyData") and reservations(joined) == []
    file.write_text(before + rows(10, 100))
    unpack(joined.say(TRAIN, task)[1], TrainReply, 10**6)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (
            lambda asked, blob: (replace(asked, coordinator=Signer.from_seed(b"x").public), blob),
            "coordinator",
        ),
        (lambda asked, blob: (asked, blob.replace(b"green", b"graan")), "signature"),
        (lambda asked, blob: (replace(asked, run=bytes(16)), blob), "signature"),
        (lambda asked, blob: (asked, blob[:-1]), "terms"),
        (lambda asked, blob: (replace(asked, protocol=1), blob), "oldcoordinator"),
    ],
)
def test_terms_that_are_not_the_coordinators_are_refused_and_leave_nothing(joined, spoil, rule):
    asked, blob = spoil(*joined.terms(joined.config(), labels=("green", "red")))
    reply, _ = unpack(joined.say(TERMS, asked, blob)[1], TermsReply, 0)
    assert (reply.answer, reply.rule) == ("refused", rule)
    assert not joined.organisation.runs.exists()


def test_signed_terms_with_an_unknown_setting_are_refused(joined):
    from fedpeft.protocol.messages import RunProposal, Terms

    config = joined.config()
    facts = config.model_dump(mode="json") | {"backdoor": {}}
    bare = RunProposal(json.dumps(facts).encode())
    run = run_id(config)
    blob = replace(bare, signature=joined.signer.sign(bare.message(run))).encode()
    reply, _ = unpack(joined.say(TERMS, Terms(PROTOCOL, run, joined.signer.public), blob)[1], TermsReply, 0)
    assert (reply.answer, reply.rule) == ("refused", "terms")


def test_a_run_id_that_is_not_its_configs_is_refused(joined):
    from fedpeft.protocol.messages import RunProposal, Terms

    canonical = json.dumps(joined.config().model_dump(mode="json")).encode()
    bare = RunProposal(canonical)
    blob = replace(bare, signature=joined.signer.sign(bare.message(bytes(16)))).encode()
    asked = Terms(PROTOCOL, bytes(16), joined.signer.public)
    reply, _ = unpack(joined.say(TERMS, asked, blob)[1], TermsReply, 0)
    assert (reply.answer, reply.rule) == ("refused", "terms")


def test_terms_beyond_the_size_limit_are_an_error_without_text(joined):
    asked, _ = joined.terms(joined.config())
    assert error_of(joined.say(TERMS, asked, bytes(2**18 + 1))[1]) == (2, "FederationError")


def test_offers_that_nobody_decides_are_bounded(joined, monkeypatch):
    monkeypatch.setattr("fedpeft_clients.governance.run_approval.MOST_OFFERS", 2)
    joined.policy(approval=True)
    answers = [joined.offer(joined.config(run={"seed": seed})) for seed in range(3)]
    assert answers == [("waiting", ""), ("waiting", ""), ("refused", "offers")]


def test_what_a_coordinator_writes_cannot_move_the_operators_cursor(joined):
    from fedpeft_clients.cli.status import describe_offers

    joined.offer(joined.config(run={"name": "fine\x1b[2Jrun"}))
    words = "".join(describe_offers(joined.organisation)[0]["terms"])
    assert "\x1b" not in words and "fine?[2Jrun" in words and "epsilon" in words


def test_another_coordinator_cannot_take_a_run_over(joined):
    """Equal configs have equal run ids; the run stays with whoever offered it first."""
    from dataclasses import replace as changed

    from fedpeft.runstore import write_json
    from fedpeft.trust import fingerprint

    config = joined.config()
    assert joined.offer(config) == ("agreed", "")
    thief = Signer.from_seed(b"thief")
    facts = json.loads((joined.grant.folder / "grant.json").read_text()) | {"coordinator": thief.public.hex()}
    place = joined.organisation.path / "coordinators" / fingerprint(thief.public)
    write_json(place / "grant.json", facts)
    other = changed(joined, grant=joined.organisation.grant(place.name), signer=thief)
    assert other.offer(config) == ("refused", "coordinator")
    asked = Hello(PROTOCOL, run_id(config), thief.public)
    assert error_of(other.say(HELLO, asked)[1]) == (7, "PolicyTerms")
    assert joined.offer(config) == ("agreed", "")


def test_a_node_that_dies_at_any_write_agrees_and_trains_after_its_restart(joined, monkeypatch):
    """Each file is put in place by one rename; a death at any of them is healed by asking again."""
    import os

    config, real = joined.config(), os.replace
    deaths = 0
    for last in range(100):
        left = [last]

        def dying(source, target, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            answer = joined.offer(config)
            _, reply = joined.say(TRAIN, joined.first_task(config))
            break
        except KeyboardInterrupt:
            deaths += 1
        finally:
            monkeypatch.setattr(os, "replace", real)
    assert deaths >= 5 and answer == ("agreed", "")
    assert unpack(reply, TrainReply, 10**6)[0].round == 1
    log = joined.organisation.outbox
    assert log.verified()[1].seq == len(joined.log())
    digests = [entry["sha256"] for entry in joined.log() if entry["kind"] == "train"]
    assert len(set(digests)) == 1

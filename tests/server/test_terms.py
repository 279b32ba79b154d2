"""Who takes part in a deployed run, and how long it waits for them."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.config import build_config
from fedpeft.errors import FederationError
from fedpeft.protocol.encoding import pack
from fedpeft.protocol.messages import TermsReply, run_id
from fedpeft.trust import Signer, Verifier
from fedpeft_server.rounds import checkpoints
from fedpeft_server.rounds.checkpoints import load_arrays

SECURE = {"secure": {"enabled": True}, "up": {"codec": "ternary", "error_feedback": False}}


def kinds(made, node):
    return [kind for kind, index, _ in made.asked if index == node]


def final(made):
    return load_arrays(made.run / "state" / "final.npz")[0]["values"]


def test_nodes_agree_to_the_signed_terms_before_anything_else_is_said(deploy):
    made = deploy()
    events = made.go()
    assert [event["replies"] for event in events] == [3, 3, 3]
    for node in range(3):
        assert kinds(made, node) == ["terms", "hello", "train", "train", "train"]
    signed, key = made.terms, Verifier(made.setup.signer.public)
    assert key.verify(signed.signature, signed.message(made.setup.run_id))
    assert not key.verify(signed.signature, signed.message(bytes(16)))
    assert signed.roster == {} and signed.labels == ()


def test_the_config_of_the_terms_is_the_one_that_the_run_is_named_after(deploy):
    import json

    made = deploy()
    made.go()
    config = build_config(json.loads(made.terms.config))
    assert config == made.setup.config
    assert run_id(config) == made.setup.run_id


def test_a_simulation_sends_no_terms(deploy):
    made = deploy()
    made.go(deployed=False)
    assert kinds(made, 0) == ["hello", "train", "train", "train"]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("refused:epsilon", "refused by its policy, rule epsilon"),
        (TermsReply("n2", "refused", "a patient's name"), "refused by its policy, rule unnamed"),
        (TermsReply("n1", "agreed", ""), "answers the run's terms under another name than the enrolled one"),
        (TermsReply("n2", "waiting", "hours"), "waits by its policy, rule hours"),
        (TermsReply("n2", "perhaps", ""), "gives an unknown answer to the run's terms"),
        (ValueError("a patient's name"), "cannot answer the run's terms: ValueError"),
    ],
)
def test_a_node_that_does_not_agree_is_not_greeted_and_told_of_with_its_cause(deploy, answer, cause):
    made = deploy(deadline=1.0)
    made.answers[2] = [answer]
    events = made.go()
    assert [event["replies"] for event in events] == [2, 2, 2]
    assert "hello" not in kinds(made, 2)
    (hello,) = made.told("hello")
    assert hello["refused"] == {"n2": cause}
    asked = kinds(made, 2).count("terms")
    assert asked == 1 or cause.startswith(("cannot", "answers", "waits"))


def test_a_node_that_refused_is_not_asked_again_when_it_comes_back_in_the_same_flower_run(deploy):
    made = deploy(rounds=4)
    made.answers[2] = ["refused:hours", "agreed"]

    def watch(event):
        made.offline = {2} if event.get("round") == 1 else set()

    made.watch = watch
    assert [event["replies"] for event in made.go()] == [2] * 4
    assert kinds(made, 2) == ["terms"]


def test_a_node_that_leaves_and_comes_back_is_asked_for_its_state_again(deploy):
    made = deploy(rounds=4)

    def watch(event):
        made.offline = {2} if event.get("round") == 1 else set()

    made.watch = watch
    assert [event["replies"] for event in made.go()] == [3, 2, 3, 3]
    assert kinds(made, 2) == ["terms", "hello", "train", "terms", "hello", "train", "train"]


def test_a_node_that_waits_for_its_operator_is_asked_until_the_operator_approves(deploy):
    made = deploy()
    made.answers[1] = ["waiting", "waiting", "agreed"]
    made.go()
    assert kinds(made, 1)[:4] == ["terms", "terms", "terms", "hello"]
    assert made.told("hello")[0]["nodes"] == ["n0", "n1", "n2"]


def test_a_run_waits_for_its_nodes_until_it_is_stopped_and_tells_each_change_once(deploy):
    made = deploy(deadline=0.2)
    made.answers[0], made.answers[1] = ["refused:rounds"], ["waiting"]
    threading.Timer(1.0, made.stop.set).start()
    with pytest.raises(FederationError, match="the run was stopped"):
        made.go()
    told = made.told("waiting")
    assert told[-1]["missing"] == {
        "n0": "refused by its policy, rule rounds",
        "n1": "waits for its operator to approve the run",
    }
    assert told[-1]["nodes"] == ["n2"]
    assert len(told) == len({str(event["missing"]) for event in told}) <= 3


def test_a_run_that_all_nodes_refuse_waits_for_its_operator(deploy):
    made = deploy(deadline=0.2)
    made.answers = {index: [f"refused:{rule}"] for index, rule in enumerate(("rounds", "epsilon", "base"))}
    threading.Timer(1.0, made.stop.set).start()
    with pytest.raises(FederationError, match="the run was stopped"):
        made.go()
    assert made.told("waiting")[-1]["nodes"] == []


@pytest.mark.parametrize(
    ("name", "key", "cause"),
    [
        ("n0", None, "its key is enrolled under the name 'n2'"),
        ("n2", Signer.from_seed(b"x").public, "its signing key is not the enrolled one"),
    ],
)
def test_a_node_is_who_its_keys_are_enrolled_for(deploy, name, key, cause):
    made = deploy(deadline=0.5)
    own = made.key
    made.name = lambda index: name if index == 2 else f"n{index}"
    made.key = lambda index: key or own(index) if index == 2 else own(index)
    events = made.go()
    assert [event["replies"] for event in events] == [2, 2, 2]
    assert made.told("hello")[0]["refused"] == {"n2": cause}


def test_a_key_that_is_not_enrolled_is_not_spoken_to(deploy):
    made = deploy(deadline=0.5)
    del made.enrolled["n1"]
    assert [event["replies"] for event in made.go()] == [2, 2, 2]
    assert kinds(made, 1) == []


def test_a_revoked_node_is_out_of_the_next_round_and_comes_back_with_the_same_terms_when_admitted(deploy):
    made, kept = deploy(rounds=4), {}

    def watch(event):
        if event["event"] == "round" and event["round"] == 1:
            kept.update(n2=made.enrolled.pop("n2"))
        if event["event"] == "round" and event["round"] == 2:
            made.enrolled.update(kept)

    made.watch = watch
    assert [event["replies"] for event in made.go()] == [3, 2, 3, 3]
    assert made.events[2]["refused"] == {"n2": "not online"}
    assert kinds(made, 2).count("terms") == 2


def test_a_name_that_is_enrolled_anew_has_the_new_key(deploy):
    made = deploy(rounds=2)

    def watch(event):
        if event.get("round") == 1:
            made.enrolled["n2"] = replace(made.enrolled["n2"], signing=bytes(32))

    made.watch = watch
    assert [event["replies"] for event in made.go()] == [3, 2]


def test_nodes_that_are_away_overnight_do_not_end_a_run(deploy):
    made = deploy(rounds=3, deadline=0.3)

    def watch(event):
        if event.get("event") == "round" and event["round"] == 1:
            made.offline = {0, 1, 2}
        if event.get("event") == "waiting" and made.offline:
            threading.Timer(0.7, made.offline.clear).start()

    made.watch = watch
    assert [event["applied"] for event in made.go()] == [True, True, True]
    (waiting,) = [event for event in made.told("waiting") if event["round"] == 1][:1]
    assert set(waiting["missing"].values()) == {"not online"}


def test_a_round_that_nodes_did_not_answer_is_repeated_and_changes_nothing(deploy):
    from flwr.app import Error, Message

    runs = [deploy("whole"), deploy("cut")]
    times = []

    def spoil(round, index, message, facts, blob):
        if round == 2 and index and times.append(index) is None and len(times) < 9:
            return Message(Error(5, "NodeUnavailable"), reply_to=message)
        return runs[0].spoil(round, index, message, facts, blob)

    runs[1].spoil = spoil
    whole, cut = (made.go() for made in runs)
    assert [event["round"] for event in cut] == [1, 2, 3]
    assert [event["replies"] for event in cut] == [3, 3, 3] == [event["replies"] for event in whole]
    assert [kind for kind in runs[1].asked if kind == ("train", 0, 2)] == [("train", 0, 2)] * 5
    np.testing.assert_array_equal(final(runs[1]), final(runs[0]))
    assert runs[1].told("waiting")[0]["missing"] == {"n1": "went offline", "n2": "went offline"}


def test_nodes_that_rest_at_night_do_not_end_a_run(deploy):
    from flwr.app import Message

    from fedpeft import flower

    made, rested = deploy(), []

    def spoil(round, index, message, facts, blob):
        if round == 2 and len(rested) < 15:
            rested.append(index)
            return flower.error_reply(message, flower.REFUSED, "PolicyHours")
        return Message(pack(facts, blob), reply_to=message)

    made.spoil = spoil
    assert [event["applied"] for event in made.go()] == [True] * 3
    assert made.told("waiting")[0]["missing"] == dict.fromkeys(("n0", "n1", "n2"), "PolicyHours")
    assert len(made.told("waiting")) == 1  # the same cause is told once


def test_bad_updates_of_nodes_that_are_there_end_a_deployed_run_with_the_cause(deploy):
    made = deploy(rounds=9)
    made.spoil = lambda *given: 1 / 0
    with pytest.raises(FederationError, match=r"no quorum in 3 consecutive rounds.*ZeroDivisionError"):
        made.go()


def test_a_hostile_node_does_not_end_a_run_while_an_honest_one_is_away(deploy, monkeypatch):
    monkeypatch.setattr("fedpeft_server.rounds.wait_for_nodes.FIRST_SECONDS", 0.02)
    made, tries = deploy(deadline=0.5), []
    honest = made.spoil

    def spoil(round, index, message, facts, blob):
        if index != 1:
            return honest(round, index, message, facts, blob)
        tries.append(round)
        made.offline = {2} if len(tries) < 6 else set()
        raise ValueError

    made.spoil, made.offline = spoil, {2}
    assert [event["replies"] for event in made.go()] == [2, 2, 2]
    assert tries.count(1) >= 6


def test_a_run_goes_on_under_another_flower_run_and_asks_all_again(deploy):
    whole, cut = deploy("whole"), deploy("cut")

    def watch(event):
        if event.get("round") == 2 and event["event"] == "round":
            raise KeyboardInterrupt

    whole.go()
    cut.watch = watch
    with pytest.raises(KeyboardInterrupt):
        cut.go(flower_run=1)
    assert checkpoints.latest(cut.run).round == 1
    cut.watch, cut.asked = (lambda event: None), []
    cut.go(flower_run=2)
    for node in range(3):
        assert kinds(cut, node) == ["terms", "hello", "train", "train"]
    np.testing.assert_array_equal(final(cut), final(whole))


def test_every_round_of_a_deployed_run_is_kept(deploy):
    made = deploy()
    run = made.setup.config.run.model_copy(update={"checkpoint_every": 3})
    made.setup = replace(made.setup, config=made.setup.config.model_copy(update={"run": run}))
    seen = []
    made.watch = lambda event: seen.append(getattr(checkpoints.latest(made.run), "round", 0))
    made.go()
    assert seen == [0, 0, 1, 2, 3]


def test_the_roster_of_a_secure_sum_goes_with_the_terms_and_never_grows(deploy):
    made = deploy(deadline=0.3, exchange=SECURE)
    late = made.enrolled.pop("n2")

    def watch(event):
        if event["event"] == "waiting" and "n2" not in made.enrolled:
            assert set(event["missing"].values()) == {"2 of the 3 nodes of the secure sum are enrolled"}
            assert made.asked == []
            made.enrolled["n2"] = late
        if event["event"] == "hello":
            made.enrolled["n9"] = replace(late, name="n9", transport=b"ecdsa-sha2-nistp256 KEY9")
            made.stop.set()

    made.watch = watch
    with pytest.raises(FederationError, match="stopped"):
        made.go()
    assert made.terms.roster == {name: who.signing for name, who in made.enrolled.items() if name != "n9"}
    made.stop, made.watch = threading.Event(), lambda event: event["event"] == "hello" and made.stop.set()
    with pytest.raises(FederationError, match="stopped"):
        made.go(flower_run=2)
    assert "n9" not in made.terms.roster

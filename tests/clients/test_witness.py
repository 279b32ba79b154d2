"""A ledger that was deleted or put back renews no budget: the outbox log and the runs remember it."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.privacy import Ledger, PrivacyPlan
from fedpeft.protocol.encoding import unpack
from fedpeft.protocol.messages import TRAIN, TrainReply, TrainTask
from fedpeft_clients.cli.doctor import examine
from fedpeft_clients.outbox import ledger_witness
from fedpeft_clients.process_cache import PROCESS

PLAN = PrivacyPlan(0.1, 3.0, 1.0, 4, 2, 3, 1e-5)
BUDGET = {"lineage_epsilon": 9.0, "yearly_epsilon": 9.0, "max_epsilon": 20.0}


class Node:
    """An organisation that takes one round of a new run at a time."""

    def __init__(self, joined):
        self.joined, self.organisation = joined, joined.organisation
        joined.policy(privacy=BUDGET)

    def run(self, seed, noise=3.0):
        """Epsilon that a round of a run came to, or why there was none."""
        config = self.joined.config(run={"seed": seed}, privacy={"noise_multiplier": noise})
        said = self.joined.offer(config)
        if said != ("agreed", ""):
            return said[1]
        reply = self.joined.say(TRAIN, self.joined.first_task(config))[1]
        return reply.error.reason if reply.has_error() else unpack(reply, TrainReply, 10**6)[0].epsilon

    def spend_all(self):
        """One run; the budget bears no other of its kind."""
        assert isinstance(self.run(1, 0.8), float) and self.run(2, 0.8) == "budget"
        return self.spent()

    def spent(self):
        return Ledger(self.organisation.ledger).spent("notes", 1e-5)

    def files(self):
        return list(self.organisation.path.glob("ledger.sqlite*"))

    def restart(self):
        """As a new process: nothing is remembered but files."""
        PROCESS.clear()

    def delete(self):
        for file in self.files():
            file.unlink()
        self.restart()

    def wrong(self):
        """What doctor finds wrong with ledger and log; nobody answers at the coordinator's address here."""
        found = [one for one in examine(self.organisation) if one["state"] == "wrong"]
        return [one["words"] for one in found if one["check"] in ("ledger", "outbox")]


@pytest.fixture
def node(joined):
    return Node(joined)


def test_a_deleted_ledger_renews_no_budget(node):
    spent = node.spend_all()
    node.delete()
    assert [node.run(seed, 0.8) for seed in (50, 51)] == ["ledger", "ledger"]
    assert any("lists entry" in words and "ledger declare" in words for words in node.wrong())
    assert not node.organisation.ledger.exists() or not Ledger(node.organisation.ledger).entries()
    found = ledger_witness.declare(node.organisation, "the disk died", close=False)
    assert found["restored"] >= 1 and found["closed"] == []
    assert node.spent() == pytest.approx(spent) and node.wrong() == []
    assert node.run(52, 0.8) == "budget"


def test_a_ledger_that_was_put_back_renews_no_budget_and_keeps_what_it_holds(node, tmp_path):
    assert isinstance(node.run(1), float)
    for file in node.files():
        shutil.copy(file, tmp_path / file.name)
    assert isinstance(node.run(2), float)
    spent = node.spent()
    node.delete()
    for file in tmp_path.glob("ledger.sqlite*"):
        shutil.copy(file, node.organisation.path / file.name)
    assert node.run(3) == "ledger" and node.wrong()
    assert ledger_witness.declare(node.organisation, "an old copy was all we had", False)["restored"] == 1
    node.restart()
    assert node.spent() == pytest.approx(spent) and node.wrong() == []
    again = node.run(4)
    assert isinstance(again, float) and node.spent() > spent


def test_a_copy_that_was_put_back_and_went_on_is_known_by_its_hashes(node, tmp_path):
    """However long the other branch has become."""
    assert isinstance(node.run(1), float)
    for file in node.files():
        shutil.copy(file, tmp_path / file.name)
    assert isinstance(node.run(2), float)
    length = Ledger(node.organisation.ledger).head().seq
    node.delete()
    for file in tmp_path.glob("ledger.sqlite*"):
        shutil.copy(file, node.organisation.path / file.name)
    branch = Ledger(node.organisation.ledger, None, node.organisation.signer)
    while branch.head().seq <= length + 1:
        branch.reserve("staff", f"run {branch.head().seq}", 1, PLAN, 2)
    assert node.run(3) == "ledger" and node.wrong()


def test_an_agreed_run_takes_no_order_either(node):
    config = node.joined.config()
    node.joined.offer(config)
    task = node.joined.first_task(config)
    assert isinstance(node.run(5), float)
    node.delete()
    left = node.joined.say(TRAIN, task)[1]
    assert left.error.reason == "PrivacyError"
    assert not any(entry.kind == "reserve" for entry in Ledger(node.organisation.ledger).entries())


@pytest.mark.parametrize("files", [("outbox.jsonl",), ("outbox.jsonl", "outbox.head")])
def test_a_deleted_log_is_noticed_too_and_a_new_one_begins_with_the_owners_word(node, files):
    node.run(1)
    for name in files:
        (node.organisation.path / name).unlink()
    with pytest.raises((PrivacyError, Exception), match=r"empty|cut or changed"):
        ledger_witness.require(node.organisation)
    assert node.wrong()
    spent = node.spent()
    ledger_witness.declare(node.organisation, "log and disk are gone", close=False)
    log = node.organisation.outbox
    lines = log.read()
    assert log.format.verify(lines, log.signer.public, log.head()).seq == 1
    assert json.loads(lines[0])["because"] == "log and disk are gone"
    assert node.wrong() == [] and node.spent() == spent
    assert isinstance(node.run(2), float)


def test_ledger_and_log_gone_together_are_remembered_by_the_runs(node):
    node.spend_all()
    node.delete()
    for name in ("outbox.jsonl", "outbox.head"):
        (node.organisation.path / name).unlink()
    assert node.run(50) == "ledger"
    with pytest.raises(PrivacyError, match=r"the cost of run .* is not known"):
        ledger_witness.declare(node.organisation, "all gone", close=False)
    assert ledger_witness.declare(node.organisation, "all gone", close=True)["closed"] == ["notes"]
    assert node.wrong() == [] and node.run(51) == "budget"


def test_runs_that_the_owner_removes_to_save_space_are_missed_by_nobody(node):
    node.run(1)
    shutil.rmtree(node.organisation.runs)
    assert node.wrong() == []
    assert isinstance(node.run(2), float)


def test_nothing_is_declared_without_need_or_reason(node):
    node.run(1)
    head = Ledger(node.organisation.ledger).head()
    with pytest.raises(ConfigError, match="nothing is missing"):
        ledger_witness.declare(node.organisation, "just so", close=True)
    node.delete()
    with pytest.raises(ConfigError, match="say why"):
        ledger_witness.declare(node.organisation, " ", close=True)
    assert head.seq and node.wrong()


def test_a_new_node_and_one_that_never_trained_have_nothing_to_remember(node):
    assert ledger_witness.problems(node.organisation) == []
    node.joined.offer(node.joined.config())
    assert ledger_witness.problems(node.organisation) == []
    assert node.wrong() == []


def test_a_log_that_was_deleted_stays_missing_whatever_is_written_to_the_new_one(node):
    """The node's own answers, of refusal or to terms, are no witness of what left before."""
    config = node.joined.config(run={"seed": 1}, privacy={"noise_multiplier": 3.0})
    assert isinstance(node.run(1), float)
    forget_log(node)
    task = TrainTask(2, 2, config.federation.lr, "none", 0, [], bytes(32), [], time.time() + 600)
    for _ in range(3):
        assert node.joined.say(TRAIN, task)[1].error.reason == "PrivacyError"
        assert node.joined.offer(config) == ("refused", "ledger") and node.wrong()
    assert node.run(2) == "ledger" and len(node.joined.log()) > 6
    ledger_witness.declare(node.organisation, "the log is gone", close=False)
    assert node.wrong() == [] and isinstance(node.run(2), float) and node.wrong() == []
    forget_log(node)
    assert [node.run(3), node.run(4)] == ["ledger", "ledger"], "a loss after the declared one is another"


def test_a_log_that_was_put_back_lacks_rounds_and_one_that_a_crash_cut_off_is_none(node):
    assert isinstance(node.run(1), float)
    run = next(entry["run"] for entry in node.joined.log() if entry["kind"] == "train")
    ledger = Ledger(node.organisation.ledger, None, node.organisation.signer)
    for round, lacking in ((2, False), (2, False), (3, True)):
        reservation = ledger.reserve("notes", run, round, PLAN, 2)
        ledger.started(reservation)
        assert not node.wrong()
        ledger.released(reservation, "ab" * 32)
        assert bool(node.wrong()) == lacking
    assert node.run(2) == "ledger"
    ledger_witness.declare(node.organisation, "an old log was all we had", close=False)
    assert isinstance(node.run(2), float) and not node.wrong()


def forget_log(node):
    for name in ("outbox.jsonl", "outbox.head"):
        (node.organisation.path / name).unlink()
    node.restart()

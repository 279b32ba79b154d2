"""What an approved run may cost an organisation, whoever asks for it and however often."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fedpeft.exchange import Context, DenseFp32, ExchangePlan, Update, seal
from fedpeft.privacy import Ledger
from fedpeft.protocol.messages import COORDINATOR, NO_STATE, TRAIN, TrainTask, run_id, state_digest
from fedpeft_clients.governance.policy_rules import run_epsilon
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.run_home import open_home

VAST = {"lineage_epsilon": 40.0, "yearly_epsilon": 40.0, "max_epsilon": 20.0}


def test_the_epsilon_that_was_approved_is_a_ceiling(joined):
    """Adversary: the coordinator, which asks for round 1 again and again from states of its choice."""
    config = joined.config(privacy={"noise_multiplier": 3.0})
    joined.policy(privacy=VAST)
    assert joined.offer(config) == ("agreed", "")
    joined.first_task(config)
    run = run_id(config)
    layout = NodeContext(open_home(joined.link.folder(run))).attached.layout
    answered = 0
    for number in range(1, 13):
        values = np.full(layout.size, 0.001 * number, np.float32)
        context = Context(run, 1, COORDINATOR, NO_STATE, "down")
        blob = seal(Update(layout, values, 1, 0), ExchangePlan((), DenseFp32()), context, joined.signer)
        digest, until = state_digest(layout, values), time.time() + 600
        task = TrainTask(1, 2, config.federation.lr, "full", 0, [len(blob)], digest, [], until)
        answered += not joined.say(TRAIN, task, blob)[1].has_error()
    assert answered <= config.federation.rounds
    assert Ledger(joined.organisation.ledger).spent("notes", config.privacy.delta) <= run_epsilon(config)


@pytest.mark.parametrize("delta", [1e-14, 1e-11, 2e-5, 1e-3])
def test_a_delta_out_of_bounds_is_refused(joined, delta):
    """Adversary: a coordinator whose tiny delta would price every later run of another's."""
    assert joined.offer(joined.config(privacy={"delta": delta})) == ("refused", "delta")
    assert joined.offer(joined.config(privacy={"delta": 1e-5, "noise_multiplier": 3.0})) == ("agreed", "")


def test_budgets_are_read_at_the_organisations_own_delta(joined):
    config = joined.config(privacy={"noise_multiplier": 3.0, "delta": 1e-5})
    joined.policy(privacy={**VAST, "lineage_epsilon": run_epsilon(config) * 1.01})
    assert joined.offer(config) == ("agreed", "")
    joined.policy(privacy={"budget_delta": 1e-7})
    other = joined.config(run={"seed": 9}, privacy={"noise_multiplier": 3.0, "delta": 1e-5})
    assert joined.offer(other) == ("refused", "budget")
    budget = open_home(joined.link.folder(run_id(config))).budget
    assert (budget.delta, budget.repeats) == (1e-5, 8), "as the policy said when the run was agreed on"


def test_a_promise_per_record_is_refused_on_data_that_are_promised_per_person(joined):
    """The organisation's data set was trained on per person: a run per record would break that for ever."""
    from fedpeft.privacy import PrivacyPlan

    joined.policy(privacy=VAST)
    assert joined.offer(joined.config(privacy={"noise_multiplier": 3.0})) == ("agreed", "")
    person = PrivacyPlan(0.1, 3.0, 1.0, 4, 2, 3, 1e-5, unit="person", records_per_unit=3)
    Ledger(joined.organisation.ledger, None, joined.organisation.signer).reserve("notes", "b", 1, person, 2)
    other = joined.config(run={"seed": 9}, privacy={"noise_multiplier": 3.0})
    assert joined.offer(other) == ("refused", "budget")


def test_a_round_without_privacy_under_a_leapt_clock_empties_nobodys_year(joined):
    """Adversary: a coordinator with a run without accounting, while the clock of the node is a year ahead."""
    from fedpeft.privacy import Budget, PrivacyPlan
    from fedpeft_clients.rounds.node_context import NodeContext

    joined.policy(privacy={**VAST, "units": ["none"]})
    plan = PrivacyPlan(0.1, 3.0, 1.0, 4, 2, 3, 1e-5)
    open_ = {
        "unit": "none",
        "noise_multiplier": None,
        "sampling_probability": None,
        "max_noise_to_signal": 1.0,
    }
    config = joined.config(privacy=open_)
    assert joined.offer(config) == ("agreed", "")
    home = open_home(joined.link.folder(run_id(config)))
    ledger = NodeContext(home).ledger
    assert home.budget is None
    yearly = Ledger(home.ledger, Budget(100.0, 50.0), joined.organisation.signer)
    yearly.started(yearly.reserve("patients", "a", 1, plan, 2))
    head = ledger.head()
    ledger.clock = lambda: time.time() + 366 * 86400.0
    reply = joined.say(TRAIN, joined.first_task(config))[1]
    assert reply.has_error() and ledger.head() == head
    ledger.clock = time.time
    assert not joined.say(TRAIN, joined.first_task(config))[1].has_error()

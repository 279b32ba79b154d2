"""An epsilon without a bound is written as such: never as 0, never as null, never left out of a maximum."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from fedpeft.epsilons import UNBOUNDED, is_epsilon, shown, worst, written
from fedpeft.errors import FederationError
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import TrainReply
from fedpeft.runstore.summary import NodePrivacy, PrivacyFacts


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_what_is_no_finite_number_has_no_bound(value):
    assert written(value) == UNBOUNDED and json.loads(json.dumps(written(value))) == UNBOUNDED
    assert written(0.0) == 0.0 and written(3.5) == 3.5


def test_the_worst_of_some_is_the_one_without_a_bound():
    assert worst([1.0, UNBOUNDED, 3.0, None]) == UNBOUNDED
    assert worst([1.0, 3.0, None]) == 3.0 and worst([0.0]) == 0.0
    assert worst([None, None]) is None and worst([]) is None


def test_people_read_words_and_never_none():
    assert (shown(UNBOUNDED), shown(1.23456, ".3f"), shown(None), shown(0.0)) == (
        UNBOUNDED,
        "1.235",
        "-",
        "0",
    )


def message(epsilon):
    reply = TrainReply(1, 2, 0.0, epsilon, 3, bytes(32))
    return SimpleNamespace(has_error=lambda: False, content=pack(reply))


@pytest.mark.parametrize("epsilon", [0.0, 2.5, UNBOUNDED])
def test_a_reply_carries_it(epsilon):
    assert unpack(message(epsilon), TrainReply, 100)[0].epsilon == epsilon


@pytest.mark.parametrize("epsilon", [math.inf, math.nan, -1.0, "none", 3, ""])
def test_a_reply_with_anything_else_is_refused(epsilon):
    assert not is_epsilon(epsilon)
    with pytest.raises(FederationError, match="'epsilon' of a message is missing or out of range"):
        unpack(message(epsilon), TrainReply, 100)


def test_a_plan_without_a_guarantee_says_so_in_json():
    plan = PrivacyPlan(0.1, 1.0, 1.0, 4, 2, 3, 1e-5, reproducible=True)
    assert json.loads(json.dumps(plan.describe()))["epsilon"] == UNBOUNDED


def test_the_summary_of_a_run_holds_it():
    node = NodePrivacy(
        name="a", sampling_probability=0.1, noise_multiplier=1.0, steps=1, clip=1.0, epsilon=UNBOUNDED
    )
    facts = PrivacyFacts(
        unit="record",
        adjacency="add-or-remove-one",
        trust="local",
        epsilon=worst([node.epsilon, 1.0]),
        delta=1e-5,
        accountant="PLD",
        plan=None,
        nodes=[node],
    )
    held = json.loads(facts.model_dump_json())
    assert held["epsilon"] == held["nodes"][0]["epsilon"] == UNBOUNDED

"""The ways in which updates reach the coordinator differ in what they show and keep, and in nothing else."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedpeft.aggregation.global_state import initial_state
from fedpeft.aggregation.robust import rule_of
from fedpeft.config import build_config
from fedpeft.errors import FederationError
from fedpeft.exchange import Decoded, Layout
from fedpeft.run_plan import RunPlan
from fedpeft.secagg import SecureAggregationError
from fedpeft_server.rounds.update_channel import (
    CentralNoiseChannel,
    PlainChannel,
    SecureSumChannel,
    channel_of,
)

LAYOUT = Layout.of({"w": np.zeros(6)})
DENSE = {"codec": "dense-fp32", "error_feedback": False}
NOISE = {"unit": "node", "trust": "central", "noise_multiplier": 1.5, "clip": 2.0, "max_noise_to_signal": 1e9}
SECURE = {"up": {"error_feedback": False}, "secure": {"enabled": True}}
KINDS = {
    "plain": ({"exchange": {"up": DENSE}}, PlainChannel),
    "secure": ({"exchange": SECURE}, SecureSumChannel),
    "central": ({"exchange": {"up": DENSE}, "privacy": NOISE}, CentralNoiseChannel),
}


def setup_of(tmp_path, kind):
    config = build_config({"federation": {"nodes": 3, "quorum": 2, "robust": "none"}, **KINDS[kind][0]})
    state = initial_state(config, None, LAYOUT, np.zeros(LAYOUT.size, np.float32), rule_of(config))
    plan = RunPlan.from_config(config, LAYOUT.size)
    return SimpleNamespace(config=config, plan=plan, run=tmp_path, run_id=bytes(16), initial=state)


def updates(*values):
    full = (np.full(LAYOUT.size, value, np.float32) for value in values)
    return iter([(f"n{index}", 1.0, Decoded(LAYOUT, vector)) for index, vector in enumerate(full)])


def inbox_of(accepted, secure=None):
    names = {f"n{index}": None for index in range(accepted)}
    return SimpleNamespace(round=1, accepted=names, refused={"n2": "late"}, secure=secure)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_channel_that_its_config_agrees_to(tmp_path, kind):
    channel = channel_of(setup_of(tmp_path, kind), tmp_path)
    assert type(channel) is KINDS[kind][1]
    assert channel.keeps_rounds == (kind != "plain") and channel.steps_always == (kind == "central")
    assert (tmp_path / "ledger.sqlite").exists() == (kind == "central")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_checkpoint_keeps_of_a_channel_brings_it_back(tmp_path, kind):
    channel, later = (channel_of(setup_of(tmp_path, kind), tmp_path) for _ in range(2))
    if kind == "secure":
        channel.sums.exponents = [-3]
    facts = channel.facts()
    later.restore(facts)
    assert later.facts() == facts
    if kind == "secure":
        channel.sums.exponents[0] = 5
        assert facts == {"exponents": [-3]}


def test_without_a_quorum_nothing_is_applied_and_with_one_the_mean_is(tmp_path):
    setup = setup_of(tmp_path, "plain")
    channel, start = PlainChannel(setup), setup.initial
    assert channel.absorb(start, updates(), inbox_of(0), 2) == (start, {})
    assert channel.absorb(start, updates(1.0), inbox_of(1), 2) == (start, {})
    after, measured = channel.absorb(start, updates(1.0, 3.0), inbox_of(2), 2)
    assert measured["applied"] is True
    np.testing.assert_allclose(after.exact - start.exact, 2.0)
    applied, found = channel.progress(False, inbox_of(1), 2, 3)
    assert not applied and found == "1 valid updates in round 1, 2 are needed; n2: late"


def test_a_secure_sum_gives_one_mean_after_all_updates_were_read(tmp_path):
    setup, secure, read = setup_of(tmp_path, "secure"), SimpleNamespace(refused={}), []
    channel = SecureSumChannel(setup, SimpleNamespace(mean=lambda opened, orders: "the mean"))

    def masked():
        for name in ("n0", "n1"):
            read.append(name)
            yield from ()

    inbox = inbox_of(2, secure)
    found = channel.contributions(masked(), None, inbox, 2)
    assert list(found) == [("secure sum", 1.0, "the mean")] and read == ["n0", "n1"]
    assert list(channel.contributions(masked(), None, inbox_of(1, secure), 2)) == []

    def fails(opened, orders):
        raise SecureAggregationError("too few are left")

    channel = SecureSumChannel(setup, SimpleNamespace(mean=fails))
    assert list(channel.contributions(masked(), None, inbox, 2)) == []
    assert inbox.refused["secure sum"] == "too few are left"


def test_a_sum_needs_all_nodes_of_its_roster_before_the_first_round(tmp_path):
    channel = channel_of(setup_of(tmp_path, "secure"), tmp_path)
    with pytest.raises(FederationError, match="start all of them"):
        channel.gathered({"n0": bytes(32)})
    keys = {f"n{index}": bytes([index]) * 32 for index in range(3)}
    channel.gathered(keys)
    assert channel.names({}) == keys


def test_noise_counts_nodes_that_are_online_and_hides_figures_of_updates(tmp_path):
    channel = channel_of(setup_of(tmp_path, "central"), tmp_path)
    assert channel.progress(False, inbox_of(0), 2, 2)[0] and not channel.progress(True, inbox_of(3), 2, 1)[0]
    event = {"codecs": {}, "density": 0.5, "entropy_bits": 3.0, "replies": 2, "refused": {"n2": "late"}}
    assert channel.redacted(event) == {"replies": 2, "refused": {"n2": "late"}}
    assert PlainChannel(channel.setup).redacted(event) == event

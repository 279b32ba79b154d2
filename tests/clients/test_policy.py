"""One test per rule of the policy: the run or order is refused, and the coordinator sees the rule alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from fedpeft.adapters import Traits
from fedpeft.errors import ConfigError
from fedpeft.exchange import DenseFp32
from fedpeft.plugins import ADAPTER_METHODS, CODECS
from fedpeft.protocol.messages import HELLO, PROTOCOL, TRAIN, Hello, run_id
from fedpeft_clients.governance.policy import Policy, old_names, parse_policy, template, window, within_hours
from fedpeft_clients.service.service import allowed_apps

SUM = {"federation": {"nodes": 4}, "exchange": {"secure": {"enabled": True}}}
DISTRIBUTED = {
    "federation": {"nodes": 3},
    "privacy": {"unit": "node", "trust": "distributed", "sampling_probability": None},
    "exchange": {
        "secure": {"enabled": True, "bits": 32},
        "up": {"codec": "ternary", "error_feedback": False},
    },
}

RULES = [
    ("coordinator", {"coordinators": []}, {}),
    ("base", {"bases": {}}, {}),
    ("base", {}, {"base": {"sha256": "0" * 64}}),
    ("base", {}, {"base": {"sha256": None}}),
    ("method", {"adapter": {"methods": ["miss"]}}, {}),
    ("aggregation", {}, {"adapter": {"aggregation": "naive"}}),
    ("experts", {}, {"adapter": {"experts": True}}),
    ("embeddings", {}, {"adapter": {"trainable_tokens": [4]}}),
    (
        "answers",
        {"adapter": {"aggregations": ["frozen_b"]}},
        {"adapter": {"aggregation": "frozen_b", "output_tokens": [4]}},
    ),
    ("rank", {}, {"adapter": {"rank": 9}}),
    ("tokens", {"adapter": {"min_tokens_per_rank": 65.0}}, {}),
    ("layers", {"adapter": {"skipped_layers": [0, 1]}}, {}),
    ("step", {"training": {"max_step_tokens": 127}}, {}),
    ("rounds", {}, {"federation": {"rounds": 101}}),
    ("steps", {}, {"federation": {"local_steps": 51}}),
    ("rate", {}, {"federation": {"lr": 60.0}}),
    ("unit", {}, {"privacy": {"unit": "none", "noise_multiplier": None}}),
    ("trust", {"privacy": {"units": ["record", "node"]}}, DISTRIBUTED),
    ("randomness", {}, {"privacy": {"randomness": "seeded"}}),
    ("epsilon", {"privacy": {"max_epsilon": 0.5}}, {}),
    ("epsilon", {}, {"privacy": {"epsilon": 21.0, "noise_multiplier": None}}),
    ("delta", {}, {"privacy": {"delta": 1e-4}}),
    ("clip", {}, {"privacy": {"clip": 11.0}}),
    ("clip", {}, {"privacy": {"clip": 1e-4}}),
    ("loss", {"privacy": {"max_loss_share": 0.0}}, {"privacy": {"loss_share": 0.1}}),
    ("loss", {"privacy": {"max_loss_share": 0.2}}, {"privacy": {"loss_share": 0.3}}),
    ("cohort", {"cohort": {"min_nodes": 3}}, {}),
    ("quorum", {"cohort": {"min_quorum": 2}}, {"federation": {"quorum": 1}}),
    ("secure", {"cohort": {"secure": True}}, {}),
    ("sum", {"cohort": {"min_summed": 5}}, SUM),
    ("threshold", {"cohort": {"min_threshold": 0.7}}, SUM),
    ("colluders", {"cohort": {"min_colluders": 2}}, SUM),
    ("stock", {}, {"federation": {"stock_nodes": True}}),
    ("codec", {}, {"exchange": {"up": {"codec": "dense-fp32"}}}),
    ("density", {"exchange": {"max_density": 0.4}}, {}),
    ("memory", {"limits": {"memory_gib": 1e-6}}, {}),
    ("budget", {"privacy": {"lineage_epsilon": 0.5}}, {}),
    ("budget", {"privacy": {"yearly_epsilon": 0.5}}, {}),
    ("data", {"data": "absent"}, {}),
    ("data", {}, {"data": {"person": "patient"}}),
    ("data", {}, {"data": {"messages": "chat"}}),
]


@pytest.mark.parametrize(
    ("rule", "policy", "run"), RULES, ids=[f"{one[0]}-{n}" for n, one in enumerate(RULES)]
)
def test_a_run_beyond_a_rule_is_refused_by_its_name_alone(joined, rule, policy, run):
    joined.policy(**policy)
    assert joined.offer(joined.config(**run)) == ("refused", rule)
    (entry,) = joined.log()
    assert entry["facts"] == {"name": "clinic", "answer": "refused", "rule": rule} and entry["bytes"] == 0


class Dense(DenseFp32):
    """A codec that another package adds; it declares nothing of what it sends."""

    wire_id = 200


@pytest.fixture
def plug_in():
    CODECS.register("mine", Dense)
    yield "mine"
    CODECS.forget("mine")


def test_a_codec_that_declares_nothing_sends_every_value_and_is_allowed_only_by_name(joined, plug_in):
    config = joined.config(exchange={"up": {"codec": plug_in, "density": 0.1}})
    assert joined.offer(config) == ("refused", "codec")
    joined.policy(exchange={"codecs": [plug_in], "max_density": 0.4})
    assert joined.offer(config) == ("refused", "density")
    joined.policy(exchange={"codecs": [plug_in], "max_density": 1.0})
    assert joined.offer(config) == ("agreed", "")


def test_a_method_that_does_not_say_that_no_embedding_is_trained_is_refused(joined):
    traits = Traits(linear=True, dp="loop", exports_lora=True)
    ADAPTER_METHODS.register("mine", replace(ADAPTER_METHODS["miss"], name="mine", traits=traits))
    try:
        config = joined.config(adapter={"method": "mine"})
        assert joined.offer(config) == ("refused", "method")
        joined.policy(adapter={"methods": ["mine"]})
        assert joined.offer(config) == ("refused", "method")
    finally:
        ADAPTER_METHODS.forget("mine")


def test_a_head_is_trained_only_where_the_policy_says_so(joined):
    config = joined.config(base={"task": "sequence-classification"}, adapter={"train_head": True})
    assert joined.offer(config, labels=("no", "yes")) == ("refused", "head")
    joined.policy(adapter={"train_head": True})
    assert joined.offer(config, labels=("no", "yes")) == ("agreed", "")


def test_without_a_promise_a_run_is_allowed_only_where_the_policy_says_none(joined):
    config = joined.config(privacy={"unit": "none", "noise_multiplier": None})
    assert joined.offer(config) == ("refused", "unit")
    joined.policy(privacy={"units": ["none"]})
    assert joined.offer(config) == ("agreed", "")


def test_orders_outside_the_hours_are_refused_and_new_runs_wait(joined, monkeypatch):
    config = joined.config()
    assert joined.offer(config) == ("agreed", "")
    task = joined.first_task(config)
    joined.policy(hours=[_closed_now()])
    reply = joined.say(TRAIN, task)[1]
    assert (reply.error.code, reply.error.reason) == (7, "PolicyHours")
    asked = Hello(PROTOCOL, run_id(config), joined.signer.public)
    assert joined.say(HELLO, asked)[1].error.reason == "PolicyHours"
    assert joined.offer(joined.config(run={"seed": 5}), flower_run=9) == ("waiting", "hours")


def _closed_now():
    """A window on the day before yesterday."""
    from fedpeft_clients.governance.policy import DAYS

    return f"{DAYS[(datetime.now().weekday() - 2) % 7]} 10:00-11:00"


def test_apps_are_the_installed_one_or_those_named():
    from fedpeft import flower

    assert allowed_apps(Policy()) == {flower.thin_app()[1]}
    assert allowed_apps(Policy(apps=("a" * 64,))) == {"a" * 64}


@pytest.mark.parametrize(
    ("text", "moment", "open_now"),
    [
        ("mon-fri 20:00-06:00", "2026-11-23 19:59", False),
        ("mon-fri 20:00-06:00", "2026-11-23 20:00", True),
        ("mon-fri 20:00-06:00", "2026-11-23 05:00", False),
        ("mon-fri 20:00-06:00", "2026-11-28 05:59", True),
        ("mon-fri 20:00-06:00", "2026-11-28 06:00", False),
        ("sat 00:00-24:00", "2026-11-28 23:59", True),
        ("sat 00:00-24:00", "2026-11-29 00:00", False),
        ("fri-mon 08:00-09:00", "2026-11-29 08:30", True),
        ("08:00-09:00", "2026-11-25 08:30", True),
    ],
)
def test_windows(text, moment, open_now):
    assert within_hours(Policy(hours=(text,)), datetime.fromisoformat(moment)) is open_now


@pytest.mark.parametrize("text", ["always", "25:00-26:00", "10:00-10:00", "xyz 10:00-11:00", "10:60-11:00"])
def test_what_is_no_window(text):
    with pytest.raises(ValueError):
        window(text)


def test_names_of_the_version_before_work_and_are_told():
    text = "[privacy]\nmost_epsilon = 2.5\n[cohort]\nleast_nodes = 4\nmin_quorum = 3\n"
    policy = parse_policy(text)
    assert (policy.privacy.max_epsilon, policy.cohort.min_nodes, policy.cohort.min_quorum) == (2.5, 4, 3)
    assert old_names(text) == ["privacy.most_epsilon", "cohort.least_nodes"]
    with pytest.raises(ConfigError, match="'privacy' has a setting under its old name and its new one"):
        parse_policy("[privacy]\nmost_epsilon = 2.5\nmax_epsilon = 1.0\n")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("surprise = 1", "surprise"),
        ("[privacy]\nmax_epsilonn = 1.0", "privacy.max_epsilonn"),
        ("[privacy]\nmax_epsilon = -1.0", "privacy.max_epsilon"),
        ("[training]\nrounds = [5, 1]", "training.rounds"),
        ('hours = ["never"]', "hours.0"),
        ('coordinators = ["abc"]', "coordinators"),
        ('apps = "any"', "apps"),
        ('[bases]\nabc = "/x"', "bases"),
    ],
)
def test_a_policy_that_does_not_hold_names_its_setting(text, place):
    with pytest.raises(ConfigError, match=place):
        parse_policy(text)


def test_the_strict_template_is_what_an_empty_policy_means():
    assert parse_policy(template("strict")) == parse_policy("") == Policy()


def test_the_pilot_template_holds_and_allows_runs_without_privacy():
    assert "none" in parse_policy(template("research-pilot")).privacy.units


def test_the_audit_of_the_policy_overrides_the_runs_and_blocks_only_without_privacy(joined):
    from fedpeft_clients.rounds.run_home import open_home

    joined.policy(audit={"mode": "block", "threshold": 0.3}, privacy={"units": ["none", "record"]})
    for unit, wanted in (("record", "report"), ("none", "refuse")):
        noise = 1.0 if unit == "record" else None
        privacy = {"unit": unit, "noise_multiplier": noise}
        config = joined.config(privacy=privacy, audit={"outbox_seconds": 1e-9})
        joined.offer(config)
        home = open_home(joined.organisation.runs / run_id(config).hex())
        assert (home.audit.outbox, home.audit.threshold, home.audit.outbox_seconds) == (wanted, 0.3, 600.0)

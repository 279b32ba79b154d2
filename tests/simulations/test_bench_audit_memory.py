"""The benchmark of memorisation: which runs it compares, and how it sums them up."""

import json
import math

import pytest

from fedpeft.config import load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.privacy import plan_from_config
from fedpeft_attacks.memory import MemoryFinding
from fedpeft_bench.audit import memory
from fedpeft_bench.federation.gain import options


def config_of(arm):
    return load_config(embedded_scenario(), (*options(memory.COMMON), *arm.settings))


def row(arm, seed, value, half=0.5, base=1.4):
    finding = MemoryFinding(
        "canary-exposure",
        "canaries",
        value,
        (value - half, value + half),
        1.42,
        base,
        1.5,
        4,
        5,
        "bits",
        "rank",
    )
    facts = {"arm": arm, "seed": seed, "steps": 24, "batch": 64, "loss": 3.0 + seed, "base_loss": 8.0}
    return {**facts, "findings": {"canaries": finding.__dict__}}


def test_the_arms_that_are_compared_take_equal_steps_of_as_many_records():
    by_name = {arm.name: config_of(arm).federation for arm in memory.variants()}
    equal = [by_name[name] for name in ("no privacy", "no noise", "epsilon 8", "epsilon 2")]
    for key in ("nodes", "rounds", "local_steps", "batch_size", "lr_decay"):
        assert len({getattr(federation, key) for federation in equal}) == 1, key


def test_the_private_arms_claim_what_they_are_called_and_the_others_nothing():
    for arm in memory.variants():
        plan = plan_from_config(config_of(arm))
        epsilon = math.inf if plan is None else plan.epsilon()
        claimed = float(arm.name.split()[1]) if arm.name.startswith("epsilon") else math.inf
        assert epsilon == pytest.approx(claimed, rel=0.02)
        assert epsilon <= claimed


def test_every_arm_plants_canaries_and_none_is_audited_twice():
    for arm in memory.variants():
        config = config_of(arm)
        assert config.audit.canaries >= 12 and not config.audit.enabled and not config.run.baselines


def test_means_are_over_seeds_and_follow_the_untrained_adapter():
    untrained, first, second = memory.means(
        [row("no privacy", 0, 6.0), row("no privacy", 1, 8.0), row("epsilon 8", 0, 1.5)]
    )
    assert untrained["arm"] == memory.UNTRAINED and untrained["loss"] == 8.0
    assert untrained["figures"]["canaries"]["value"] == pytest.approx(1.4)
    figure = first["figures"]["canaries"]
    assert (first["seeds"], first["loss"], figure["value"]) == ([0, 1], 3.5, 7.0)
    assert figure["interval"] == pytest.approx((7 - 1.96, 7 + 1.96))
    assert (figure["count"], figure["others"], figure["held_out"]) == (8, 10, 1.5)
    assert second["figures"]["canaries"]["interval"] == pytest.approx((1.0, 2.0))


def test_a_seed_without_a_figure_is_left_out_of_its_mean():
    rows = [row("no privacy", 0, 6.0), row("no privacy", 1, 8.0)]
    rows[1]["findings"] = {}
    assert memory.means(rows)[1]["figures"]["canaries"]["value"] == 6.0


def test_what_is_found_is_shown(capsys):
    rows = [row(arm.name, 0, 2.0) for arm in memory.variants()]
    facts = {"machine": "a machine", "rows": rows, "means": memory.means(rows)}
    memory.show(facts)
    shown = capsys.readouterr().out
    assert "epsilon 2" in shown and "2.0 [1.5, 2.5]" in shown
    assert json.dumps(facts)


@pytest.mark.slow
def test_an_arm_is_run_and_attacked():
    small = {
        "federation.rounds": 1,
        "federation.local_steps": 2,
        "data.samples": 16,
        "data.test_samples": 32,
        "audit.canaries": 6,
    }
    made = memory.measure(memory.Variant("small", options(small)), 0)
    assert made["steps"] == 2 and made["loss"] < made["base_loss"]
    assert {"canaries", "canaries, greedy", "personal data, sampled", "loss", "reference"} <= set(
        made["findings"]
    )
    (mean,) = memory.means([made])[1:]
    assert mean["arm"] == "small"

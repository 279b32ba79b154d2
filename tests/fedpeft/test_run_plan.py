"""All that follows from a config has one place, and it agrees with the parts that it is made of."""

import pytest

from fedpeft.config import build_config
from fedpeft.errors import PrivacyError
from fedpeft.exchange import noisy_values, plan_from_config, up_plan
from fedpeft.privacy import plan_from_config as privacy_plan
from fedpeft.privacy.noise_to_signal import signal
from fedpeft.run_plan import RunPlan, num_classes, quorum

SIZE = 4096
RECORD = {"unit": "record", "noise_multiplier": 1.0, "sampling_probability": 0.1, "max_noise_to_signal": 1e6}
NODES = {"unit": "node", "noise_multiplier": 1.0, "clip": 0.5, "max_noise_to_signal": 1e6}
SUM = {"enabled": True, "bits": 32, "share": 0.5, "min_nodes": 2}


PLAIN = {"error_feedback": False}


def config(**sections):
    return build_config({"federation": {"nodes": 4}, **sections})


CASES = {
    "no privacy": (config(), None),
    "noise of each node": (config(privacy=RECORD), "local"),
    "noise of the coordinator": (
        config(privacy={**NODES, "trust": "central"}, exchange={"up": PLAIN}),
        "central",
    ),
    "noise in a secure sum": (
        config(privacy={**NODES, "trust": "distributed"}, exchange={"secure": SUM, "up": PLAIN}),
        "distributed",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_plan_is_what_its_parts_say(name):
    settings, trust = CASES[name]
    plan, values = RunPlan.from_config(settings, SIZE), noisy_values(settings.exchange, SIZE)
    assert plan.noisy_values == values and plan.privacy == privacy_plan(settings, values)
    clip = 0.5 if trust == "central" else None
    assert plan.up.digest == up_plan(settings.exchange, trust == "local", clip).digest
    plain = settings.exchange.down.model_copy(update={"error_feedback": False})
    assert plan.down.digest == plan_from_config(plain, private=False).digest
    for other in ("local", "central", "distributed"):
        assert getattr(plan, other) == (plan.privacy if other == trust else None)
    if trust is None:
        assert plan.signal is None and plan.claim == ""
    else:
        assert plan.signal == signal(plan.privacy, values, 4)
        assert f"trust {trust}" in plan.claim
    assert plan.checked() is plan


def test_an_adaptive_clip_is_the_coordinators():
    privacy = {**NODES, "trust": "central", "adaptive_clip": True}
    plan = RunPlan.from_config(config(privacy=privacy, exchange={"up": PLAIN}), SIZE)
    assert "clip" not in [step.name for step in plan.up.transforms]


def test_noise_that_leaves_no_signal_is_refused_when_the_plan_is_checked():
    plan = RunPlan.from_config(
        config(privacy={**RECORD, "noise_multiplier": 50.0, "max_noise_to_signal": 1.0}), SIZE
    )
    with pytest.raises(PrivacyError, match="max_noise_to_signal"):
        plan.checked()


@pytest.mark.parametrize(
    ("nodes", "participation", "asked", "needed"),
    [(3, 1.0, 0, 2), (4, 1.0, 0, 3), (10, 0.5, 0, 3), (10, 0.01, 0, 1), (4, 1.0, 1, 1)],
)
def test_a_quorum_is_a_majority_of_those_asked_unless_it_is_set(nodes, participation, asked, needed):
    federation = {"nodes": nodes, "participation": participation, **({"quorum": asked} if asked else {})}
    settings = config(federation=federation)
    assert quorum(settings.federation) == RunPlan.from_config(settings, SIZE).quorum == needed


def test_a_head_has_one_output_per_label():
    assert num_classes(config().base, ["a", "b"]) is None
    assert num_classes(config(base={"task": "sequence-classification"}).base, ["a", "b"]) == 2

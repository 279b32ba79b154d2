"""The training loss as one more value of the private release: its bound, its noise, its price."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from fedpeft.config import Config, build_config, canonical
from fedpeft.data import collate
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.privacy import Ledger, plan_from_config
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.loss_share import LossShare
from fedpeft.privacy.noise_to_signal import signal
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.training import LocalPlan, train_local
from fedpeft.training.dp import per_example
from fedpeft.training.dp.dpsgd import Mechanism, noisy_gradient, summed
from fedpeft.training.dp.per_example import CLIP_MARGIN, Engine, JointClip, clipped_sum
from fedpeft.training.loss import per_example_loss
from fedpeft.training.modes import steady

LOSS = LossShare(0.3, 6.0)
PLAN = PrivacyPlan(
    sampling_probability=0.5,
    noise_multiplier=1.5,
    clip=0.2,
    expected_batch_size=4,
    steps_per_round=3,
    rounds=2,
    delta=1e-5,
    loss=LOSS,
)
ENGINES = [Engine("batched", ""), Engine("loop", ""), Engine("opacus", "")]
OWNERS = np.array([0, 0, 0, 1, 2, 2, 3])


def losses_of(attached, examples):
    """One example at a time, unpadded, log-softmax written out."""
    found = []
    for example in examples:
        ids = torch.from_numpy(example.ids)[None]
        with torch.no_grad():
            scores = torch.log_softmax(attached.model(input_ids=ids).logits[0].double(), dim=-1)
        weights = example.weights[1:].astype(float)
        terms = [w * -float(scores[t, ids[0, t + 1]]) for t, w in enumerate(weights)]
        found.append(sum(terms) / weights.sum())
    return np.array(found)


def entry(losses, share=LOSS, clip=0.2):
    """What the losses of units add to the sum, written out."""
    capped = np.clip(losses, 0, share.cap)
    return share.share * clip * (2 * capped / share.cap - 1)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("owners", [None, OWNERS], ids=["records", "persons"])
def test_the_last_value_of_the_sum_is_that_of_the_capped_losses(toy, toy_examples, engine, owners):
    attached, examples = toy("llama", "lora"), toy_examples(7)
    places = np.arange(7) if owners is None else owners
    losses = losses_of(attached, examples)
    means = np.array([losses[places == unit].mean() for unit in range(places[-1] + 1)])
    for cap in (6.0, float(np.median(means))):
        share = LossShare(0.3, cap)
        total, _ = clipped_sum(attached, collate(examples, 0), JointClip(0.2, share), owners, None, engine)
        plain, _ = clipped_sum(attached, collate(examples, 0), 0.2, owners, None, engine)
        np.testing.assert_array_equal(total[:-1], plain)
        assert total[-1] == pytest.approx(entry(means, share).sum(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("cap", [6.0, 0.5], ids=["wide", "tight"])
def test_one_unit_moves_the_sum_by_the_joint_clip_at_most(toy, toy_examples, cap):
    """Of gradients beyond the clip and losses beyond the cap it is the joint clip itself."""
    attached, examples, clip = toy("llama", "lora"), toy_examples(6), JointClip(1e-3, LossShare(0.8, cap))
    whole, norms = clipped_sum(attached, collate(examples, 0), clip)
    assert norms.min() > clip.gradient
    for left in range(6):
        rest = [example for place, example in enumerate(examples) if place != left]
        moved = np.linalg.norm(whole - clipped_sum(attached, collate(rest, 0), clip)[0])
        assert moved <= clip.length * (1 + 1e-4)
        assert cap > 1 or moved == pytest.approx(clip.length, rel=1e-3)
    assert clip.length == pytest.approx(1e-3 * np.sqrt(1 + 0.64))


def test_a_loss_above_the_cap_or_not_finite_counts_as_the_cap_and_one_below_zero_as_zero():
    losses = torch.tensor([7.0, 6.0, torch.inf, -torch.inf, torch.nan, 3.0, 0.0, -2.0])
    entries = JointClip(0.2, LOSS).entries(losses).numpy() / (0.3 * 0.2 * (1 - CLIP_MARGIN))
    np.testing.assert_allclose(entries, [1, 1, 1, 1, 1, 0, -1, -1], atol=1e-12)


def test_the_loss_of_ones_own_function_is_what_is_released(toy, toy_examples):
    attached, examples = toy(), toy_examples(3)
    own = lambda model, batch: 3 * per_example_loss(model, batch)  # noqa: E731
    total, _ = clipped_sum(
        attached, collate(examples, 0), JointClip(0.2, LOSS), None, None, Engine("loop", "", loss=own)
    )
    assert total[-1] == pytest.approx(entry(3 * losses_of(attached, examples)).sum(), rel=1e-4)


def test_a_unit_that_cannot_be_computed_adds_nothing(toy, toy_examples, monkeypatch):
    attached, examples = toy(), toy_examples(3)
    right = per_example.unit_row

    def failing(attached, batch, *rest):
        if int(batch.ids[0, 0]) == int(examples[1].ids[0]):
            raise RuntimeError("a made-up failure")
        return right(attached, batch, *rest)

    monkeypatch.setattr(per_example, "unit_row", failing)
    mechanism = Mechanism(PLAN, engine=Engine("loop", ""))
    whole = summed(attached, [(collate(examples, 0), None)], mechanism)
    rest = summed(attached, [(collate([examples[0], examples[2]], 0), None)], mechanism)
    np.testing.assert_allclose(whole, rest, rtol=1e-6)


def test_what_is_released_is_right_on_average_with_the_stated_error(toy, toy_examples):
    """300 steps at fixed values: the mean within 5 errors, the spread within 5 of its own."""
    attached, examples = toy(), toy_examples(4)
    released = []
    mechanism = Mechanism(PLAN, on_loss=released.append)
    for _ in range(300):
        noisy_gradient(attached, [(collate(examples, 0), None)], mechanism)
    error = PLAN.loss_error * np.sqrt(PLAN.steps_per_round)
    truth = losses_of(attached, examples).mean()
    assert abs(np.mean(released) - truth) < 5 * error / np.sqrt(300)
    assert np.std(released) == pytest.approx(error, rel=5 / np.sqrt(2 * 300))
    assert error == pytest.approx(1.5 * np.sqrt(1 + 0.3**2) / 0.3 * 3.0 / 4)


def test_the_noise_of_all_values_is_that_of_the_joint_clip(toy, monkeypatch):
    attached = toy()
    step = noisy_gradient(attached, [], Mechanism(replace(PLAN, noise_multiplier=100.0)))
    assert step.shape == (attached.layout.size,)
    wanted = 100.0 * 0.2 * np.sqrt(1 + 0.3**2) / 4
    assert step.std() == pytest.approx(wanted, rel=5 / np.sqrt(2 * step.size))
    assert (
        PLAN.joint_clip == pytest.approx(0.2 * np.sqrt(1 + 0.3**2))
        and PLAN.deviation == 1.5 * PLAN.joint_clip
    )


def test_a_round_releases_the_mean_over_its_steps_as_a_float32(toy, toy_examples, monkeypatch):
    from fedpeft.training import local

    attached, losses = toy(), iter([1.0, 2.0, 4.1])

    def step(attached, batches, mechanism):
        mechanism.on_loss(next(losses))
        return np.zeros(attached.layout.size, np.float32)

    monkeypatch.setattr(local, "noisy_gradient", step)
    plan = LocalPlan(steps=3, batch_size=4, lr=0.1, optimiser="sgd")
    result = train_local(attached, toy_examples(4), plan, np.random.default_rng(0), PLAN)
    assert result.loss_released == float(np.float32(7.1 / 3)) and result.loss_last is None


def test_nothing_is_released_without_a_share(toy, toy_examples):
    plan = LocalPlan(steps=1, batch_size=4, lr=0.1, optimiser="sgd")
    private = replace(PLAN, loss=None)
    assert train_local(toy(), toy_examples(4), plan, np.random.default_rng(0), private).loss_released is None
    assert private.deviation == 1.5 * 0.2 and private.loss_error == 0


def test_epsilon_is_that_of_the_joint_vector(own_epsilon):
    """At equal noise in each value: sensitivity measured from the extreme unit, composed by an own FFT."""
    extreme = np.array([PLAN.clip, *entry(np.array([LOSS.cap]))])
    ratio = PLAN.deviation / np.linalg.norm(extreme)
    own = own_epsilon([(PLAN.sampling_probability, ratio, PLAN.steps)], PLAN.delta)
    assert own <= (1 + 1e-6) * PLAN.epsilon() <= 1.02 * own
    smaller = own_epsilon([(PLAN.sampling_probability, PLAN.deviation / PLAN.clip, PLAN.steps)], PLAN.delta)
    assert smaller < 0.98 * PLAN.epsilon()  # the event that forgets the loss


def test_signal_and_drift_know_the_larger_noise():
    without = replace(PLAN, loss=None)
    assert signal(PLAN, 1000, 4).whole_run == pytest.approx(LOSS.growth * signal(without, 1000, 4).whole_run)


def test_plans_without_a_loss_read_as_before(tmp_path):
    """Their JSON, the digest of a secure sum and the ledger's entries have no new field."""
    without = replace(PLAN, loss=None)
    fields = {name: value for name, value in asdict(without).items() if name not in ("loss", "drawn")}
    assert without.fields() == fields and "loss" not in without.describe()
    shared = replace(without, trust="distributed", steps_per_round=1, grid=Grid(10, 50.0, 2))
    known = {name: value for name, value in asdict(shared).items() if name not in ("loss", "drawn")}
    facts = json.dumps(["discrete gaussian", known], sort_keys=True)
    assert shared.bound_to(b"p") == hashlib.sha256(b"fedpeft-grid-1\0p" + facts.encode()).digest()
    ledger = Ledger(tmp_path / "ledger.sqlite", 1e6)
    for number, plan in enumerate((without, PLAN), 1):
        ledger.reserve("data", "run", number, plan, 3)
    plans = [entry.body["plan"] for entry in ledger.entries()]
    assert plans == [fields, fields | {"loss": {"share": 0.3, "cap": 6.0}}]
    events = [entry.body["event"] for entry in ledger.entries()]
    assert events[0] == events[1]


PRIVATE = {"privacy": {"unit": "record", "noise_multiplier": 1.0}}


def test_a_config_without_a_share_names_the_same_run_as_before():
    assert b"loss_share" not in canonical(Config()) and b"stop_after" not in canonical(Config())
    shared = build_config({"privacy": {**PRIVATE["privacy"], "loss_share": 0.2}})
    assert b'"loss_share":0.2' in canonical(shared)
    plan = plan_from_config(shared)
    assert plan is not None and plan.loss == LossShare(0.2, 10.0)
    assert plan_from_config(build_config(PRIVATE)) == replace(plan, loss=None)


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"privacy": {"loss_share": 0.2}}, "loss_share needs privacy.unit"),
        ({"federation": {"stop_after": 3}, **PRIVATE}, "stop_after = 3 follows the released loss"),
        (
            {
                "privacy": {"unit": "record", "trust": "distributed", "epsilon": 8.0, "loss_share": 0.2},
                "federation": {"local_steps": 1, "optimiser": "sgd"},
                "exchange": {"up": {"error_feedback": False}, "secure": {"enabled": True, "bits": 16}},
            },
            "noise of the node's own",
        ),
    ],
)
def test_a_loss_leaves_only_where_the_node_adds_the_noise(settings, cause):
    with pytest.raises(ConfigError, match=cause):
        build_config(settings)


def test_no_plan_of_shared_noise_and_no_share_out_of_range():
    with pytest.raises(PrivacyError, match="loss"):
        replace(PLAN, trust="distributed", steps_per_round=1, grid=Grid(10, 50.0, 2))
    for share, cap in (
        (0.0, 1.0),
        (1.5, 1.0),
        (0.2, float("inf")),
        (0.2, 0.0),
        (1.0, 2.5e-323),
        (0.2, 1e308),
    ):
        with pytest.raises(PrivacyError, match="share"):
            LossShare(share, cap)


def test_losses_of_steady_models_are_those_of_training(toy, toy_examples):
    """The twin above agrees with the platform's own loss, so that both are of one pass."""
    attached, examples = toy("llama", "lora"), toy_examples(5)
    with steady(attached.model), torch.no_grad():
        losses = per_example_loss(attached.model, collate(examples, 0)).numpy()
    np.testing.assert_allclose(losses, losses_of(attached, examples), rtol=1e-4)

"""Transforms and plans: order, feedback, privacy."""

import numpy as np
import pytest

from fedpeft.config.models import DirectionConfig
from fedpeft.errors import ExchangeError, PlanError
from fedpeft.exchange import (
    AddResidual,
    Clip,
    ExchangePlan,
    KeepResidual,
    Layout,
    Quantise,
    Sparsify,
    Ternarise,
    Update,
    codec_named,
    plan_from_config,
)

LAYOUT = Layout(("a", "b"), ((30, 10), (70,)))
TERNARY = (AddResidual(), Sparsify(0.2), Ternarise(), KeepResidual())


def update_of(values, round=1):
    return Update(LAYOUT, np.asarray(values, np.float32), round=round, steps=4)


def random_update(seed=0):
    return update_of(np.random.default_rng(seed).standard_t(3, LAYOUT.size))


UNSOUND = [
    ((Ternarise(), Sparsify(0.2)), "ternary", "ternarise comes before sparsify"),
    ((Sparsify(0.2), Ternarise(), Clip(1.0)), "ternary", "clip comes after ternarise"),
    ((Quantise("int8"), Sparsify(0.2)), "int8", "sparsify comes after quantise"),
    ((Quantise("int8"), Ternarise()), "ternary", "ternarise comes after quantise"),
    ((Sparsify(0.2), Ternarise(), KeepResidual()), "ternary", "without add_residual"),
    ((AddResidual(), Sparsify(0.2), Ternarise()), "ternary", "without keep_residual"),
    ((KeepResidual(), AddResidual(), Ternarise()), "ternary", "before add_residual"),
    ((AddResidual(), KeepResidual(), Ternarise()), "ternary", "must be last"),
    ((AddResidual(), Clip(1.0), Ternarise(), KeepResidual()), "ternary", "would return through the residual"),
    ((Sparsify(0.2), AddResidual(), Ternarise(), KeepResidual()), "ternary", "would be lost"),
    ((Sparsify(0.2), Sparsify(0.1), Ternarise()), "ternary", "occurs 2 times"),
    ((Sparsify(0.2),), "ternary", "cannot carry unrounded values"),
    ((Ternarise(),), "int8", "cannot carry values made for ternary"),
    ((Quantise("int8"),), "dense-bf16", "cannot carry values made for int8"),
    ((), "int8", r"end with quantise\('int8'\)"),
]


@pytest.mark.parametrize(("transforms", "codec", "reason"), UNSOUND)
def test_unsound_plans_are_refused_with_the_reason(transforms, codec, reason):
    with pytest.raises(PlanError, match=reason):
        ExchangePlan(transforms, codec)


@pytest.mark.parametrize("codec", ["ternary", "dense-fp32", "dense-bf16", "int8"])
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("private", [True, False])
def test_every_configuration_gives_a_sound_plan_whose_result_is_carried(codec, feedback, private):
    plan = plan_from_config(DirectionConfig(codec=codec, error_feedback=feedback), private)
    state = {}
    for seed in range(3):
        sent, _ = plan.run(random_update(seed), state)
        coder = codec_named(codec)
        decoded = coder.decode(coder.encode(sent.values, LAYOUT), LAYOUT)
        assert np.array_equal(decoded.view(np.uint32), sent.values.view(np.uint32))
    assert ("residual" in state) == (feedback and codec != "dense-fp32")
    assert "intended" not in state


def test_sparsify_keeps_exactly_the_largest():
    values = random_update().values
    kept, metrics = Sparsify(0.1).apply(update_of(values), {})
    order = sorted(range(LAYOUT.size), key=lambda i: (-abs(values[i]), i))[:37]
    assert sorted(order) == np.flatnonzero(kept.values).tolist()
    assert np.array_equal(kept.values[order], values[order])
    assert metrics["density"] == pytest.approx(0.1)
    assert np.count_nonzero(Sparsify(1e-6).apply(update_of(values), {})[0].values) == 1


def test_error_feedback_equals_the_naive_recursion():
    plan, state = ExchangePlan(TERNARY, "ternary"), {}
    residual = np.zeros(LAYOUT.size, np.float32)
    meant = sent = 0
    for seed in range(8):
        update = random_update(seed)
        result, _ = plan.run(update, state)
        bare, _ = ExchangePlan(TERNARY[1:3], "ternary").run(update_of(update.values + residual), {})
        assert np.array_equal(result.values, bare.values)
        residual = update.values + residual - result.values
        assert np.array_equal(state["residual"], residual)
        meant, sent = meant + update.values, sent + result.values
    assert np.allclose(meant, sent + residual, atol=1e-4)


def test_clip_bounds_the_norm_and_leaves_small_updates_alone():
    update = random_update()
    clipped, metrics = Clip(2.0).apply(update, {})
    assert np.linalg.norm(clipped.values.astype(float)) == pytest.approx(2.0)
    assert metrics["norm"] == pytest.approx(np.linalg.norm(update.values.astype(float)))
    assert np.array_equal(Clip(1e6).apply(update, {})[0].values, update.values)
    with pytest.raises(ExchangeError, match="positive"):
        Clip(0.0)


def test_taps_see_every_stage_in_order():
    stages = []
    ExchangePlan(TERNARY, "ternary").run(random_update(), {}, lambda name, seen: stages.append((name, seen)))
    assert [name for name, _ in stages] == ["add_residual", "sparsify", "ternarise", "keep_residual"]
    assert np.count_nonzero(stages[1][1].values) == 74


def test_metrics_say_what_was_lost():
    _, metrics = ExchangePlan(TERNARY, "ternary").run(random_update(), {})
    assert metrics["sparsify.density"] == pytest.approx(0.2)
    assert 0 < metrics["ternarise.error"] < 1
    assert metrics["keep_residual.norm"] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_and_named(bad):
    values = np.zeros(LAYOUT.size)
    values[350] = bad
    state = {"residual": np.ones(LAYOUT.size, np.float32)}
    with pytest.raises(ExchangeError, match="round 3 is not finite in 'b'"):
        ExchangePlan(TERNARY, "ternary").run(update_of(values, round=3), state)
    assert list(state) == ["residual"] and state["residual"].all()


def test_a_failed_run_leaves_the_state_alone():
    class Fails:
        name = "fails"

        def apply(self, update, state):
            raise ExchangeError("no")

    state = {}
    plan = ExchangePlan((AddResidual(), Fails(), KeepResidual()), "dense-fp32")
    with pytest.raises(ExchangeError, match="no"):
        plan.run(random_update(), state)
    assert state == {}


def test_zero_updates_pass():
    plan, state = ExchangePlan(TERNARY, "ternary"), {}
    sent, _ = plan.run(update_of(np.zeros(LAYOUT.size)), state)
    assert not sent.values.any() and not state["residual"].any()


def test_a_residual_of_another_adapter_is_refused():
    with pytest.raises(ExchangeError, match="another adapter"):
        ExchangePlan(TERNARY, "ternary").run(random_update(), {"residual": np.zeros(3, np.float32)})


def test_float64_updates_are_refused():
    update = Update(LAYOUT, np.zeros(LAYOUT.size), round=1, steps=1)
    with pytest.raises(ExchangeError, match="float32"):
        ExchangePlan(TERNARY, "ternary").run(update, {})


def test_a_private_plan_takes_no_step_that_may_read_data():
    class ReadsData:
        name = "reads_data"

        def apply(self, update, state):
            return update, {}

    ExchangePlan((ReadsData(), Ternarise()), "ternary")
    with pytest.raises(PlanError, match="not known to be post-processing"):
        ExchangePlan((ReadsData(), Ternarise()), "ternary", private=True)


def test_a_private_plan_refuses_the_residual_of_rounds_without_privacy():
    state = {}
    ExchangePlan(TERNARY, "ternary").run(random_update(), state)
    with pytest.raises(PlanError, match="without privacy"):
        ExchangePlan(TERNARY, "ternary", private=True).run(random_update(), state)
    fresh = {}
    private = ExchangePlan(TERNARY, "ternary", private=True)
    private.run(random_update(), fresh)
    private.run(random_update(), fresh)
    ExchangePlan(TERNARY, "ternary").run(random_update(), fresh)
    with pytest.raises(PlanError, match="without privacy"):
        private.run(random_update(), fresh)


def test_descriptions_and_digests():
    plan = ExchangePlan(TERNARY, "ternary")
    assert plan.describe()[1:] == ["Sparsify(density=0.2)", "Ternarise()", "KeepResidual()", "codec: ternary"]
    assert plan.digest == ExchangePlan(TERNARY, "ternary").digest
    others = [ExchangePlan(TERNARY[1:3], "ternary"), ExchangePlan(TERNARY, "ternary", private=True)]
    assert len({plan.digest, *(other.digest for other in others)}) == 3


@pytest.mark.parametrize("density", [0, -1, 1.5])
def test_densities_out_of_range_are_refused(density):
    with pytest.raises(ExchangeError, match="density"):
        Sparsify(density)

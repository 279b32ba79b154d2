"""Transforms and plans: order, feedback, privacy, binding."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.config.models import DirectionConfig
from fedpeft.errors import ExchangeError, PlanError
from fedpeft.exchange import (
    AddResidual,
    AnyOf,
    Choose,
    Clip,
    Context,
    DeadZone,
    Decoded,
    DenseBf16,
    DenseFp32,
    ExchangePlan,
    Int8,
    KeepResidual,
    Layout,
    MaskedSign,
    PublicSupport,
    Quantise,
    Sign,
    Sparsify,
    StochasticTernarise,
    Ternarise,
    Ternary,
    Transform,
    Update,
    plan_from_config,
)
from fedpeft.exchange.envelope import decode_body, encode_body

LAYOUT = Layout(("a", "b"), ((30, 10), (70,)))
TERNARY = (AddResidual(), Sparsify(0.2), Ternarise(), KeepResidual())
CONTEXT = Context(bytes(16), 1, "hospital", bytes(32), "up")
AUTO = AnyOf((Ternary(), Sign()))
CONFIGURED = (
    "auto",
    "ternary",
    "sign",
    "masked-sign",
    "dead-zone",
    "stochastic-ternary",
    "dithered-2",
    "dithered-4",
    "int8",
    "dense-bf16",
    "dense-fp32",
)


def update_of(values, round=1):
    return Update(LAYOUT, np.asarray(values, np.float32), round=round, steps=4)


def random_update(seed=0):
    return update_of(np.random.default_rng(seed).standard_t(3, LAYOUT.size))


UNSOUND = [
    ((Ternarise(), Sparsify(0.2)), Ternary(), "ternarise comes before sparsify"),
    ((StochasticTernarise(0.2), Sparsify(0.2)), Ternary(), "ternarise comes before sparsify"),
    ((Sparsify(0.2), Ternarise(), Clip(1.0)), Ternary(), "clip comes after ternarise"),
    ((StochasticTernarise(0.2), Clip(1.0)), Ternary(), "clip comes after stochastic_ternarise"),
    ((Quantise(Int8()), Sparsify(0.2)), Int8(), "sparsify comes after quantise"),
    ((Quantise(Int8()), Ternarise()), Ternary(), "ternarise comes after quantise"),
    ((Choose(AUTO, 0.2), Clip(1.0)), AUTO, "clip comes after choose"),
    ((Sparsify(0.2), Ternarise(), KeepResidual()), Ternary(), "without add_residual"),
    ((AddResidual(), Sparsify(0.2), Ternarise()), Ternary(), "without keep_residual"),
    ((KeepResidual(), AddResidual(), Ternarise()), Ternary(), "before add_residual"),
    ((AddResidual(), KeepResidual(), Ternarise()), Ternary(), "must be last"),
    ((AddResidual(), Clip(1.0), Ternarise(), KeepResidual()), Ternary(), "would return through the residual"),
    ((Sparsify(0.2), AddResidual(), Ternarise(), KeepResidual()), Ternary(), "would be lost"),
    ((Sparsify(0.2), Sparsify(0.1), Ternarise()), Ternary(), "occurs 2 times"),
    ((Sparsify(0.2),), Ternary(), "cannot carry unrounded values"),
    ((Sparsify(0.2),), AUTO, "end with choose"),
    ((Ternarise(),), Int8(), "cannot carry values made for ternary"),
    ((Quantise(Int8()),), DenseBf16(), "cannot carry values made for int8"),
    (
        (Quantise(MaskedSign(PublicSupport(0.2))),),
        MaskedSign(PublicSupport(0.3)),
        "cannot carry values made for masked-sign",
    ),
    (
        (Quantise(MaskedSign(PublicSupport(0.2))),),
        MaskedSign(PublicSupport(0.2, "released")),
        "cannot carry values made for masked-sign",
    ),
    ((Choose(AUTO, 0.2),), AnyOf((Ternary(), DeadZone())), "cannot carry values made for auto"),
    ((), Int8(), r"end with quantise\(Int8\(\)\)"),
    ((), Sign(), r"end with quantise\(Sign\(\)\)"),
]


@pytest.mark.parametrize(("transforms", "codec", "reason"), UNSOUND)
def test_unsound_plans_are_refused_with_the_reason(transforms, codec, reason):
    with pytest.raises(PlanError, match=reason):
        ExchangePlan(transforms, codec)


@pytest.mark.parametrize(("codec", "step"), [(Ternary(), r"Ternarise\(\)"), (AUTO, r"Choose\(\)")])
def test_quantise_names_the_step_for_codecs_that_are_not_its_own(codec, step):
    with pytest.raises(ExchangeError, match=step):
        Quantise(codec)


def sound(codec, feedback, private):
    """Whether a configuration gives a plan: stochastic ternary is stateless and not for private plans."""
    return codec != "stochastic-ternary" or not (feedback or private)


@pytest.mark.parametrize("codec", CONFIGURED)
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("private", [True, False])
def test_every_sound_configuration_gives_a_plan_whose_result_is_carried(codec, feedback, private):
    if not sound(codec, feedback, private):
        return
    plan = plan_from_config(DirectionConfig(codec=codec, error_feedback=feedback), private)
    state = {}
    for number in range(1, 4):
        bound = plan.at(replace(CONTEXT, round=number))
        sent, _ = bound.run(random_update(number), state)
        decoded = decode_body(encode_body(sent, bound.codec), LAYOUT, bound.codec)
        assert np.array_equal(decoded.dense().view(np.uint32), sent.values.view(np.uint32))
        assert sent.support is None or np.array_equal(sent.support, np.flatnonzero(sent.values))
    assert ("residual" in state) == (feedback and codec != "dense-fp32")
    assert "intended" not in state


def test_a_private_plan_refuses_stochastic_ternary():
    direction = DirectionConfig(codec="stochastic-ternary", error_feedback=False)
    with pytest.raises(PlanError, match="stochastic_ternarise makes updates longer"):
        plan_from_config(direction, private=True)


@pytest.mark.parametrize("codec", ["masked-sign", "stochastic-ternary", "dithered-2", "auto"])
def test_unbound_plans_are_refused_with_one_clear_line(codec):
    plan = plan_from_config(DirectionConfig(codec=codec, error_feedback=False), private=False)
    with pytest.raises(ExchangeError, match=r"bind the plan with at\(\)") as refused:
        plan.run(random_update(), {})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("codec", CONFIGURED)
def test_binding_changes_neither_description_nor_digest(codec):
    plan = plan_from_config(DirectionConfig(codec=codec, error_feedback=False), private=False)
    released = Decoded(LAYOUT, np.ones(LAYOUT.size, np.float32))
    bound = plan.at(CONTEXT, released)
    again = bound.at(replace(CONTEXT, round=2), Decoded(LAYOUT, np.zeros(LAYOUT.size, np.float32)))
    assert plan.describe() == bound.describe() == again.describe()
    assert plan.digest == bound.digest == again.digest


def test_sparsify_keeps_exactly_the_largest():
    values = random_update().values
    kept, metrics = Sparsify(0.1).apply(update_of(values), {})
    order = sorted(range(LAYOUT.size), key=lambda i: (-abs(values[i]), i))[:37]
    assert sorted(order) == np.flatnonzero(kept.values).tolist() == kept.support.tolist()
    assert np.array_equal(kept.values[order], values[order])
    assert metrics["density"] == pytest.approx(0.1)
    assert np.count_nonzero(Sparsify(1e-6).apply(update_of(values), {})[0].values) == 1


def test_the_support_is_where_values_are_not_zero():
    few = np.zeros(LAYOUT.size, np.float32)
    few[[3, 360]] = 2.0, -1e-7
    sparse, _ = Sparsify(0.2).apply(update_of(few), {})
    assert sparse.support.tolist() == [3, 360]
    sent, _ = Ternarise().apply(sparse, {})
    assert sent.support.tolist() == np.flatnonzero(sent.values).tolist() == [3]


@pytest.mark.parametrize("steps", [TERNARY, (AddResidual(), Quantise(DeadZone()), KeepResidual())])
def test_error_feedback_equals_the_naive_recursion(steps):
    codec = Ternary() if Ternarise() in steps else DeadZone()
    plan, state = ExchangePlan(steps, codec), {}
    residual = np.zeros(LAYOUT.size, np.float32)
    meant = sent = 0
    for seed in range(8):
        update = random_update(seed)
        result, _ = plan.run(update, state)
        bare, _ = ExchangePlan(steps[1:-1], codec).run(update_of(update.values + residual), {})
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
    ExchangePlan(TERNARY, Ternary()).run(random_update(), {}, lambda name, seen: stages.append((name, seen)))
    assert [name for name, _ in stages] == ["add_residual", "sparsify", "ternarise", "keep_residual"]
    assert np.count_nonzero(stages[1][1].values) == 74


def test_metrics_say_what_was_kept():
    _, metrics = ExchangePlan(TERNARY, Ternary()).run(random_update(), {})
    assert metrics["sparsify.density"] == pytest.approx(0.2)
    assert metrics["keep_residual.norm"] > 0


def test_a_residual_of_stochastic_ternary_is_refused():
    steps = (AddResidual(), StochasticTernarise(0.1), KeepResidual())
    with pytest.raises(PlanError, match="grow without bound"):
        ExchangePlan(steps, Ternary())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_and_named(bad):
    values = np.zeros(LAYOUT.size)
    values[350] = bad
    state = {"residual": np.ones(LAYOUT.size, np.float32)}
    with pytest.raises(ExchangeError, match="round 3 is not finite in 'b'"):
        ExchangePlan(TERNARY, Ternary()).run(update_of(values, round=3), state)
    assert list(state) == ["residual"] and state["residual"].all()


def test_a_failed_run_leaves_the_state_alone():
    class Fails(Transform):
        name = "fails"

        def apply(self, update, state):
            raise ExchangeError("no")

    state = {}
    plan = ExchangePlan((AddResidual(), Fails(), KeepResidual()), DenseFp32())
    with pytest.raises(ExchangeError, match="no"):
        plan.run(random_update(), state)
    assert state == {}


@pytest.mark.parametrize("codec", CONFIGURED)
def test_zero_updates_pass(codec):
    direction = DirectionConfig(codec=codec, error_feedback=False)
    plan = plan_from_config(direction, private=False).at(CONTEXT)
    sent, _ = plan.run(update_of(np.zeros(LAYOUT.size)), {})
    assert not sent.values.any()
    assert not decode_body(encode_body(sent, plan.codec), LAYOUT, plan.codec).nonzero


def test_a_residual_of_another_adapter_is_refused():
    with pytest.raises(ExchangeError, match="another adapter"):
        ExchangePlan(TERNARY, Ternary()).run(random_update(), {"residual": np.zeros(3, np.float32)})


def test_float64_updates_are_refused():
    update = Update(LAYOUT, np.zeros(LAYOUT.size), round=1, steps=1)
    with pytest.raises(ExchangeError, match="float32"):
        ExchangePlan(TERNARY, Ternary()).run(update, {})


def test_a_private_plan_takes_no_step_that_may_read_data():
    class ReadsData(Transform):
        name = "reads_data"

        def apply(self, update, state):
            return update, {}

    ExchangePlan((ReadsData(), Ternarise()), Ternary())
    with pytest.raises(PlanError, match="not known to be post-processing"):
        ExchangePlan((ReadsData(), Ternarise()), Ternary(), private=True)


def test_a_private_plan_refuses_the_residual_of_rounds_without_privacy():
    state = {}
    ExchangePlan(TERNARY, Ternary()).run(random_update(), state)
    with pytest.raises(PlanError, match="without privacy"):
        ExchangePlan(TERNARY, Ternary(), private=True).run(random_update(), state)
    fresh = {}
    private = ExchangePlan(TERNARY, Ternary(), private=True)
    private.run(random_update(), fresh)
    private.run(random_update(), fresh)
    ExchangePlan(TERNARY, Ternary()).run(random_update(), fresh)
    with pytest.raises(PlanError, match="without privacy"):
        private.run(random_update(), fresh)


def test_descriptions_and_digests():
    plan = ExchangePlan(TERNARY, Ternary())
    assert plan.describe()[1:] == ["Sparsify(density=0.2)", "Ternarise()", "KeepResidual()", "codec: ternary"]
    assert plan.digest == ExchangePlan(TERNARY, Ternary()).digest
    masked = [
        MaskedSign(PublicSupport(0.2)),
        MaskedSign(PublicSupport(0.3)),
        MaskedSign(PublicSupport(0.2, "released")),
    ]
    others = [
        ExchangePlan(TERNARY[1:3], Ternary()),
        ExchangePlan(TERNARY, Ternary(), private=True),
        *(ExchangePlan((Quantise(codec),), codec) for codec in masked),
        *(ExchangePlan((Choose(AnyOf((codec,)), 0.2),), AnyOf((codec,))) for codec in masked),
        *(ExchangePlan((StochasticTernarise(density),), Ternary()) for density in (0.2, 0.3)),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_digests_do_not_change_between_versions():
    """Both ends compare digests: a change of a description is a change of the protocol."""
    steps = (Choose(AnyOf((Ternary(), MaskedSign(PublicSupport(0.5)))), 0.2),)
    plan = ExchangePlan(steps, AnyOf((Ternary(), MaskedSign(PublicSupport(0.5)))))
    assert plan.describe() == [
        "Choose(codec=AnyOf(members=(Ternary(), MaskedSign(density=0.5, source='seed'))), density=0.2)",
        "codec: auto",
    ]
    assert plan.digest.hex().startswith("3a0273d7e9c63b96")


@pytest.mark.parametrize("density", [0, -1, 1.5])
@pytest.mark.parametrize("step", [Sparsify, StochasticTernarise, lambda d: Choose(AUTO, d)])
def test_densities_out_of_range_are_refused(step, density):
    with pytest.raises(ExchangeError, match="density"):
        step(density)

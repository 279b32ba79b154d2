"""Stochastic ternary: right on average, within its density, reproducible, refused where it is not sound."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.errors import ExchangeError, PlanError
from fedpeft.exchange import Context, ExchangePlan, Layout, StochasticTernarise, Ternary, Update

LAYOUT = Layout(("a", "b", "c"), ((20, 5), (30,), (1,)))
CONTEXT = Context(bytes(16), 1, "hospital", bytes(32), "up")
VALUES = np.random.default_rng(0).standard_t(4, LAYOUT.size).astype(np.float32)
ROUNDS = 600


def sent(values, density, context=CONTEXT, layout=LAYOUT):
    step = StochasticTernarise(density).at(context)
    return step.apply(Update(layout, values, round=context.round, steps=1), {})[0].values


def many(values, density):
    return np.stack([sent(values, density, replace(CONTEXT, round=number)) for number in range(ROUNDS)])


def scales_of(draws):
    """The magnitude of each value's tensor, from the rounds in which it was sent."""
    return np.concatenate([np.full(part[0].size, np.abs(part).max()) for part in tensors(draws)])


def tensors(draws):
    return np.split(draws, LAYOUT.offsets[1:-1], axis=1)


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_the_mean_over_rounds_is_the_update(density):
    draws = many(VALUES, density).astype(np.float64)
    scales = scales_of(draws)
    deviation = np.sqrt((scales * np.abs(VALUES) - VALUES.astype(np.float64) ** 2) / ROUNDS)
    z = (draws.mean(axis=0) - VALUES) / deviation
    assert np.abs(z).max() < 5
    assert np.mean(z**2) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_values_are_zero_or_their_sign_times_one_scale_of_seven_bits(density):
    draws = many(VALUES, density)
    for part, values in zip(tensors(draws), np.split(VALUES, LAYOUT.offsets[1:-1]), strict=True):
        magnitudes = np.unique(np.abs(part))
        assert magnitudes.size <= 2 and np.frexp(magnitudes[-1])[0] * 128 % 1 == 0
        assert np.all((np.sign(part) == np.sign(values)) | (part == 0))
        peak, spread = np.abs(values).max(), np.abs(values).mean() / density
        assert max(peak, spread) <= magnitudes[-1] <= max(peak, spread) * (1 + 2**-5)


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_the_density_is_a_bound_on_average(density):
    draws = many(VALUES, density)
    shares = [np.count_nonzero(part) / part.size for part in tensors(draws)]
    assert all(share <= density * 1.1 for share in shares)
    assert all(np.abs(part).max() for part in tensors(draws))


def test_draws_are_reproducible_and_differ_between_senders_rounds_and_runs():
    base = sent(VALUES, 0.3)
    assert np.array_equal(base, sent(VALUES, 0.3))
    for change in ({"sender": "bank"}, {"round": 2}, {"run": b"\1" * 16}, {"base_state": b"\1" * 32}):
        assert not np.array_equal(base, sent(VALUES, 0.3, replace(CONTEXT, **change)))


def test_draws_of_two_senders_are_independent():
    """Their errors do not add up: over many rounds the products of errors are zero on average."""
    contexts = [replace(CONTEXT, round=number) for number in range(200)]
    errors = [
        np.stack([sent(VALUES, 0.3, replace(context, sender=name)) for context in contexts]) - VALUES
        for name in ("bank", "hospital")
    ]
    products = (errors[0] * errors[1]).ravel()
    assert abs(products.mean()) < 4 * products.std() / np.sqrt(products.size)


@pytest.mark.parametrize("density", [0.05, 1.0])
def test_the_result_is_carried_bit_for_bit_without_state(density):
    plan = ExchangePlan((StochasticTernarise(density),), Ternary()).at(CONTEXT)
    state = {}
    update, metrics = plan.run(Update(LAYOUT, VALUES, round=1, steps=1), state)
    assert state == {}
    assert metrics == {"stochastic_ternarise.density": np.count_nonzero(update.values) / LAYOUT.size}
    payload = Ternary().encode(update.values, LAYOUT, update.support)
    assert np.array_equal(Ternary().decode(payload, LAYOUT).dense(), update.values)


def test_zeros_stay_zero_and_the_largest_value_may_always_be_sent():
    assert not sent(np.zeros(LAYOUT.size, np.float32), 0.3).any()
    equal = np.full(LAYOUT.size, -2.0, np.float32)
    draws = many(equal, 1.0)
    assert np.mean(draws != 0) > 0.97 and np.all(draws <= 0)
    none = Layout((), ())
    assert sent(np.zeros(0, np.float32), 0.3, layout=none).shape == (0,)


def test_a_tensor_far_below_the_others_becomes_zero():
    values = VALUES.copy()
    values[100:] *= np.float32(2.0**-20)
    draws = many(values, 0.3)
    assert draws[:, :100].any() and not draws[:, 100:].any()


def test_an_unbound_plan_says_what_to_do():
    plan = ExchangePlan((StochasticTernarise(0.3),), Ternary())
    with pytest.raises(ExchangeError, match=r"bind the plan with at\(\)"):
        plan.run(Update(LAYOUT, VALUES, round=1, steps=1), {})


def test_a_private_plan_refuses_it():
    with pytest.raises(PlanError, match="makes updates longer"):
        ExchangePlan((StochasticTernarise(0.3),), Ternary(), private=True)

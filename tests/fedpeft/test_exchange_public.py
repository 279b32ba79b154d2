"""Integers with public scales, and the masked envelope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.config import build_config
from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import (
    Context,
    ExchangePlan,
    Layout,
    PublicSupport,
    PublicTernary,
    Quantise,
    Update,
    open_payload,
    seal_payload,
    up_plan,
)
from fedpeft.exchange.codecs.public_ternary import ZERO_EXPONENT, exponent_of, moved, scales_of
from fedpeft.trust import Signer, Verifier

LAYOUT = Layout(("a", "b"), ((40, 50), (3000,)))
CONTEXT = Context(bytes(16), 3, "clinic", bytes(32), "up")
VALUES = np.random.default_rng(0).normal(0, np.repeat([1.0, 0.01], LAYOUT.sizes)).astype(np.float32)


def codec(density: float = 1.0, scales: tuple[float, float] = (1.2, 0.012)) -> PublicTernary:
    bare = PublicTernary(PublicSupport(density)).at(CONTEXT, None)
    return bare.at_scales([exponent_of(scale) for scale in scales])


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_values_become_the_nearest_of_three(density):
    made = codec(density)
    positions = made.support.positions(LAYOUT)
    scale = np.repeat(made.scales, LAYOUT.sizes)
    fitted = made.fit(VALUES, LAYOUT)
    for place in range(0, LAYOUT.size, 97):
        nearest = min((0.0, scale[place], -scale[place]), key=lambda level: abs(VALUES[place] - level))
        assert fitted[place] == (nearest if place in positions else 0)
    assert np.array_equal(made.fit(fitted, LAYOUT), fitted)
    assert np.array_equal(made.decode(made.encode(fitted, LAYOUT), LAYOUT).dense(), fitted)
    assert len(made.encode(fitted, LAYOUT)) == positions.size


def test_sums_of_integers_are_sums_of_values():
    made = codec()
    rng = np.random.default_rng(1)
    nodes = [rng.normal(size=LAYOUT.size).astype(np.float32) for _ in range(5)]
    summed = sum(made.integers(values, LAYOUT).astype(np.int64) for values in nodes)
    exact = sum(made.fit(values, LAYOUT).astype(np.float64) for values in nodes)
    assert made.values(summed, LAYOUT) == pytest.approx(exact, rel=1e-6)


def test_votes_lead_the_scales_to_lloyds_levels():
    """From far off, both ways, each scale ends within a vote's tolerance of the fixed point."""
    for start in ((40.0, 40.0), (1e-4, 1e-4)):
        exponents = [exponent_of(scale) for scale in start]
        for _ in range(40):
            made = codec().at_scales(exponents)
            exponents = moved(exponents, 3 * made.votes(VALUES, LAYOUT).astype(np.int64), 3)
        assert scales_of(exponents) == pytest.approx([1.224, 0.01224], rel=0.3)


def test_nodes_that_disagree_leave_the_scale():
    assert moved([ZERO_EXPONENT], np.array([0]), 4) == [ZERO_EXPONENT]
    assert moved([ZERO_EXPONENT], np.array([4]), 4) == [ZERO_EXPONENT + 4]
    assert moved([0, 2 * ZERO_EXPONENT], np.array([-4, 4]), 4) == [0, 2 * ZERO_EXPONENT]


def test_a_plan_without_scales_and_a_scale_out_of_range_are_refused():
    with pytest.raises(ExchangeError, match="2 tensors need as many public scales, got 0"):
        PublicTernary(PublicSupport(1.0)).at(CONTEXT, None).fit(VALUES, LAYOUT)
    with pytest.raises(ExchangeError, match="exponent"):
        codec().at_scales([-1, 0])


def test_the_residual_brings_back_what_rounding_lost():
    """A constant update arrives in the sum over rounds although each round rounds it."""
    secure = {"enabled": True, "min_nodes": 2}
    config = build_config({"exchange": {"up": {"codec": "ternary"}, "secure": secure}})
    plan, state = up_plan(config.exchange), {}
    total = np.zeros(LAYOUT.size)
    for number in range(1, 61):
        bound = plan.at(replace(CONTEXT, round=number)).at_scales([exponent_of(1.2), exponent_of(0.012)])
        sent, _ = bound.run(Update(LAYOUT, VALUES, number, 1), state)
        total += sent.values
    inner = np.abs(VALUES) < np.repeat([1.1, 0.011], LAYOUT.sizes)
    assert total[inner] / 60 == pytest.approx(VALUES[inner], abs=0.03)


def test_a_masked_envelope_opens_only_where_it_belongs():
    signer = Signer.from_seed(bytes(32))
    payload = bytes(range(200))
    sealed = seal_payload(payload, LAYOUT, CONTEXT, signer)
    assert open_payload(sealed, 200, LAYOUT, CONTEXT, Verifier(signer.public)) == payload
    others = [
        (sealed, 200, replace(CONTEXT, round=4)),
        (sealed, 200, replace(CONTEXT, sender="bank")),
        (sealed, 199, CONTEXT),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), 200, CONTEXT),
        (sealed[:3] + bytes([4]) + sealed[4:], 200, CONTEXT),
    ]
    for data, size, context in others:
        with pytest.raises(EnvelopeError):
            open_payload(data, size, LAYOUT, context, Verifier(signer.public))


def test_the_plan_says_what_it_is():
    made = codec(0.1)
    plan = ExchangePlan((Quantise(made),), made)
    assert plan.describe() == [
        "Quantise(codec=PublicTernary(density=0.1, source='seed'))",
        "codec: public-ternary",
    ]

"""Bounds on norms and robust means, against plain numpy and scipy."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from fedpeft.aggregation import robust
from fedpeft.aggregation.base import AggregationRule, PlainMean
from fedpeft.aggregation.robust import (
    GeometricMedian,
    Median,
    NormClip,
    TrimmedMean,
    norm_of,
    rule_of,
    too_long,
)
from fedpeft.config import build_config
from fedpeft.config.models import FederationConfig
from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.exchange import Decoded, Layout
from fedpeft.plugins import AGGREGATION_RULES

LAYOUT = Layout.of({"w": np.zeros((11, 13))})
SIZE = LAYOUT.size


def updates(count, seed=0, density=None):
    """Dense updates, or sparse ones in which a share of the values is sent; and all of them as a matrix."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((count, SIZE)).astype(np.float32)
    if density is None:
        return [Decoded(LAYOUT, row) for row in matrix], matrix
    matrix *= rng.random(matrix.shape) < density
    places = [np.flatnonzero(row) for row in matrix]
    return [Decoded(LAYOUT, row[at], at) for row, at in zip(matrix, places, strict=True)], matrix


def named(values):
    return ((f"n{index:02d}", 1.0, one) for index, one in enumerate(values))


@pytest.fixture(params=[7, 1 << 16])
def block(request, monkeypatch):
    monkeypatch.setattr(robust, "_BLOCK", request.param)


@pytest.mark.parametrize("density", [None, 0.6])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_the_median_is_numpys(block, count, density):
    values, matrix = updates(count, count, density)
    mean, _, _ = Median().mean(SIZE, named(values))
    np.testing.assert_allclose(mean, np.median(matrix.astype(np.float64), axis=0), atol=1e-12)


@pytest.mark.parametrize("density", [None, 0.6])
@pytest.mark.parametrize("trim", [0.0, 0.1, 0.2, 0.49])
@pytest.mark.parametrize("count", [1, 3, 8, 10])
def test_the_trimmed_mean_is_scipys(block, count, trim, density):
    values, matrix = updates(count, count, density)
    mean, _, facts = TrimmedMean(trim).mean(SIZE, named(values))
    np.testing.assert_allclose(mean, trim_mean(matrix.astype(np.float64), trim, axis=0), atol=1e-12)
    assert facts == {"trimmed": 2 * int(trim * count)}


@pytest.mark.parametrize("bound", [0.0, 11.0])
@pytest.mark.parametrize("density", [None, 0.6])
def test_norm_clip_is_the_mean_of_what_is_cut_one_by_one(bound, density):
    values, matrix = updates(5, density=density)
    wide = matrix.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    most = bound or np.median(lengths)
    naive = np.mean([row * min(1.0, most / norm) for row, norm in zip(wide, lengths, strict=True)], axis=0)
    mean, _, facts = NormClip(bound).mean(SIZE, named(values))
    np.testing.assert_allclose(mean, naive, atol=1e-7)
    assert facts["clipped"] == (lengths > most).sum()


@pytest.mark.parametrize("density", [None, 0.6])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_point_is_nearer_to_all_updates_than_their_geometric_median(block, count, density):
    values, matrix = updates(count, density=density)
    wide, rng = matrix.astype(np.float64), np.random.default_rng(1)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    wide *= np.minimum(1.0, np.median(norms) / norms)
    mean, _, facts = GeometricMedian().mean(SIZE, named(values))

    def far(point):
        return float(np.linalg.norm(wide - point, axis=1).sum())

    assert far(mean) <= far(wide.mean(axis=0)) + 1e-9
    assert all(far(mean) <= far(mean + 1e-2 * rng.standard_normal(SIZE)) for _ in range(50))
    assert 0 < sum(facts["weights"]) <= 1.001


@pytest.mark.parametrize("factor", [1.0, 9.9, 1e6])
def test_one_of_three_cannot_turn_a_geometric_median_round(factor):
    """The others agree in part, as honest updates do; the third sends the opposite of their sum."""
    rng = np.random.default_rng(3)
    common, own = rng.standard_normal(SIZE), rng.standard_normal((2, SIZE))
    honest = [(common + one).astype(np.float32) for one in own]
    wanted, unit = (honest[0] + honest[1]) / 2, np.linalg.norm(honest[0])
    liar = (-factor * unit * wanted / np.linalg.norm(wanted)).astype(np.float32)
    given = [Decoded(LAYOUT, one) for one in (*honest, liar)]
    mean, _, _ = GeometricMedian().mean(SIZE, named(given))
    progress = float(mean @ wanted) / float(wanted @ wanted)
    assert progress > 0.5
    assert float(np.mean([*honest, liar], axis=0) @ wanted) < progress * float(wanted @ wanted)


def test_a_geometric_median_of_equal_or_empty_updates_is_theirs():
    same = np.full(SIZE, 0.5, np.float32)
    for row in (same, np.zeros(SIZE, np.float32)):
        mean, _, _ = GeometricMedian().mean(SIZE, named([Decoded(LAYOUT, row)] * 3))
        np.testing.assert_allclose(mean, row, rtol=1e-6)


@pytest.mark.parametrize("kind", ["median", "trimmed-mean", "norm-clip", "geometric-median"])
def test_two_of_ten_liars_move_a_robust_mean_by_no_more_than_honest_nodes_differ(kind):
    values, matrix = updates(10)
    liars = [Decoded(LAYOUT, np.full(SIZE, 1e6, np.float32)), Decoded(LAYOUT, -matrix[1])]
    mean, _, _ = (
        AGGREGATION_RULES[kind].configured(FederationConfig()).mean(SIZE, named([*liars, *values[2:]]))
    )
    assert abs(mean).max() <= abs(matrix).max()


def test_updates_come_once_in_order_and_fit():
    values, _ = updates(2)
    law = Median()
    for given in ([], [("b", 1.0, values[0]), ("a", 1.0, values[1])], [("a", 1.0, values[0])] * 2):
        with pytest.raises(ExchangeError):
            law.mean(SIZE, iter(given))
    with pytest.raises(ExchangeError, match="expected 4 values"):
        law.mean(4, named(values))


def test_norms_are_those_of_all_values():
    values, matrix = updates(2, density=0.3)
    for one, row in zip(values, matrix, strict=True):
        assert norm_of(one) == pytest.approx(float(np.linalg.norm(row.astype(np.float64))), rel=1e-12)
    assert norm_of(Decoded(LAYOUT, np.full(SIZE, 3e38, np.float32))) < float("inf")


NORMS = {"a": 1.0, "b": 1.1, "c": 0.9, "d": 1e6}


@pytest.mark.parametrize(
    ("settings", "norms", "refused"),
    [
        ({}, NORMS, {"d": "10 times the round's median 1 is allowed"}),
        ({"norm_ratio": 0.0}, NORMS, {}),
        ({}, {"a": 1.0, "d": 1e6}, {}),  # of two nobody can say which one lies
        ({}, {"a": 1.0, "b": 1.0, "c": 9.9}, {}),
        ({}, {"a": 1.0, "b": 1.0, "c": 10.1}, {"c": "norm 10.1"}),
        ({"norm_bound": 1.05}, NORMS, {"b": "norm_bound is 1.05", "d": "norm_bound is 1.05"}),
        ({"norm_bound": 1.05, "robust": "norm-clip"}, NORMS, {"d": "median"}),
        ({}, {"a": 0.0, "b": 0.0, "c": 1.0}, {}),
        ({}, {"a": 1.0, "b": 1e6, "c": 1.0, "d": 1e6}, {"b": "median 1", "d": "median 1"}),
    ],
)
def test_updates_that_are_too_long_are_refused_with_the_cause(settings, norms, refused):
    found = too_long(norms, FederationConfig(**settings))
    assert found.keys() == refused.keys()
    assert all(cause in found[name] for name, cause in refused.items())


TERNARY = {"exchange": {"up": {"codec": "ternary", "density": 0.2}}}
INT8 = {"exchange": {"up": {"codec": "int8"}}}
CENTRAL = {
    "privacy": {"unit": "node", "trust": "central", "noise_multiplier": 1.0},
    "exchange": {"up": {"codec": "int8", "error_feedback": False}},
}
STACK = {
    "adapter": {"aggregation": "stack"},
    "exchange": {"up": {"codec": "int8", "error_feedback": False}, "down": {"codec": "dense-fp32"}},
}


@pytest.mark.parametrize(
    ("settings", "federation", "cause"),
    [
        ({"exchange": {"secure": {"enabled": True}}}, {"robust": "median"}, "exchange.secure hides"),
        ({"exchange": {"secure": {"enabled": True}}}, {"norm_bound": 1.0}, "exchange.secure hides"),
        (CENTRAL, {"robust": "norm-clip"}, "compares nodes with one another"),
        (CENTRAL, {"norm_bound": 2.0}, "compares nodes with one another"),
        (STACK, {"robust": "median"}, "factors do not have"),
        (TERNARY, {"robust": "median"}, "loses most of updates of exchange.up.density = 0.2"),
        (TERNARY, {"robust": "trimmed-mean"}, "loses most"),
    ],
)
def test_what_cannot_hold_is_refused_in_one_line(settings, federation, cause):
    with pytest.raises(ConfigError, match=cause) as refusal:
        build_config({**settings, "federation": federation})
    assert "\n" not in str(refusal.value)


def test_what_can_hold_is_not_refused():
    build_config({**TERNARY, "federation": {"robust": "norm-clip", "norm_bound": 3.0}})
    for kind, rule in (("median", Median()), ("trimmed-mean", TrimmedMean(0.3))):
        config = build_config({**INT8, "federation": {"robust": kind, "trim": 0.3}})
        assert rule_of(config) == rule
    assert isinstance(rule_of(build_config({"federation": {"robust": "none"}})), PlainMean)


@pytest.mark.parametrize(
    ("settings", "nodes", "law"),
    [
        ({}, 3, GeometricMedian),
        (TERNARY, 100, GeometricMedian),
        ({}, 2, PlainMean),
        ({}, 101, PlainMean),
        (STACK, 4, PlainMean),
        (CENTRAL, 4, PlainMean),
    ],
)
def test_by_default_one_of_three_is_withstood_where_updates_may_be_compared(settings, nodes, law):
    found = rule_of(build_config({**settings, "federation": {"nodes": nodes}}))
    assert type(found) is law


class Undeclared(AggregationRule):
    """A rule of another package that says nothing of itself."""

    def mean(self, size, contributions):
        return np.zeros(size), self, {}


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"exchange": {"secure": {"enabled": True}}}, "exchange.secure hides"),
        (CENTRAL, "compares nodes with one another"),
        (STACK, "factors do not have"),
        (TERNARY, "loses"),
    ],
)
def test_a_rule_that_declares_nothing_is_refused_where_it_could_do_harm(settings, cause):
    AGGREGATION_RULES.register("mine", Undeclared)
    try:
        with pytest.raises(ConfigError, match=cause):
            build_config({**settings, "federation": {"robust": "mine"}})
        assert isinstance(rule_of(build_config({**INT8, "federation": {"robust": "mine"}})), Undeclared)
    finally:
        AGGREGATION_RULES.forget("mine")


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(ConfigError, match=r"federation\.robust' cannot be 'medain'.*is 'median'"):
        build_config({"federation": {"robust": "medain"}})

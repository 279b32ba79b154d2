"""The levels codec against naive twins: what it rounds to, what it keeps, what it costs."""

import numpy as np
import pytest

from fedpeft.errors import ExchangeError
from fedpeft.exchange.layout import Layout
from fedpeft.packing import uniform_quantiser


def vector(sizes=(1000, 37, 1, 640), seed=0, heavy=False):
    rng = np.random.default_rng(seed)
    draw = rng.standard_t(2, sum(sizes)) if heavy else rng.standard_normal(sum(sizes))
    values = draw.astype(np.float32)
    values[: sizes[0]] *= 100
    layout = Layout(tuple("abcd"[: len(sizes)]), tuple((size,) for size in sizes))
    return values, layout


def naive(values, step):
    """One tensor, value by value: round to the grid, then scale so that the projection stays."""
    peak = float(np.abs(values).max())
    width = min(max(step * float(np.sqrt(np.mean(values.astype(float) ** 2))), peak / 127), peak)
    whole = [round(float(value) / width) for value in values]
    scale = sum(float(v) ** 2 for v in values) / sum(float(v) * w for v, w in zip(values, whole, strict=True))
    return [w * scale for w in whole]


@pytest.mark.parametrize("step", [0.01, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("heavy", [False, True])
def test_values_are_those_of_the_naive_twin(step, heavy):
    values, layout = vector(heavy=heavy)
    coded = uniform_quantiser.quantise(values, layout, step)
    for name, part in layout.split(coded.values()).items():
        wanted = naive(layout.split(values)[name], step)
        assert np.allclose(part, wanted, rtol=2**-8, atol=0)


@pytest.mark.parametrize("step", [0.01, 0.1, 0.5, 1.0, 2.0, 4.0])
def test_bytes_round_trip(step):
    values, layout = vector()
    values[1000:1037] = 0
    coded = uniform_quantiser.quantise(values, layout, step)
    payload = uniform_quantiser.encode(coded)
    back = uniform_quantiser.decode(payload, layout)
    assert np.array_equal(back.codes, coded.codes)
    assert np.array_equal(back.scales.view(np.uint32), coded.scales.view(np.uint32))
    assert uniform_quantiser.encode(back) == payload


def test_every_alphabet_round_trips():
    layout = Layout(("a", "b", "c", "d"), ((11,), (7,), (5,), (3,)))
    codes = np.concatenate([np.resize([-p, p, 0], n) for p, n in ((1, 11), (2, 7), (7, 5), (127, 3))])
    coded = uniform_quantiser.Quantised(layout, codes.astype(np.int8), np.array([1, 2, 0.5, 3], np.float32))
    assert np.array_equal(uniform_quantiser.decode(uniform_quantiser.encode(coded), layout).codes, codes)


@pytest.mark.parametrize("step", [0.25, 0.5, 1.0, 1.5])
def test_the_projection_on_the_original_is_kept(step):
    values, layout = vector(sizes=(20_000,))
    found = uniform_quantiser.quantise(values, layout, step).values().astype(np.float64)
    assert values @ found / (values.astype(np.float64) @ values) == pytest.approx(1, abs=2**-8)


@pytest.mark.parametrize(("step", "excess"), [(0.25, 0.03), (0.5, 0.04), (1.0, 0.03), (1.5, 0.05)])
def test_bytes_are_near_the_entropy_of_the_levels(step, excess):
    values, layout = vector(sizes=(200_000, 100_000))
    coded = uniform_quantiser.quantise(values, layout, step)
    bits = 0.0
    for part in np.split(coded.codes, [200_000]):
        _, counts = np.unique(part, return_counts=True)
        bits += float(-(counts * np.log2(counts / part.size)).sum())
    assert bits / 8 <= len(uniform_quantiser.encode(coded)) <= (1 + excess) * bits / 8


def test_a_uniform_error_is_a_step_over_root_twelve():
    values, layout = vector(sizes=(100_000,))
    found = uniform_quantiser.quantise(values, layout, 0.5).values()
    error = np.linalg.norm(found - values) / np.linalg.norm(values)
    assert error == pytest.approx(0.5 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("scale", [1e-38, 1e-45, 3e38])
def test_extreme_magnitudes_stay_finite(scale):
    layout = Layout(("a",), ((100,),))
    values = (np.linspace(-1, 1, 100) * scale).astype(np.float32)
    coded = uniform_quantiser.quantise(values, layout, 0.5)
    back = uniform_quantiser.decode(uniform_quantiser.encode(coded), layout).values()
    assert np.isfinite(back).all()
    assert scale == 1e-45 or np.abs(back).max() == pytest.approx(scale, rel=0.2)


@pytest.mark.parametrize("step", [0, -1, float("inf"), float("nan")])
def test_a_step_must_be_positive(step):
    values, layout = vector()
    with pytest.raises(ExchangeError, match="step"):
        uniform_quantiser.quantise(values, layout, step)


def test_nothing_is_nothing():
    layout = Layout((), ())
    coded = uniform_quantiser.quantise(np.zeros(0, np.float32), layout, 0.5)
    assert uniform_quantiser.encode(coded) == b"" and uniform_quantiser.decode(b"", layout).values().size == 0

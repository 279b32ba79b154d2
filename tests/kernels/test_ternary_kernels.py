"""Mean magnitudes against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from fedpeft_kernels.ternary import (
    SIGNIFICAND_BITS,
    SUM_BITS,
    group_sums,
    magnitude_sums,
    mean_magnitudes,
    round_down,
)

COUNTS = np.array([3, 0, 1, 5, 0])
VALUES = np.array([0.5, 1, 1.5, 2, 2, 2, 4, 0.25, 8], np.float32)


def naive_sums(magnitudes, counts):
    """The documented law: each magnitude is cut off 31 bits below the largest, then added exactly."""
    peak = max(map(Fraction, magnitudes.tolist()), default=Fraction(0))
    exponent = 0
    while peak and Fraction(2) ** exponent <= peak:
        exponent += 1
    while peak and Fraction(2) ** (exponent - 1) > peak:
        exponent -= 1
    unit = Fraction(2) ** (exponent - SUM_BITS)
    sums, rest = [], iter(magnitudes.tolist())
    for count in counts:
        sums.append(sum((Fraction(next(rest)) // unit * unit for _ in range(count)), Fraction(0)))
    return sums


def test_means_of_known_values():
    assert mean_magnitudes(VALUES, COUNTS).tolist() == [1.0, 0.0, 2.0, 16.25 / 5, 0.0]
    assert mean_magnitudes(np.zeros(0, np.float32), np.zeros(3, np.int64)).tolist() == [0, 0, 0]
    assert mean_magnitudes(np.zeros(0, np.float32), np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_sums_equal_exact_fractions(scale, spread):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 40, 12)
    with np.errstate(under="ignore", over="ignore"):
        raw = (np.exp(spread * rng.standard_normal(counts.sum())) * scale).astype(np.float32)
    magnitudes = np.minimum(raw, np.finfo(np.float32).max)
    sums = magnitude_sums(magnitudes, counts)
    assert sums.tolist() == [float(total) for total in naive_sums(magnitudes, counts)]
    means = mean_magnitudes(magnitudes, counts)
    assert means.tolist() == (sums / np.maximum(counts, 1)).tolist()


def test_sums_do_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    magnitudes = np.abs(rng.standard_t(2, 5000)).astype(np.float32)
    counts = np.array([5000])
    expected = magnitude_sums(magnitudes, counts)
    for _ in range(5):
        assert magnitude_sums(rng.permutation(magnitudes), counts) == expected


@pytest.mark.parametrize("count", [1, 3, 77, 100_003])
def test_the_mean_of_one_magnitude_is_that_magnitude(count):
    for significand in (64, 65, 127):
        scale = np.float32(np.ldexp(float(significand), -9))
        assert mean_magnitudes(np.full(count, scale), np.array([count])) == [scale]


def test_group_sums_of_empty_and_full_groups():
    assert group_sums(np.arange(9), COUNTS).tolist() == [3, 0, 3, 30, 0]
    assert group_sums(np.zeros(0, np.int64), np.zeros(2, np.int64)).tolist() == [0, 0]


def test_rounds_down_to_seven_bits_and_no_further():
    scales = np.abs(np.random.default_rng(0).standard_t(3, 1000)) + 1e-9
    rounded = round_down(scales)
    assert np.all(rounded <= scales) and np.all(rounded > scales * (1 - 2.0 ** (1 - SIGNIFICAND_BITS)))
    assert np.array_equal(round_down(rounded), rounded)
    fraction, _ = np.frexp(rounded)
    assert np.all(fraction * 128 == np.floor(fraction * 128))

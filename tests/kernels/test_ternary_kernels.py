"""Mean magnitudes against plain loops."""

import numpy as np

from fedpeft_kernels.ternary import mean_magnitudes, round_down, with_magnitudes

OFFSETS = np.array([0, 3, 4, 9])
VALUES = np.array([0.5, 0, -1.5, 0, 2, 0, -2, 4, -0.0], np.float32)


def test_mean_of_the_nonzero_values():
    assert mean_magnitudes(VALUES, OFFSETS).tolist() == [1.0, 0.0, 8 / 3]


def test_rounds_down_to_seven_bits_and_no_further():
    scales = np.abs(np.random.default_rng(0).standard_t(3, 1000)) + 1e-9
    rounded = round_down(scales)
    assert np.all(rounded <= scales) and np.all(rounded > scales * (1 - 2**-6))
    assert np.array_equal(round_down(rounded), rounded)
    fraction, _ = np.frexp(rounded)
    assert np.all(fraction * 128 == np.floor(fraction * 128))


def test_signs_take_the_scale_and_zeros_are_positive():
    result = with_magnitudes(VALUES, OFFSETS, np.array([1, 0, 2.5], np.float32))
    assert result.dtype == np.float32
    assert result.tolist() == [1, 0, -1, 0, 2.5, 0, -2.5, 2.5, 0]
    assert not np.signbit(result[result == 0]).any()

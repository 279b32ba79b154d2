"""Threshold selection against sorting."""

import numpy as np
import pytest

from fedpeft_kernels.threshold import largest


def naive_largest(values, count):
    order = sorted(range(len(values)), key=lambda index: (-abs(float(values[index])), index))
    mask = np.zeros(len(values), bool)
    mask[order[:count]] = True
    return mask


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 500])
def test_equals_sorting(size, ties):
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size).astype(np.float32)
    if ties:
        values = np.round(values)
    for count in {0, 1, size // 3, size - 1, size}:
        mask = largest(values, count)
        assert mask.sum() == count
        assert np.array_equal(mask, naive_largest(values, count))


def test_zeros_and_equal_magnitudes_take_the_lowest_indices():
    assert largest(np.zeros(5, np.float32), 2).tolist() == [True, True, False, False, False]
    assert largest(np.array([1, -1, 1, -1], np.float32), 3).tolist() == [True, True, True, False]


@pytest.mark.parametrize("count", [-1, 4])
def test_refuses_an_impossible_count(count):
    with pytest.raises(ValueError, match="cannot select"):
        largest(np.ones(3, np.float32), count)

"""Threshold selection against sorting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpeft_kernels.threshold import largest

STRIDE = 4  # of the sample that brackets the threshold, for vectors of this size
SIZE = STRIDE * (1 << 15) + 3
PERIODIC = {
    "all of the sample small": lambda index: np.where(index % STRIDE == 0, 0.001, 1.0),
    "all of the sample large": lambda index: np.where(index % STRIDE == 0, 5.0, 1.0),
    "one large value in each period, never sampled": lambda index: np.where(index % STRIDE == 3, 9.0, 0.0),
    "the sample is constant": lambda index: np.where(index % STRIDE == 0, 1.0, (index * 37 % 101) / 50),
    "the sample is sorted": lambda index: np.where(index % STRIDE == 0, index, -index),
}


def naive_largest(values, count):
    order = sorted(range(len(values)), key=lambda index: (-abs(float(values[index])), index))
    return sorted(order[:count])


def sorted_largest(values, count):
    return np.sort(np.argsort(-np.abs(values), kind="stable")[:count])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 500])
def test_equals_sorting(size, ties):
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size).astype(np.float32)
    if ties:
        values = np.round(values)
    for count in {0, 1, size // 3, size - 1, size}:
        assert largest(values, count).tolist() == naive_largest(values, count)


@given(
    arrays(np.float32, st.integers(1, 80), elements=st.floats(-4, 4, width=16)),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_equals_sorting_for_any_values(values, share):
    count = round(share * values.size)
    assert largest(values, count).tolist() == naive_largest(values, count)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.2, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["normal", "heavy", "ties", "mostly zero", "equal"])
def test_large_vectors_equal_stable_sorting(share, kind):
    rng = np.random.default_rng(3)
    values = {
        "normal": lambda: rng.standard_normal(200_000),
        "heavy": lambda: rng.standard_cauchy(200_000),
        "ties": lambda: np.round(rng.standard_normal(200_000), 1),
        "mostly zero": lambda: rng.standard_normal(200_000) * (rng.random(200_000) < 0.05),
        "equal": lambda: np.full(200_000, -2.0),
    }[kind]().astype(np.float32)
    count = round(share * values.size)
    assert np.array_equal(largest(values, count), sorted_largest(values, count))


@pytest.mark.parametrize("shape", PERIODIC.values(), ids=PERIODIC.keys())
def test_vectors_that_mislead_the_sample_give_the_same_result(shape):
    values = shape(np.arange(SIZE)).astype(np.float32)
    for count in (1, 2, SIZE // 7, SIZE // STRIDE, SIZE // 2, SIZE - SIZE // 7, SIZE - 1):
        assert np.array_equal(largest(values, count), sorted_largest(values, count))


def test_zeros_and_equal_magnitudes_take_the_lowest_indices():
    assert largest(np.zeros(5, np.float32), 2).tolist() == [0, 1]
    assert largest(np.array([1, -1, 1, -1], np.float32), 3).tolist() == [0, 1, 2]
    assert largest(np.array([0.0, -0.0, 0.0], np.float32), 2).tolist() == [0, 1]


def test_extreme_magnitudes_are_ordered():
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    values = np.array([0, tiny, -huge, 2 * tiny, huge], np.float32)
    assert [largest(values, count).tolist() for count in (1, 2, 3, 4)] == [
        [2],
        [2, 4],
        [2, 3, 4],
        [1, 2, 3, 4],
    ]


@pytest.mark.parametrize("count", [-1, 4])
def test_refuses_an_impossible_count(count):
    with pytest.raises(ValueError, match="cannot select"):
        largest(np.ones(3, np.float32), count)

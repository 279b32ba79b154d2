"""Bit planes against plain loops over single values."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpeft_kernels.planes import Threshold, accumulate, pack, threshold

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALL = arrays(
    np.float32, st.integers(1, 40), elements=st.one_of(FLOATS, st.sampled_from([0.0, -0.0, 1.0, -1.0]))
)


def bits_of(value):
    return struct.unpack("<I", struct.pack("<f", abs(value)))[0]


def naive_threshold(values, count):
    ranked = sorted((bits_of(value) for value in values), reverse=True)[:count]
    return (ranked[-1], ranked.count(ranked[-1])) if count else (0x7F800000, 0)


def naive_marks(values, bits, ties):
    marks = []
    for value in values:
        tied = bits_of(value) == bits and ties > 0
        ties -= tied
        marks.append(value != 0 and (bits_of(value) > bits or tied))
    return marks


def naive_pack(values, offsets, bits, ties):
    marks = naive_marks(values, bits, ties)
    mask, sign = [0] * math.ceil(len(values) / 8), [0] * math.ceil(len(values) / 8)
    largest = max(abs(value) for value in values)
    shift = 31 - math.frexp(largest)[1] if largest else 0
    counts, sums = [0] * (len(offsets) - 1), [0] * (len(offsets) - 1)
    for i, (value, marked) in enumerate(zip(values, marks, strict=True)):
        if marked:
            mask[i // 8] |= 1 << i % 8
            sign[i // 8] |= (value < 0) << i % 8
            tensor = max(t for t in range(len(counts)) if offsets[t] <= i < offsets[t + 1])
            counts[tensor] += 1
            sums[tensor] += math.floor(abs(Fraction(value)) * Fraction(2) ** shift)
    return mask, sign, counts, sums, shift


def naive_accumulate(mask, sign, scales, offsets, total):
    for i in range(len(total)):
        if mask[i // 8] >> i % 8 & 1:
            scale = next(
                s for s, start, end in zip(scales, offsets, offsets[1:], strict=False) if start <= i < end
            )
            total[i] = total[i] - scale if sign[i // 8] >> i % 8 & 1 else total[i] + scale


def cuts(size, data):
    inner = sorted(data.draw(st.lists(st.integers(0, size), max_size=5)))
    return np.array([0, *inner, size], np.int64)


@given(values=SMALL, data=st.data())
def test_equals_the_loops(values, data):
    count = data.draw(st.integers(0, values.size))
    offsets = cuts(values.size, data)
    cut = threshold(values, count)
    assert (cut.bits, cut.ties) == naive_threshold(values.tolist(), count)
    planes = pack(values, offsets, cut)
    mask, sign, counts, sums, shift = naive_pack(values.tolist(), offsets.tolist(), cut.bits, cut.ties)
    assert planes.mask.tolist() == mask and planes.sign.tolist() == sign
    assert planes.counts.tolist() == counts and planes.sums.tolist() == sums
    assert (planes.shift, planes.size) == (shift, values.size)
    assert planes.sums.dtype == planes.counts.dtype == np.int64

    scales = np.arange(1, len(offsets), dtype=np.float32) / 3
    total = values[::-1].copy()
    expected = total.copy()
    with np.errstate(over="ignore"):
        accumulate(planes.mask, planes.sign, scales, offsets, total)
        naive_accumulate(mask, sign, scales, offsets, expected)
    assert np.array_equal(total.view(np.int32), expected.view(np.int32))


def test_the_kept_values_are_the_largest_and_the_first_among_equals():
    values = np.array([1, -2, 0, 2, -2, 3], np.float32)
    planes = pack(values, np.array([0, 3, 6]), threshold(values, 3))
    assert np.unpackbits(planes.mask, bitorder="little").tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert np.unpackbits(planes.sign, bitorder="little").tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert planes.counts.tolist() == [1, 2]
    assert (planes.sums / 2.0**planes.shift).tolist() == [2, 5]


@pytest.mark.parametrize("value", [1e-45, 1.1754942e-38, 1.0, 3.4028235e38])
def test_sums_are_exact_at_the_ends_of_the_range(value):
    values = np.full(1000, value, np.float32)
    planes = pack(values, np.array([0, 1000]), threshold(values, 1000))
    assert Fraction(int(planes.sums[0]), 1) / Fraction(2) ** planes.shift == 1000 * Fraction(float(values[0]))
    assert planes.sums[0] < 1000 * 2**31


def test_zeros_are_never_marked():
    values = np.array([0, -0.0, 0], np.float32)
    planes = pack(values, np.array([0, 3]), threshold(values, 2))
    assert not planes.mask.any() and planes.shift == 0 and planes.counts.tolist() == [0]


def test_hints_take_no_part_in_comparisons():
    assert Threshold(5, 1, equal=2, shift=3) == Threshold(5, 1)


def test_refuses_what_does_not_fit():
    values = np.ones(9, np.float32)
    with pytest.raises(ValueError, match="10 of 9"):
        threshold(values, 10)
    byte, scales = np.zeros(1, np.uint8), np.ones(1, np.float32)
    with pytest.raises(ValueError, match="1 and 1 bytes do not fit 9"):
        accumulate(byte, byte, scales, np.array([0, 9]), values)
    two = np.zeros(2, np.uint8)
    with pytest.raises(ValueError, match="1 scales do not fit 2 tensors"):
        accumulate(two, two, scales, np.array([0, 3, 9]), values)

"""Marks and fields: round trips, cost over the entropy, and what is refused on reading."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.bit_io import BitReader, field_bits
from fedpeft.exchange.codecs.bitfields import (
    count_bits,
    fitting,
    read_counts,
    read_scales,
    scale_bits,
    write_counts,
    write_scales,
)
from fedpeft.exchange.codecs.sparse_positions import PositionCode

PATIENT = settings(max_examples=80, deadline=None, derandomize=True)
PERCENT = (1.2, 2, 3, 5, 10, 20, 30, 33.9, 34, 38, 42.9, 43, 50, 57, 60, 66, 80, 97, 99)
SEGMENTS = st.lists(arrays(np.bool_, st.integers(0, 60)), max_size=8)


def marks_of(segments):
    sizes = np.array([flags.size for flags in segments], np.int64)
    counts = np.array([np.count_nonzero(flags) for flags in segments], np.int64)
    return PositionCode(sizes, counts), np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *segments]))


def read_back(marks, bits):
    reader = BitReader(bits)
    read = marks.read(reader)
    return marks.positions(read, np.flatnonzero(reader.rest).astype(np.int32))


@given(SEGMENTS)
@PATIENT
def test_marks_survive_and_both_ends_measure_the_same_streams(segments):
    marks, positions = marks_of(segments)
    streams, unary = marks.write(positions)
    assert np.array_equal(read_back(marks, np.concatenate([*streams, unary])), positions)
    assert unary.size == 0 or unary[-1] == 1
    assert np.count_nonzero(unary) == marks.gaps.sum()


@given(SEGMENTS, st.binary(min_size=60, max_size=400))
@PATIENT
def test_any_bits_are_refused_or_the_only_code_of_their_marks(segments, noise):
    marks, _ = marks_of(segments)
    reader = BitReader.of(noise)
    try:
        read = marks.read(reader)
        ends = np.flatnonzero(reader.rest)[: int(marks.gaps.sum())].astype(np.int32)
        if ends.size != marks.gaps.sum():
            return
        positions = marks.positions(read, ends)
    except EnvelopeError:
        return
    assert np.array_equal(np.diff(np.searchsorted(positions, marks.offsets)), marks.counts)
    streams, unary = marks.write(positions)
    written = np.concatenate([*streams, unary])
    assert np.array_equal(written, BitReader.of(noise).bits[: written.size])


def entropy(share):
    parts = np.array([share / 2, share / 2, 1 - share])
    return -float((parts[parts > 0] * np.log2(parts[parts > 0])).sum())


@pytest.mark.parametrize("percent", PERCENT)
def test_marks_and_signs_cost_at_most_one_and_a_half_percent_over_the_entropy(percent):
    rng = np.random.default_rng(2)
    size = 400_000
    count = round(size * percent / 100)
    positions = np.sort(rng.choice(size, count, replace=False))
    streams, unary = PositionCode(np.array([size]), np.array([count])).write(positions)
    bits = sum(stream.size for stream in streams) + unary.size + count
    assert 0.999 < bits / (size * entropy(count / size)) < 1.015


def test_a_gap_may_not_jump_into_the_next_tensor():
    marks = PositionCode(np.array([4, 4]), np.array([1, 1]))
    read = marks.read(BitReader(np.array([0, 0, 0, 0], np.uint8)))
    assert marks.positions(read, np.array([0, 1], np.int32)).tolist() == [0, 4]
    with pytest.raises(EnvelopeError, match="outside its tensor"):
        marks.positions(read, np.array([3, 4], np.int32))
    with pytest.raises(EnvelopeError, match="outside its tensor"):
        marks.positions(read, np.array([0, 2**31 - 1], np.int32))


def test_positions_in_the_largest_layouts_survive():
    size = 1 << 28
    marks = PositionCode(np.array([size] * 3), np.array([1, 2, 1]))
    positions = np.array([size - 1, size, 2 * size - 1, 3 * size - 1])
    streams, unary = marks.write(positions)
    assert read_back(marks, np.concatenate([*streams, unary])).tolist() == positions.tolist()


@pytest.mark.parametrize(("size", "count", "place"), [(5, 2, 5), (11, 4, 11), (2, 1, 1), (4, 2, 0)])
def test_triples_and_bitmaps_need_the_claimed_number_and_empty_padding(size, count, place):
    marks = PositionCode(np.array([size]), np.array([count]))
    flags = np.zeros(size, np.bool_)
    flags[:count] = True
    streams, unary = marks.write(np.flatnonzero(flags))
    assert unary.size == 0
    read = marks.read(BitReader(np.concatenate(streams)))
    bits = read.triples if read.triples.size else read.bitmap
    bits[place] ^= 1
    with pytest.raises(EnvelopeError, match="another number of marks"):
        marks.positions(read, np.zeros(0, np.int32))


@given(st.lists(st.integers(0, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=9))
@PATIENT
def test_counts_survive_in_the_announced_bits(pairs):
    sizes, counts = np.array(pairs, np.int64).reshape(-1, 2).T
    bits = write_counts(sizes, counts)
    assert bits.size <= count_bits(sizes)
    reader = BitReader(bits)
    assert np.array_equal(read_counts(reader, sizes), counts) and not reader.rest.size


def test_counts_are_written_part_by_part():
    """Seven, none and one: orders 0, 1 and 2 take 11, 10 and 11 bits; lengths, heads and tails at order 1."""
    bits = write_counts(np.array([9, 9, 0, 9]), np.array([7, 0, 0, 1]))
    assert bits.tolist() == [0, 0, 0, 1, *(0, 0, 1, 1, 1), *(0, 0), *(1, 0, 1)]


@pytest.mark.parametrize(
    ("order", "counts", "reason"),
    [
        (0, (11, 1), "more values than it has"),
        (2, (3, 10), "more values than it has"),
        (3, (0, 0), "not written shortest"),
        (0, (9, 9), "not written shortest"),
    ],
)
def test_counts_that_are_too_large_or_not_shortest_are_refused(order, counts, reason):
    numbers = [(count >> order) + 1 for count in counts]
    unary = [(1, number.bit_length()) for number in numbers]
    heads = [(number - (1 << number.bit_length() - 1), number.bit_length() - 1) for number in numbers]
    tails = [(count & ((1 << order) - 1), order) for count in counts]
    bits = field_bits(*zip((order, 4), *unary, *heads, *tails, strict=True))
    with pytest.raises(EnvelopeError, match=reason):
        read_counts(BitReader(bits), np.array([10, 9]))


@pytest.mark.parametrize("bits", ["0000", "0000" + "0" * 31, "0000" + "0" * 40 + "11", "0001" + "11"])
def test_counts_that_never_end_are_refused(bits):
    with pytest.raises(EnvelopeError, match=r"cut off|too large"):
        read_counts(BitReader(np.array([*map(int, bits)], np.uint8)), np.array([10, 9]))


@given(st.lists(st.floats(0, 2.0**127, width=32), max_size=9))
@PATIENT
def test_fitted_scales_survive(means):
    scales = fitting(np.array(means, np.float64))
    assert np.all(scales <= np.array(means)) and np.array_equal(fitting(scales), scales)
    positive = scales[scales > 0]
    bits = write_scales(positive)
    assert bits.size <= scale_bits(positive.size)
    assert np.array_equal(read_scales(BitReader(bits), positive.size), positive)


@pytest.mark.parametrize("scales", [[1.0078125], [1.0, 2.0**-16], [1e-40], [0.0], [0.0, 1.0], [-1.0]])
def test_scales_that_the_fields_cannot_hold_are_refused(scales):
    with pytest.raises(ExchangeError, match="does not fit its field"):
        write_scales(np.array(scales, np.float32))


@pytest.mark.parametrize(
    ("biased", "width", "octaves", "reason"),
    [
        (127, 1, (1, 1), "start at the largest"),
        (127, 2, (0, 1), "too wide"),
        (127, 5, (0, 16), "too wide"),
        (0, 0, (0, 0), "normal range"),
        (255, 2, (0, 3), "normal range"),
        (5, 3, (0, 5), "normal range"),
    ],
)
def test_scale_fields_that_are_never_written_are_refused(biased, width, octaves, reason):
    bits = field_bits([biased, width, *(octave << 6 for octave in octaves)], [8, 3, width + 6, width + 6])
    with pytest.raises(EnvelopeError, match=reason):
        read_scales(BitReader(bits), 2)


def test_a_payload_without_scales_has_no_exponent():
    assert read_scales(BitReader(field_bits([0, 0], [8, 3])), 0).size == 0
    for fields in ((1, 0), (0, 1)):
        with pytest.raises(EnvelopeError, match=r"normal range|too wide"):
            read_scales(BitReader(field_bits(fields, [8, 3])), 0)

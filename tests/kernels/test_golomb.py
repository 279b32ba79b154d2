"""The vectorised Golomb code against a coder that works bit by bit."""

import math

import numpy as np
import pytest

from fedpeft_kernels import golomb


def naive_code(gap, modulus):
    """Unary and truncated binary bits of one gap, as in a textbook."""
    quotient, rest = divmod(gap, modulus)
    width = (modulus - 1).bit_length()
    cut = 2**width - modulus
    if rest < cut:
        binary = format(rest, f"0{width - 1}b") if width > 1 else ""
    else:
        binary = format(rest + cut, f"0{width}b") if width else ""
    return "0" * quotient + "1", binary


def naive_gaps(positions):
    previous, gaps = -1, []
    for position in positions:
        gaps.append(position - previous - 1)
        previous = position
    return gaps


def marked(size, share, rng):
    return np.flatnonzero(rng.random(size) < share)


@pytest.mark.parametrize("modulus", [1, 2, 3, 4, 5, 7, 8, 14, 69, 138])
def test_codes_equal_the_naive_coder(modulus):
    positions = marked(900, min(0.9, 0.7 / modulus), np.random.default_rng(modulus))
    codes = [naive_code(gap, modulus) for gap in naive_gaps(positions)]
    parts, unary = golomb.pack(positions, modulus)
    assert "".join(map(str, unary)) == "".join(code for code, _ in codes)

    low = golomb.Remainder(modulus).low
    planes, further = parts[:low], iter(parts[-1] if parts else [])
    for event, (_, binary) in enumerate(codes):
        high = "".join(str(plane[event]) for plane in reversed(planes))
        longer = len(binary) > low
        assert high + (str(next(further)) if longer else "") == binary
    assert next(further, None) is None


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.2, 0.38, 0.5])
@pytest.mark.parametrize("size", [1, 2, 63, 5000])
def test_round_trip(size, share):
    rng = np.random.default_rng(size)
    for _ in range(5):
        positions = marked(size, share, rng)
        modulus = golomb.parameter(size, positions.size)
        parts, unary = golomb.pack(positions, modulus)
        bits = np.concatenate([*parts, np.zeros(3, np.uint8)])
        rest, read = golomb.remainders(bits, positions.size, modulus)
        assert read == bits.size - 3
        assert np.array_equal(golomb.positions(np.flatnonzero(unary), rest, modulus, size), positions)


def test_the_parameter_is_near_the_best():
    for events in (10, 100, 500, 1000, 2000, 3000, 3700, 4000, 5000):
        share = events / 10_000

        def cost(modulus, share=share):
            quotient = (1 - share) ** modulus / (1 - (1 - share) ** modulus)
            width = (modulus - 1).bit_length()
            cut = 2**width - modulus
            longer = 1 - (1 - (1 - share) ** cut) / (1 - (1 - share) ** modulus)
            return quotient + 1 + (width - 1 + longer if width else 0)

        best = min(cost(modulus) for modulus in range(1, 2 * math.ceil(1 / share) + 2))
        assert cost(golomb.parameter(10_000, events)) <= 1.003 * best


def test_refuses_streams_that_are_cut_off_and_positions_outside():
    parts, unary = golomb.pack(np.array([5, 6, 40]), 7)
    bits = np.concatenate(parts)
    with pytest.raises(ValueError, match="cut off"):
        golomb.remainders(bits[:-1], 3, 7)
    with pytest.raises(ValueError, match="cut off"):
        golomb.remainders(bits[:2], 3, 7)
    rest, _ = golomb.remainders(bits, 3, 7)
    ends = np.flatnonzero(unary)
    assert golomb.positions(ends, rest, 7, 41).tolist() == [5, 6, 40]
    with pytest.raises(ValueError, match="outside"):
        golomb.positions(ends, rest, 7, 40)
    with pytest.raises(ValueError, match="outside"):
        golomb.positions(ends + 10**9, rest, 7, 41)

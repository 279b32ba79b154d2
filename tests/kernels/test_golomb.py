"""The vectorised Golomb code of many segments against a textbook coder that works gap by gap, bit by bit."""

import math
from fractions import Fraction

import numpy as np
import pytest

from fedpeft_kernels.golomb import Code, parameters

MODULI = (1, 2, 3, 4, 5, 7, 8, 14, 69, 138, 1 << 20, (1 << 20) + 1)


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


def naive_streams(segments):
    """The documented streams of (modulus, gaps) segments: planes over all of them, further bits, unary."""
    codes = [(*naive_code(gap, modulus), modulus) for modulus, gaps in segments for gap in gaps]
    lows = [max(0, (modulus - 1).bit_length() - 1) for _, _, modulus in codes]
    planes = [
        "".join(
            binary[low - 1 - plane] for (_, binary, _), low in zip(codes, lows, strict=True) if low > plane
        )
        for plane in range(max(lows, default=0))
    ]
    further = "".join(binary[low:] for (_, binary, _), low in zip(codes, lows, strict=True))
    return [*planes, further], "".join(unary for unary, _, _ in codes)


def text(bits):
    return "".join(map(str, bits))


def coded(segments):
    moduli = np.array([modulus for modulus, _ in segments], np.int64)
    code = Code.of(moduli, np.array([len(gaps) for _, gaps in segments], np.int64))
    gaps = np.array([gap for _, own in segments for gap in own], np.int32)
    return code, gaps, code.pack(gaps)


def gaps_of(code, unary, rest):
    """Gaps from quotients (zeros before each one) and remainders."""
    quotients = np.diff(np.flatnonzero(unary), prepend=-1) - 1
    return quotients * code.moduli + rest


def some_segments(rng, count):
    draws = [(int(rng.choice(MODULI)), int(rng.integers(0, 30))) for _ in range(count)]
    return [(modulus, rng.geometric(0.7 / modulus, events).tolist()) for modulus, events in draws]


CASES = {
    "no segment": [],
    "no gap": [(5, []), (1, [])],
    "empty between": [(3, [0, 1, 2, 3]), (9, []), (1, [4, 0])],
    "every modulus": [(modulus, [0, modulus - 1, modulus, 3 * modulus + 1]) for modulus in MODULI],
    "many": some_segments(np.random.default_rng(0), 60),
}


@pytest.mark.parametrize("segments", CASES.values(), ids=CASES.keys())
def test_streams_equal_the_textbook_coder(segments):
    _, _, (streams, unary) = coded(segments)
    expected, expected_unary = naive_streams(segments)
    assert [text(stream) for stream in streams] == expected
    assert text(unary) == expected_unary
    assert all(stream.dtype == np.uint8 for stream in (*streams, unary))


@pytest.mark.parametrize("segments", CASES.values(), ids=CASES.keys())
def test_round_trip(segments):
    code, gaps, (streams, unary) = coded(segments)
    bits = [*np.concatenate(streams), 7, 7]

    def take(count):
        taken, bits[:count] = bits[:count], []
        return np.array(taken, np.uint8)

    rest = code.remainders(take)
    assert bits == [7, 7]
    assert np.array_equal(gaps_of(code, unary, rest), gaps)


def test_every_bit_pattern_of_remainders_is_below_the_modulus():
    rng = np.random.default_rng(1)
    moduli = np.array(MODULI, np.int64)
    code = Code.of(moduli, np.full(moduli.size, 200, np.int64))
    for _ in range(20):
        rest = code.remainders(lambda count: rng.integers(0, 2, count, np.uint8))
        assert np.all((rest >= 0) & (rest < np.repeat(moduli, 200)))


def test_the_largest_gaps_survive():
    segments = [(parameter_of(1 << 30, 1), [(1 << 30) - 1]), (parameter_of(1 << 30, 2), [0, (1 << 30) - 2])]
    code, gaps, (streams, unary) = coded(segments)
    stream = iter(np.concatenate(streams))
    rest = code.remainders(lambda count: np.array([next(stream) for _ in range(count)], np.uint8))
    assert np.array_equal(gaps_of(code, unary, rest), gaps)


def parameter_of(size, events):
    return int(parameters(np.array([size]), np.array([events]))[0])


def test_parameters_follow_the_documented_law():
    """``floor(ln 2 / p + 1/6)`` up to the 16 bits that the integers have."""
    for size, events in [(1, 1), (2, 1), (3, 1), (1000, 1), (1000, 333), (3211264, 32113), (1 << 30, 1)]:
        exact = Fraction(45426, 65536) * Fraction(size, events) + Fraction(10922, 65536)
        assert parameter_of(size, events) == max(1, math.floor(exact))
        assert parameter_of(size, events) == pytest.approx(
            math.log(2) * size / events + 1 / 6, abs=1, rel=1e-5
        )
    assert parameters(np.array([0, 5, 1 << 30]), np.zeros(3, np.int64)).tolist() == [1, 1, 1]


def expected_bits(modulus, share):
    """Mean code length of a geometric gap."""
    quotient = (1 - share) ** modulus / (1 - (1 - share) ** modulus)
    width = (modulus - 1).bit_length()
    cut = 2**width - modulus
    longer = 1 - (1 - (1 - share) ** cut) / (1 - (1 - share) ** modulus)
    return quotient + 1 + (width - 1 + longer if width else 0)


@pytest.mark.parametrize("events", [10, 100, 500, 1000, 2000, 3000, 3700, 4000, 5000])
def test_the_parameter_is_near_the_best(events):
    share = events / 10_000
    best = min(expected_bits(modulus, share) for modulus in range(1, 2 * math.ceil(1 / share) + 2))
    assert expected_bits(parameter_of(10_000, events), share) <= 1.003 * best

"""The payloads of the sparse and sign codecs against coders that follow the documents bit by bit."""

from itertools import pairwise

import numpy as np
import pytest

from fedpeft.exchange import Context, DeadZone, Layout, MaskedSign, Sign, Ternary
from fedpeft.exchange.codecs.sparse_positions import PositionCode
from fedpeft.exchange.support import PublicSupport

LAYOUTS = {
    "none": Layout((), ()),
    "single value": Layout(("a",), ((1,),)),
    "single tensor": Layout(("a",), ((40, 7),)),
    "mixed": Layout(("a", "b", "c", "d"), ((3,), (50, 20), (1, 1), (8, 8))),
    "short": Layout(tuple("abcdefgh"), tuple((size,) for size in range(1, 9))),
}
DENSITIES = (0.0, 0.01, 0.2, 0.33, 0.36, 0.4, 0.46, 0.5, 0.58, 0.65, 0.8, 0.99, 1.0)
TRIPLES = {
    "000": "00",
    "001": "010",
    "010": "011",
    "100": "100",
    "011": "101",
    "101": "110",
    "110": "1110",
    "111": "1111",
}
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")


def random_values(layout, density, seed=0):
    """Heavy-tailed values; the density varies from tensor to tensor, so that all codes of marks occur."""
    rng = np.random.default_rng(seed)
    own = np.repeat(np.clip(density * rng.uniform(0.7, 1.3, len(layout.names)), 0, 1), layout.sizes)
    return (rng.standard_t(3, layout.size) * (rng.random(layout.size) < own)).astype(np.float32)


def bits_of(number, width):
    return format(number, f"0{width}b") if width else ""


def exponential_golomb(number, order):
    """Length in unary, the bits after the leading one, the low bits."""
    head = format((number >> order) + 1, "b")
    return "0" * (len(head) - 1) + "1", head[1:], bits_of(number & ((1 << order) - 1), order)


def naive_counts(sizes, counts):
    """The order that takes the fewest bits, then all lengths, all heads, all tails."""
    given = [count for size, count in zip(sizes, counts, strict=True) if size]
    codes = [[exponential_golomb(count, order) for count in given] for order in range(16)]
    texts = ["".join("".join(code[part] for code in own) for part in range(3)) for own in codes]
    order = min(range(16), key=lambda order: len(texts[order]))
    return bits_of(order, 4) + texts[order]


def naive_scales(scales):
    """Exponent of the largest and the bits of an octave, then octaves below the largest and significands."""
    pairs = [np.frexp(np.float64(scale)) for scale in scales]
    top = max((exponent for _, exponent in pairs), default=-126)
    width = int(max((top - e for _, e in pairs), default=0)).bit_length()
    fields = [bits_of(top - e, width) + bits_of(int(f * 128) - 64, 6) for f, e in pairs]
    return bits_of(top + 126 if pairs else 0, 8) + bits_of(width, 3) + "".join(fields)


def golomb(gap, modulus):
    """Unary quotient and truncated binary remainder, least significant bit first, the further bit apart."""
    quotient, rest = divmod(gap, modulus)
    width = (modulus - 1).bit_length()
    further = ""
    if width and rest >= (cut := 2**width - modulus):
        rest, further = (rest + cut) >> 1, str((rest + cut) & 1)
    return "0" * quotient + "1", [str(rest >> bit & 1) for bit in range(max(0, width - 1))], further


def naive_gaps(segments):
    """Golomb codes of the marked positions: planes over all segments, further bits; and the unary stream."""
    codes = []
    for flags in segments:
        size, places = len(flags), [index for index, flag in enumerate(flags) if flag]
        if places:
            modulus = max(1, (45426 * size + 10922 * len(places)) // (65536 * len(places)))
            gaps = [b - a - 1 for a, b in pairwise([-1, *places])]
            codes += [golomb(gap, modulus) for gap in gaps]
    depth = max((len(low) for _, low, _ in codes), default=0)
    planes = "".join("".join(low[p] for _, low, _ in codes if len(low) > p) for p in range(depth))
    return planes + "".join(further for *_, further in codes), "".join(unary for unary, *_ in codes)


def naive_triples(segments):
    """First bits of all triples, second bits, the third of most and the fourth of the rarest."""
    padded = ["".join("01"[flag] for flag in flags) + "0" * (-len(flags) % 3) for flags in segments]
    codes = [TRIPLES[text[i : i + 3]] for text in padded for i in range(0, len(text), 3)]
    return "".join("".join(code[bit] for code in codes if len(code) > bit) for bit in range(4))


def kind_of(flags):
    """Which code a segment gets, by the share of the positions that are coded."""
    share = 100 * sum(flags)
    if not flags or share < 34 * len(flags):
        return "gaps"
    return "triples" if share < 43 * len(flags) else "bitmap"


def naive_marks(segments):
    """All streams of marks in order, and the unary stream."""
    kinds = {"gaps": [], "triples": [], "bitmap": []}
    for flags in segments:
        flipped = 2 * sum(flags) > len(flags)
        own = [flag != flipped for flag in flags]
        kinds[kind_of(own)].append(own)
    streams, unary = naive_gaps(kinds["gaps"])
    bitmap = "".join("01"[flag] for flags in kinds["bitmap"] for flag in flags)
    return streams + naive_triples(kinds["triples"]) + bitmap, unary


def packed(*parts):
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def tensors_of(values, layout):
    return [part.reshape(-1).tolist() for part in layout.split(values).values()]


def naive_sparse_payload(tensors, levels):
    """Ternary has one level, dead-zone three: each further group marks which values are above a level."""
    groups = [[[value != 0 for value in tensor] for tensor in tensors]]
    scales = [min((abs(v) for v in tensor if v), default=0) for tensor in tensors]
    for level in range(1, levels):
        ratios = [
            [abs(v) / s for v in tensor if abs(v) >= 2 ** (level - 1) * s > 0]
            for tensor, s in zip(tensors, scales, strict=True)
        ]
        groups.append([[ratio >= 2**level for ratio in own] for own in ratios])
    fields = [naive_counts(list(map(len, group)), list(map(sum, group))) for group in groups]
    streams, unary = naive_marks([flags for group in groups for flags in group])
    signs = "".join("1" if value < 0 else "0" for tensor in tensors for value in tensor if value)
    return packed(*fields, naive_scales([s for s in scales if s]), streams, signs, unary)


def naive_sign_payload(tensors):
    sent = [any(tensor) for tensor in tensors]
    scales = [abs(tensor[0]) for tensor in tensors if any(tensor)]
    signs = "".join("1" if value < 0 else "0" for tensor in tensors if any(tensor) for value in tensor)
    return packed("".join("01"[flag] for flag in sent), naive_scales(scales), signs)


@pytest.mark.parametrize("codec", [Ternary(), DeadZone()], ids=lambda codec: codec.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("density", DENSITIES)
def test_sparse_payloads_equal_the_naive_coder(codec, layout, density):
    levels = 1 if codec.name == "ternary" else 3
    for seed in range(3):
        fitted = codec.fit(random_values(layout, density, seed), layout)
        payload = codec.encode(fitted, layout)
        assert payload == naive_sparse_payload(tensors_of(fitted, layout), levels)
        assert payload == codec.encode(fitted, layout, np.flatnonzero(fitted))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("empty", [False, True])
def test_sign_payloads_equal_the_naive_coder(layout, empty):
    values = random_values(layout, 1.0)
    if empty and layout.names:
        values[: layout.sizes[0]] = 0
    fitted = Sign().fit(values, layout)
    assert Sign().encode(fitted, layout) == naive_sign_payload(tensors_of(fitted, layout))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("density", [0.05, 0.4, 1.0])
def test_masked_sign_payloads_are_those_of_the_values_on_the_support(layout, density):
    codec = MaskedSign(PublicSupport(density)).at(CONTEXT, None)
    fitted = codec.fit(random_values(layout, 1.0), layout)
    support = codec.decode(codec.encode(fitted, layout), layout).positions
    ends = np.searchsorted(support, layout.offsets)
    pieces = [fitted[support][a:b].tolist() for a, b in pairwise(ends)]
    assert codec.encode(fitted, layout) == naive_sign_payload(pieces)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.339, 0.34, 0.38, 0.429, 0.43, 0.5, 0.57, 0.6, 0.66, 0.9, 1.0])
def test_streams_of_marks_equal_the_naive_coder(share):
    rng = np.random.default_rng(5)
    sizes = np.array([1000, 0, 1, 2, 3, 4, 5, 500], np.int64)
    counts = np.array([round(share * size) for size in sizes], np.int64)
    segments = [rng.permutation(np.arange(size) < n).tolist() for size, n in zip(sizes, counts, strict=True)]
    streams, unary = PositionCode(sizes, counts).write(np.flatnonzero(np.concatenate(segments)))
    expected, expected_unary = naive_marks(segments)
    assert "".join(map(str, np.concatenate(streams))) == expected
    assert "".join(map(str, unary)) == expected_unary


def test_the_code_of_triples_is_complete():
    codes = list(TRIPLES.values())
    assert sum(2.0 ** -len(code) for code in codes) == 1
    assert not any(a != b and a.startswith(b) for a in codes for b in codes)

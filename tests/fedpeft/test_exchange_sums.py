"""Sums of envelopes without making them dense: exactness, order, weights, memory, reproducibility."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from fedpeft.aggregation import mean_step, weighted_sum
from fedpeft.errors import ExchangeError
from fedpeft.exchange import (
    Context,
    DeadZone,
    Decoded,
    Layout,
    MaskedSign,
    PublicSupport,
    Sign,
    Sparsify,
    Ternary,
    Update,
    codec_named,
)

CODECS = {
    name: codec_named(name) for name in ("dense-fp32", "dense-bf16", "int8", "ternary", "sign", "dead-zone")
}

LAYOUT = Layout(("a", "b", "c"), ((40, 10), (150,), (1,)))
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
EVERY = {**CODECS, "masked-sign": MaskedSign(PublicSupport(0.3)).at(CONTEXT, None)}


def received(codec, seed, density=0.3, spread=0.0, layout=LAYOUT):
    """What the coordinator decodes of one node, whose scale is up to 2^spread times another's."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(4, layout.size) * 2.0 ** (spread * rng.random())
    update = Update(layout, values.astype(np.float32), round=3, steps=1)
    sparse, _ = Sparsify(density).apply(update, {})
    return codec.decode(codec.encode(fitted := codec.fit(sparse.values, layout), layout), layout), fitted


def summed(decoded, weights=None):
    total = np.zeros(LAYOUT.size, np.float32)
    for part, weight in zip(decoded, weights or [1.0] * len(decoded), strict=True):
        part.add_to(total, weight)
    return total


@pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY.keys())
def test_adding_changes_what_is_sent_and_nothing_else(codec):
    decoded, fitted = received(codec, 0)
    start = np.random.default_rng(1).standard_normal(LAYOUT.size).astype(np.float32)
    total = start.copy()
    decoded.add_to(total)
    assert np.array_equal(total, start + fitted)
    assert np.array_equal(decoded.dense(), fitted)


@pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY.keys())
def test_sums_equal_one_float32_product_and_sum_per_element(codec):
    parts, dense = zip(*(received(codec, seed) for seed in range(7)), strict=True)
    weights = [1.0, 0.3, 2.0, 1.0, 17.0, 0.125, 1.0]
    expected = np.zeros(LAYOUT.size, np.float32)
    for values, weight in zip(dense, weights, strict=True):
        expected = expected + values * np.float32(weight)
    assert np.array_equal(summed(parts, weights), expected)


@pytest.mark.parametrize(
    ("codec", "spread"),
    [(Ternary(), 9.0), (Sign(), 9.0), (EVERY["masked-sign"], 9.0), (DeadZone(), 7.0)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_sums_are_exact_and_free_of_order_under_the_stated_law(codec, spread):
    """Scales within 2^(17 - log2 n) of one another, a fourth of that for dead-zone, for n = 64 nodes."""
    parts, dense = zip(*(received(codec, seed, spread=spread) for seed in range(64)), strict=True)
    scales = np.array([np.abs(first[first != 0]).min() for first in (v[:400] for v in dense)])
    assert scales.max() / scales.min() <= 2 ** (spread + 2)
    exact = np.sum(np.stack(dense).astype(np.float64), axis=0)
    base = summed(parts)
    assert np.array_equal(base, exact)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(64)
        assert np.array_equal(summed([parts[index] for index in order]), base)


@pytest.mark.parametrize("nodes", [2, 16, 1024])
@pytest.mark.parametrize("small", [65 / 64, 127 / 64])
def test_the_law_holds_at_its_edge(nodes, small):
    """One node has the least scale, with all seven bits used, the others the largest that is allowed."""
    large = small * 2.0**17 / nodes
    ends = [Decoded(Layout(("a",), ((1,),)), np.array([scale], np.float32)) for scale in (small, large)]
    for order in ([0] + [1] * (nodes - 1), [1] * (nodes - 1) + [0]):
        total = np.zeros(1, np.float32)
        for index in order:
            ends[index].add_to(total)
        assert Fraction(float(total[0])) == Fraction(small) + (nodes - 1) * Fraction(large)


def test_shared_scales_give_integers():
    """Where all nodes share a scale the sum counts votes, exactly and in any order."""
    rng = np.random.default_rng(0)
    votes = rng.integers(-1, 2, (200, LAYOUT.size))
    scales = np.repeat(np.array([93 / 64, 2.0**-11, 127 / 64 * 2.0**-3]), LAYOUT.sizes).astype(np.float32)
    coder = Ternary()
    parts = [coder.decode(coder.encode((row * scales).astype(np.float32), LAYOUT), LAYOUT) for row in votes]
    counted = summed(parts) / scales
    assert np.array_equal(counted, votes.sum(axis=0))
    assert np.array_equal(summed(parts[::-1]), summed(parts))


def contributions(nodes, codec=EVERY["ternary"], layout=LAYOUT):
    """Decoded one at a time, as the coordinator does."""
    for index in range(nodes):
        yield f"node-{index:05d}", 1.0 + index % 3, received(codec, index % 5, layout=layout)[0]


@pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY.keys())
def test_the_mean_is_the_weighted_mean_and_reproducible_to_the_bit(codec):
    total, weight = weighted_sum(LAYOUT.size, contributions(6, codec))
    again, _ = weighted_sum(LAYOUT.size, contributions(6, codec))
    assert total.dtype == np.float32 and total.tobytes() == again.tobytes()
    vectors, weights = zip(*((part.dense(), w) for _, w, part in contributions(6, codec)), strict=True)
    expected = np.average(np.stack(vectors).astype(np.float64), axis=0, weights=weights)
    mean = mean_step(LAYOUT.size, contributions(6, codec))
    assert mean.dtype == np.float64 and weight == sum(weights)
    assert np.allclose(mean, expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(mean, total / np.float64(weight))


def peak_bytes(nodes, codec, layout):
    parts = contributions(nodes, codec, layout)
    held = [next(parts)[2] for _ in range(2)]

    def lazily():
        for index in range(nodes):
            yield f"node-{index:05d}", 1.0, held[index % 2]

    tracemalloc.start()
    weighted_sum(layout.size, lazily())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", ["ternary", "sign", "dense-bf16"])
def test_memory_does_not_grow_with_the_number_of_nodes(name):
    layout = Layout(("a", "b"), ((300, 100), (20_000,)))
    few, many = (peak_bytes(nodes, EVERY[name], layout) for nodes in (3, 60))
    assert many <= 1.05 * few + 10_000
    assert many <= 12 * layout.size + 2_000_000


def test_streaming_holds_one_envelope_at_a_time():
    """With decoding inside the stream, too, the peak is that of one envelope."""
    layout = Layout(("a", "b"), ((300, 100), (20_000,)))
    payloads = [
        Ternary().encode(received(Ternary(), seed, 0.05, layout=layout)[1], layout) for seed in range(3)
    ]

    def peak(nodes):
        parts = ((f"{n:05d}", 1.0, Ternary().decode(payloads[n % 3], layout)) for n in range(nodes))
        tracemalloc.start()
        weighted_sum(layout.size, parts)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(3)
    assert peak(60) <= 1.05 * peak(3) + 10_000


@pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY.keys())
def test_counts_of_signs_are_those_of_the_dense_values(codec):
    decoded, fitted = received(codec, 3)
    parts = np.split(fitted, LAYOUT.offsets[1:-1])
    expected = [[np.count_nonzero(part > 0), np.count_nonzero(part < 0)] for part in parts]
    assert decoded.sign_counts().tolist() == expected
    assert decoded.nonzero == np.count_nonzero(fitted)


def test_sums_refuse_another_layout():
    other = received(Ternary(), 0, layout=Layout(("a",), ((7,),)))[0]
    with pytest.raises(ExchangeError, match="expected 551 values, got 7"):
        weighted_sum(LAYOUT.size, [("a", 1.0, other)])

"""Every codec: exact round trips, fits against naive twins, refusals."""

import math
from itertools import pairwise

import numpy as np
import pytest

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import (
    AnyOf,
    Context,
    DeadZone,
    Decoded,
    Int8,
    Layout,
    MaskedSign,
    PublicSupport,
    Sign,
    Sparsify,
    Ternary,
    Update,
    codec_named,
    entropy_bits,
)
from fedpeft.exchange.codecs.dithered import Dithered2

CODECS = {
    name: codec_named(name) for name in ("dense-fp32", "dense-bf16", "int8", "ternary", "sign", "dead-zone")
}

LAYOUTS = {
    "none": Layout((), ()),
    "single value": Layout(("a",), ((1,),)),
    "single tensor": Layout(("a",), ((40, 7),)),
    "mixed": Layout(("a", "b", "c", "d"), ((3,), (50, 20), (1, 1), (8, 8))),
}
DENSITIES = (0.0, 0.01, 0.2, 0.38, 0.5, 0.8, 1.0)
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
EVERY = {
    **CODECS,
    "masked-sign": MaskedSign(PublicSupport(0.3)).at(CONTEXT, None),
    "dithered-2": Dithered2(PublicSupport(1.0)).at(CONTEXT),
}
ROUNDING = {name: codec for name, codec in EVERY.items() if name != "dense-fp32"}
PER_TENSOR = {name: codec for name, codec in ROUNDING.items() if name != "dense-bf16"}


def random_values(layout, density, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, layout.size) * (rng.random(layout.size) < density)
    return values.astype(np.float32)


def same_bits(left, right):
    return left.dtype == right.dtype == np.float32 and np.array_equal(
        left.view(np.uint32), right.view(np.uint32)
    )


def norms(values, layout):
    """Exact squared norm of each tensor."""
    return [math.fsum(float(v) ** 2 for v in values[a:b]) for a, b in pairwise(layout.offsets)]


@pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY.keys())
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("density", DENSITIES)
def test_what_is_fitted_is_carried_bit_for_bit(codec, layout, density):
    values = random_values(layout, density)
    fitted = codec.fit(values, layout)
    assert same_bits(codec.fit(fitted, layout), fitted)
    payload = codec.encode(fitted, layout)
    assert len(payload) <= codec.max_bytes(layout)
    decoded = codec.decode(payload, layout)
    assert same_bits(decoded.dense(), fitted)
    assert codec.encode(decoded.dense(), layout) == payload
    assert decoded.nonzero == np.count_nonzero(fitted)


@pytest.mark.parametrize("codec", [Ternary(), DeadZone()], ids=lambda codec: codec.name)
@pytest.mark.parametrize("density", DENSITIES)
def test_a_known_support_changes_nothing(codec, density):
    layout = LAYOUTS["mixed"]
    values = random_values(layout, density)
    fitted = codec.fit(values, layout, np.flatnonzero(values))
    assert same_bits(fitted, codec.fit(values, layout))
    support = np.flatnonzero(fitted)
    assert codec.encode(fitted, layout, support) == codec.encode(fitted, layout)
    assert np.array_equal(codec.decode(codec.encode(fitted, layout), layout).positions, support)


@pytest.mark.parametrize("scale", [1e-37, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("codec", ROUNDING.values(), ids=ROUNDING.keys())
def test_extreme_magnitudes_survive(codec, scale):
    layout = LAYOUTS["mixed"]
    fitted = codec.fit(random_values(layout, 0.5) * np.float32(scale), layout)
    assert same_bits(codec.decode(codec.encode(fitted, layout), layout).dense(), fitted)


@pytest.mark.parametrize("codec", [Ternary(), Sign(), DeadZone()], ids=lambda codec: codec.name)
def test_tensors_of_very_different_magnitude(codec):
    layout = Layout(("a", "b", "c"), ((4,), (4,), (4,)))
    values = np.repeat([1.0, 2.0**-15, 2.0**-16], 4).astype(np.float32)
    fitted = codec.fit(values, layout)
    assert fitted[:8].tolist() == values[:8].tolist()
    assert not fitted[8:].any()
    assert same_bits(codec.decode(codec.encode(fitted, layout), layout).dense(), fitted)


def rounded_down(scale):
    octave = 2.0 ** (math.floor(math.log2(scale)) - 6)
    return scale // octave * octave


def naive_one_magnitude(tensor, everywhere):
    """Sign times mean magnitude of the values that are not zero, or of all."""
    kept = [abs(float(v)) for v in tensor if v or everywhere]
    if not any(kept):
        return [0.0] * len(tensor)
    scale = rounded_down(sum(kept) / len(kept))
    return [math.copysign(scale, v) if v else scale * everywhere for v in tensor]


def naive_dead_zone(tensor):
    """Twice: the nearest of one, two and four scales for each magnitude, then the best scale for these."""
    kept = [abs(float(v)) for v in tensor if v]
    if not kept:
        return [0.0] * len(tensor)
    scale, levels = min(kept), []
    for _ in range(2):
        levels = [1 if m < 1.5 * scale else 2 if m < 3 * scale else 4 for m in kept]
        best = sum(m * f for m, f in zip(kept, levels, strict=True)) / sum(f * f for f in levels)
        scale = rounded_down(best)
    rest = iter(levels)
    return [math.copysign(scale * next(rest), v) if v else 0.0 for v in tensor]


FITS = {
    "ternary": lambda tensor: naive_one_magnitude(tensor, False),
    "sign": lambda tensor: naive_one_magnitude(tensor, True),
    "dead-zone": naive_dead_zone,
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_fits_equal_the_naive_twin(name, density):
    layout = LAYOUTS["mixed"]
    values = random_values(layout, density)
    expected = [FITS[name](values[a:b].tolist()) for a, b in pairwise(layout.offsets)]
    assert codec_named(name).fit(values, layout).tolist() == sum(expected, [])  # noqa: RUF017


@pytest.mark.parametrize("codec", [Ternary(), Sign(), DeadZone(), EVERY["masked-sign"]], ids=lambda c: c.name)
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_the_norm_of_no_tensor_grows(codec, density):
    layout = LAYOUTS["mixed"]
    for seed in range(5):
        values = random_values(layout, density, seed)
        pairs = zip(norms(codec.fit(values, layout), layout), norms(values, layout), strict=True)
        assert all(after <= before for after, before in pairs)


@pytest.mark.parametrize("density", [0.02, 0.05, 0.2])
def test_seven_levels_lose_less_than_three_on_the_same_support(density):
    layout = Layout(("a", "b"), ((100, 50), (300,)))
    for seed in range(5):
        update = Update(layout, random_values(layout, 1.0, seed), round=1, steps=1)
        values = Sparsify(density).apply(update, {})[0].values
        lost = [np.linalg.norm(codec.fit(values, layout) - values) for codec in (DeadZone(), Ternary())]
        assert lost[0] < 0.9 * lost[1]


def test_dead_zone_vectors_have_one_form():
    """Levels two and four without one are levels one and two of twice the scale."""
    layout = Layout(("a",), ((6,),))
    for values in ([2, 4, 4, 2, 0, -2], [4, -4, 0, 0, 4, 4], [1, 4, 0, 0, 0, 1]):
        given = np.array(values, np.float32)
        assert same_bits(DeadZone().fit(given, layout), given)
        payload = DeadZone().encode(given, layout)
        assert same_bits(DeadZone().decode(payload, layout).dense(), given)
    twice = DeadZone().encode(np.array([2, 4, 4, 2, 0, -2], np.float32), layout)
    once = DeadZone().encode(np.array([1, 2, 2, 1, 0, -1], np.float32), layout)
    assert len(twice) == len(once) and twice != once


def test_bf16_rounds_like_torch():
    import torch

    extra = np.array([1.00390625, 1.01171875, -0.0], np.float32)
    values = np.concatenate([random_values(LAYOUTS["mixed"], 1.0), extra])
    layout = Layout(("a",), (values.shape,))
    ours = codec_named("dense-bf16").fit(values, layout)
    assert same_bits(ours, torch.from_numpy(values).bfloat16().float().numpy())


def test_int8_rounds_to_the_nearest_multiple():
    layout = LAYOUTS["single tensor"]
    values = random_values(layout, 1.0)
    fitted = Int8().fit(values, layout)
    step = np.abs(values).max() / 127
    assert np.abs(fitted - values).max() <= 0.501 * step
    assert np.unique(np.rint(fitted / step)).size > 20


@pytest.mark.parametrize("codec", ROUNDING.values(), ids=ROUNDING.keys())
def test_encode_refuses_what_it_cannot_carry(codec):
    layout = LAYOUTS["single tensor"]
    with pytest.raises(ExchangeError, match=r"put (Ternarise|Quantise)\("):
        codec.encode(random_values(layout, 1.0), layout)


@pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY.keys())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_encode_refuses_values_that_are_not_finite(codec, bad, everywhere):
    layout = LAYOUTS["single tensor"]
    values = np.full(layout.size, bad if everywhere else 0, np.float32)
    values[3] = bad
    with pytest.raises(ExchangeError):
        codec.encode(values, layout)


@pytest.mark.parametrize("codec", [Ternary(), Sign(), DeadZone()], ids=lambda codec: codec.name)
def test_scales_that_the_field_cannot_hold_are_refused(codec):
    layout = Layout(("a", "b"), ((2,), (2,)))
    for pair in ([1.001, 0], [1.0, 2.0**-16], [1e-40, 0]):
        with pytest.raises(ExchangeError, match="does not fit its field"):
            codec.encode(np.repeat(np.array(pair, np.float32), 2), layout)


@pytest.mark.parametrize("name", ["int8", "dense-bf16", "dead-zone"])
def test_values_that_overflow_are_refused(name):
    values = np.array([0.3, 0.3, 0.3, 0.3, 1.0], np.float32) * np.finfo(np.float32).max
    with pytest.raises(ExchangeError):
        codec_named(name).fit(values, Layout(("a",), ((5,),)))


@pytest.mark.parametrize("codec", [Ternary(), Sign()], ids=lambda codec: codec.name)
def test_the_largest_floats_are_carried(codec):
    layout = Layout(("a",), ((3,),))
    fitted = codec.fit(np.full(3, np.finfo(np.float32).max, np.float32), layout)
    assert same_bits(codec.decode(codec.encode(fitted, layout), layout).dense(), fitted)


@pytest.mark.parametrize("codec", PER_TENSOR.values(), ids=PER_TENSOR.keys())
def test_fitted_values_hold_no_negative_zero(codec):
    layout = LAYOUTS["mixed"]
    values = random_values(layout, 0.5) * np.float32(-1)
    fitted = codec.fit(values, layout)
    assert np.signbit(values[values == 0]).any() and not np.signbit(fitted[fitted == 0]).any()


def test_unknown_codecs_name_those_there_are():
    with pytest.raises(ExchangeError, match="dense-fp32"):
        codec_named("gzip")


def test_every_codec_has_its_own_number():
    assert len({codec.wire_id for codec in (*EVERY.values(), AnyOf(()))}) == len(EVERY) + 1


@pytest.mark.parametrize("name", ["dense-fp32", "dense-bf16", "int8"])
def test_dense_payloads_have_one_length(name):
    codec, layout = codec_named(name), LAYOUTS["mixed"]
    payload = codec.encode(codec.fit(random_values(layout, 1.0), layout), layout)
    for other in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(EnvelopeError, match="bytes"):
            codec.decode(other, layout)


def test_entropy_of_known_mixtures():
    layout = Layout(("a", "b"), ((8,), (4,)))
    values = np.array([1, -1, 0, 0, 0, 0, 0, 0, 2, 2, -2, -2], np.float32)
    expected = 8 * (0.75 * np.log2(4 / 3) + 2 * 0.125 * 3) + 4
    assert entropy_bits(values, layout) == pytest.approx(expected)
    positions = np.flatnonzero(values)
    assert entropy_bits(Decoded(layout, values[positions], positions), layout) == pytest.approx(expected)
    assert entropy_bits(np.zeros(12, np.float32), layout) == 0

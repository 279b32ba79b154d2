"""Every codec: exact round trips, naive twins, refusals."""

import numpy as np
import pytest

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import CODECS, Layout, codec_named, entropy_bits

LAYOUTS = {
    "none": Layout((), ()),
    "single value": Layout(("a",), ((1,),)),
    "single tensor": Layout(("a",), ((40, 7),)),
    "mixed": Layout(("a", "b", "c", "d"), ((3,), (50, 20), (1, 1), (8, 8))),
}
DENSITIES = (0.0, 0.01, 0.2, 0.38, 0.5, 0.8, 1.0)


def random_values(layout, density, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, layout.size) * (rng.random(layout.size) < density)
    return values.astype(np.float32)


def same_bits(left, right):
    return left.dtype == right.dtype == np.float32 and np.array_equal(
        left.view(np.uint32), right.view(np.uint32)
    )


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("density", DENSITIES)
def test_what_is_fitted_is_carried_bit_for_bit(name, layout, density):
    codec = codec_named(name)
    fitted = codec.fit(random_values(layout, density), layout)
    assert same_bits(codec.fit(fitted, layout), fitted)
    payload = codec.encode(fitted, layout)
    assert len(payload) <= codec.max_bytes(layout)
    assert same_bits(codec.decode(payload, layout), fitted)
    assert codec.encode(codec.decode(payload, layout), layout) == payload


@pytest.mark.parametrize("scale", [1e-37, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("name", ["ternary", "int8", "dense-bf16"])
def test_extreme_magnitudes_survive(name, scale):
    codec, layout = codec_named(name), LAYOUTS["mixed"]
    values = random_values(layout, 0.5) * np.float32(scale)
    fitted = codec.fit(values, layout)
    assert same_bits(codec.decode(codec.encode(fitted, layout), layout), fitted)


def test_tensors_of_very_different_magnitude():
    codec, layout = codec_named("ternary"), Layout(("a", "b", "c"), ((4,), (4,), (4,)))
    values = np.repeat([1.0, 2.0**-15, 2.0**-16], 4).astype(np.float32)
    fitted = codec.fit(values, layout)
    assert fitted[:8].tolist() == values[:8].tolist()
    assert not fitted[8:].any()
    assert same_bits(codec.decode(codec.encode(fitted, layout), layout), fitted)


def naive_ternary_fit(values, layout):
    result = np.zeros_like(values)
    for start, end in zip(layout.offsets[:-1], layout.offsets[1:], strict=True):
        kept = [abs(float(v)) for v in values[start:end] if v]
        if not kept:
            continue
        mean = sum(kept) / len(kept)
        octave = 2.0 ** (np.floor(np.log2(mean)) - 6)
        result[start:end] = np.sign(values[start:end]) * (mean // octave) * octave
    return result


def test_ternary_fit_equals_the_naive_twin_and_never_raises_the_norm():
    layout = LAYOUTS["mixed"]
    values = random_values(layout, 0.3)
    fitted = codec_named("ternary").fit(values, layout)
    assert np.array_equal(fitted, naive_ternary_fit(values, layout))
    for name, part in layout.split(fitted).items():
        assert np.linalg.norm(part) <= np.linalg.norm(layout.split(values)[name])


def naive_ternary_payload(values, layout):
    """The documented bit string, gap by gap."""
    scales, counts, rests, unary = [], [], [], []
    for part in layout.split(values).values():
        flat = part.reshape(-1)
        nonzero = int(np.count_nonzero(flat))
        counts.append((nonzero, flat.size))
        if nonzero:
            scales.append(np.frexp(np.abs(flat).max()))
        inverted = 2 * nonzero > flat.size
        positions = [i for i, value in enumerate(flat) if (value == 0) == inverted]
        if not positions:
            continue
        n, m = flat.size, len(positions)
        modulus = max(1, (45426 * n + 10922 * m) // (65536 * m))
        width = (modulus - 1).bit_length()
        cut, planes, extra, previous = 2**width - modulus, [], "", -1
        for position in positions:
            quotient, rest = divmod(position - previous - 1, modulus)
            previous = position
            unary.append("0" * quotient + "1")
            if rest >= cut and width:
                extra += str((rest + cut) % 2)
                rest = (rest + cut) // 2
            planes.append(rest)
        low = "".join(str(rest >> j & 1) for j in range(max(0, width - 1)) for rest in planes)
        rests.append(low + extra)
    top = max((e for _, e in scales), default=-126)
    spare = 31
    while any(n > 1 and n.bit_length() > size.bit_length() - spare for n, size in counts):
        spare -= 1
    fields = [format(top + 126, "08b") if scales else "0" * 8, format(spare, "05b")]
    fields += [format(n, f"0{max(1, size.bit_length() - spare)}b") for n, size in counts]
    fields += [format(top - e, "04b") + format(int(f * 128) - 64, "06b") for f, e in scales]
    signs = "".join("1" if value < 0 else "0" for value in values if value)
    bits = "".join([*fields, *rests, signs, *unary])
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("density", DENSITIES)
def test_ternary_payload_equals_the_naive_coder(layout, density):
    codec = codec_named("ternary")
    fitted = codec.fit(random_values(layout, density, seed=3), layout)
    assert codec.encode(fitted, layout) == naive_ternary_payload(fitted, layout)


def test_bf16_rounds_like_torch():
    import torch

    values = np.concatenate(
        [random_values(LAYOUTS["mixed"], 1.0), np.float32([1.00390625, 1.01171875, -0.0])]
    )
    layout = Layout(("a",), (values.shape,))
    ours = codec_named("dense-bf16").fit(values, layout)
    assert same_bits(ours, torch.from_numpy(values).bfloat16().float().numpy())


def test_int8_rounds_to_the_nearest_multiple():
    layout = LAYOUTS["single tensor"]
    values = random_values(layout, 1.0)
    fitted = codec_named("int8").fit(values, layout)
    step = np.abs(values).max() / 127
    assert np.abs(fitted - values).max() <= 0.501 * step
    assert np.unique(np.rint(fitted / step)).size > 20


@pytest.mark.parametrize("name", ["ternary", "int8", "dense-bf16"])
def test_encode_refuses_what_it_cannot_carry(name):
    layout = LAYOUTS["single tensor"]
    with pytest.raises(ExchangeError, match=r"put (Ternarise|Quantise)\("):
        codec_named(name).encode(random_values(layout, 1.0), layout)


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_values_that_are_not_finite(name, bad):
    layout = LAYOUTS["single tensor"]
    values = np.zeros(layout.size, np.float32)
    values[3] = bad
    with pytest.raises(ExchangeError):
        codec_named(name).encode(values, layout)


def test_ternary_refuses_scales_that_its_field_cannot_hold():
    codec, layout = codec_named("ternary"), Layout(("a", "b"), ((2,), (2,)))
    for pair in ([1.001, 0], [1.0, 2.0**-16], [1e-40, 0]):
        with pytest.raises(ExchangeError, match="Ternarise"):
            codec.encode(np.repeat(np.float32(pair), 2), layout)


def test_values_that_overflow_are_refused():
    layout = Layout(("a",), ((2,),))
    huge = np.full(2, np.finfo(np.float32).max, np.float32)
    for name in ("int8", "dense-bf16"):
        with pytest.raises(ExchangeError):
            codec_named(name).fit(huge, layout)


def test_an_unknown_codec_names_those_there_are():
    with pytest.raises(ExchangeError, match="dense-fp32"):
        codec_named("gzip")


@pytest.mark.parametrize("name", ["dense-fp32", "dense-bf16", "int8"])
def test_dense_payloads_have_one_length(name):
    codec, layout = codec_named(name), LAYOUTS["mixed"]
    payload = codec.encode(codec.fit(random_values(layout, 1.0), layout), layout)
    for other in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(EnvelopeError, match="bytes"):
            codec.decode(other, layout)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 3e38, -1.0, -0.0, 1e-40, 1.0000001])
@pytest.mark.parametrize("codes", [(127, 0), (0, 0)])
def test_int8_scales_that_encode_never_makes_are_refused(scale, codes):
    payload = np.float32(scale).tobytes() + bytes(codes)
    with pytest.raises(EnvelopeError, match="scale"):
        codec_named("int8").decode(payload, Layout(("a",), ((2,),)))


def test_entropy_of_known_mixtures():
    layout = Layout(("a", "b"), ((8,), (4,)))
    values = np.float32([1, -1, 0, 0, 0, 0, 0, 0, 2, 2, -2, -2])
    expected = 8 * (0.75 * np.log2(4 / 3) + 2 * 0.125 * 3) + 4
    assert entropy_bits(values, layout) == pytest.approx(expected)
    assert entropy_bits(np.zeros(12, np.float32), layout) == 0

"""Dithered values: right on average, half the error of random rounding, near the entropy, sound under DP."""

import hashlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fedpeft.config import build_config
from fedpeft.config.models import DirectionConfig
from fedpeft.errors import ConfigError, EnvelopeError, ExchangeError, PlanError
from fedpeft.exchange import Clip, Context, ExchangePlan, Layout, PublicSupport, Quantise, plan_from_config
from fedpeft.exchange.codecs.dithered import Dithered2, Dithered3, Dithered4
from fedpeft_kernels import ans

LAYOUT = Layout(("a", "b", "c"), ((20, 5), (30,), (1,)))
CONTEXT = Context(bytes(16), 1, "hospital", bytes(32), "up")
VALUES = np.random.default_rng(0).standard_t(4, LAYOUT.size).astype(np.float32)
CODECS = (Dithered2, Dithered3, Dithered4)
ROUNDS = 600


def codec_of(kind, context=CONTEXT, density=1.0):
    return kind(PublicSupport(density)).at(context)


def vector(*sizes, seed=0):
    layout = Layout(tuple(f"t{index}" for index in range(len(sizes))), tuple((size,) for size in sizes))
    return layout, np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32)


def dither_of(layout, context=CONTEXT):
    key = hashlib.sha256(b"fedpeft-dither-1\0" + layout.digest + context.encode()).digest()
    raw = np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little"))).random_raw(layout.size)
    halves = [half for word in raw.tolist() for half in (word % 2**32, word >> 32)]
    return [((half >> 8) + 0.5) / 2**24 - 0.5 for half in halves[: layout.size]]


def naive(kind, layout, values):
    """Integers, steps and decoded values, one value at a time."""
    dither, codes, steps, decoded = dither_of(layout), [], [], []
    for start, end in pairwise(layout.offsets.tolist()):
        magnitudes = [abs(float(value)) for value in values[start:end]]
        mean, peak = sum(magnitudes) / len(magnitudes), max(magnitudes)
        step = max(mean * 5 / 3 / 2 ** (kind.bits - 2), peak / 124)
        octave = 2.0 ** np.floor(np.log2(step))
        steps.append(np.floor(step / octave * 64) / 64 * octave)
        for value, shift in zip(values[start:end].tolist(), dither[start:end], strict=True):
            codes.append(round(value / steps[-1] + shift))
            decoded.append(np.float32((codes[-1] - shift) * steps[-1]))
    return codes, steps, np.array(decoded, np.float32)


def entropy_bytes(codes):
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) / 8


def stream_of(codes):
    highest = max(abs(code) for code in codes)
    symbols = np.array(codes) + highest
    return ans.encode(symbols, np.bincount(symbols, minlength=2 * highest + 1).astype(np.int64))


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("sizes", [(1,), (7, 300, 2), (3456,), (5000, 4000)])
def test_values_and_stream_are_those_of_the_naive_twin(kind, sizes):
    layout, values = vector(*sizes)
    codes, steps, decoded = naive(kind, layout, values)
    codec = codec_of(kind)
    fitted = codec.fit(values, layout)
    assert np.array_equal(fitted, decoded)
    payload = codec.encode(fitted, layout)
    assert payload.endswith(stream_of(codes))
    assert np.array_equal(codec.decode(payload, layout).dense(), decoded)
    errors = np.abs(fitted - values) / np.repeat(steps, layout.sizes)
    assert errors.max() <= 0.5 + 1e-5


@pytest.mark.parametrize("kind", CODECS)
def test_the_mean_over_rounds_is_the_update(kind):
    contexts = [replace(CONTEXT, round=number) for number in range(ROUNDS)]
    draws = np.stack([codec_of(kind, context).fit(VALUES, LAYOUT) for context in contexts]).astype(np.float64)
    _, steps, _ = naive(kind, LAYOUT, VALUES)
    deviation = np.repeat(steps, LAYOUT.sizes) / np.sqrt(12)
    z = (draws.mean(axis=0) - VALUES) / (deviation / np.sqrt(ROUNDS))
    assert np.abs(z).max() < 5
    assert np.mean(z**2) == pytest.approx(1, abs=0.35)
    assert np.mean((draws - VALUES) ** 2 / deviation**2) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", CODECS)
def test_errors_are_uniform_and_independent_of_the_values(kind):
    layout, values = vector(40000)
    fitted = codec_of(kind).fit(values, layout)
    (step,) = naive(kind, layout, values)[1]
    errors = np.sort((fitted - values) / step + 0.5)
    distance = np.abs(errors - (np.arange(errors.size) + 0.5) / errors.size).max()
    assert distance < 2 / np.sqrt(errors.size)  # Kolmogorov-Smirnov: passed by chance but once in 1,500
    for of_value in (values, np.abs(values), values**2, (values / step) % 1):
        assert abs(np.corrcoef(fitted - values, of_value)[0, 1]) < 5 / np.sqrt(values.size)


@pytest.mark.parametrize(("kind", "most"), [(Dithered2, 0.155), (Dithered3, 0.039), (Dithered4, 0.0097)])
def test_half_the_error_of_rounding_at_random_at_no_more_bits_than_the_name_says(kind, most):
    layout, values = vector(22528)
    codec = codec_of(kind)
    fitted = codec.fit(values, layout)
    assert np.mean((fitted - values) ** 2) / np.mean(values**2) < most
    (step,) = naive(kind, layout, values)[1]
    rounded = np.floor(values / step + np.random.default_rng(1).random(values.size)) * step
    assert np.mean((rounded - values) ** 2) == pytest.approx(2 * np.mean((fitted - values) ** 2), rel=0.05)
    assert 8 * len(codec.encode(fitted, layout)) / values.size < kind.bits


def rotated(values):
    """The fast Hadamard transform of values with random signs, normed to mean square 1."""
    size, width = values.size, 1
    rotated = values * np.random.default_rng(5).choice([-1.0, 1.0], size)
    while width < size:
        pairs = rotated.reshape(-1, 2, width)
        rotated = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
        width *= 2
    return rotated / np.sqrt(np.mean(rotated**2))


def lloyd_max(levels):
    """Levels of least error for a Gaussian (Lloyd 1982), from quantiles in its place."""
    sample = np.random.default_rng(6).standard_normal(100_000)
    centres = np.quantile(sample, (np.arange(levels) + 0.5) / levels)
    for _ in range(100):
        nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, sample)
        centres = np.bincount(nearest, sample) / np.bincount(nearest)
    return centres


@pytest.mark.parametrize("tail", ["normal", "mixture"])
@pytest.mark.parametrize(("kind", "levels"), [(Dithered2, 4), (Dithered4, 16)])
def test_a_rotation_with_levels_for_a_gaussian_needs_no_fewer_bits(kind, levels, tail):
    """EDEN (arXiv 2108.08842), right on average, its levels entropy-coded too, on sizes that need no padding.

    An error falls by a factor of four with each bit, which is how both are brought to the same bits.
    """
    layout, values = vector(32768)
    if tail == "mixture":
        values *= np.repeat(np.exp(0.7 * np.random.default_rng(7).standard_normal(32)), 1024).astype(
            np.float32
        )
    turned, centres = rotated(values.astype(np.float64)), lloyd_max(levels)
    chosen = np.searchsorted((centres[1:] + centres[:-1]) / 2, turned)
    scale = (turned @ turned) / (centres[chosen] @ turned)
    eden = np.mean((scale * centres[chosen] - turned) ** 2) * 4 ** (8 * entropy_bytes(chosen) / values.size)
    codes, _, decoded = naive(kind, layout, values)
    ours = np.mean((decoded - values) ** 2) / np.mean(values.astype(np.float64) ** 2)
    assert ours * 4 ** (8 * entropy_bytes(codes) / values.size) < eden * (1.03 if tail == "normal" else 0.9)


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("sizes", [(3456,), (3218,) * 7, (300000,)])
@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_bytes_are_within_two_percent_and_a_header_of_the_entropy_of_the_integers(kind, sizes, tail):
    layout, values = vector(*sizes)
    if tail == "heavy":
        values = np.random.default_rng(0).standard_t(3, layout.size).astype(np.float32)
    codes, _, _ = naive(kind, layout, values)
    codec = codec_of(kind)
    payload = codec.encode(codec.fit(values, layout), layout)
    header = len(payload) - len(stream_of(codes))
    assert len(payload) - header <= 1.02 * entropy_bytes(codes) + 9
    assert header <= 2.5 * (2 * max(np.abs(codes)) + 1) + 2 * len(sizes) + 8


def test_draws_are_reproducible_and_differ_between_senders_rounds_runs_and_states():
    base = codec_of(Dithered2).fit(VALUES, LAYOUT)
    assert np.array_equal(base, codec_of(Dithered2).fit(VALUES, LAYOUT))
    for change in ({"sender": "bank"}, {"round": 2}, {"run": b"\1" * 16}, {"base_state": b"\1" * 32}):
        assert not np.array_equal(base, codec_of(Dithered2, replace(CONTEXT, **change)).fit(VALUES, LAYOUT))


def test_errors_of_two_senders_are_independent():
    layout, values = vector(40000)
    errors = [
        codec_of(Dithered2, replace(CONTEXT, sender=name)).fit(values, layout) - values for name in "ab"
    ]
    assert abs(np.corrcoef(*errors)[0, 1]) < 5 / np.sqrt(values.size)


@pytest.mark.parametrize("kind", CODECS)
def test_on_a_share_of_the_values_nothing_else_is_sent(kind):
    codec = codec_of(kind, density=0.5)
    fitted = codec.fit(VALUES, LAYOUT)
    outside = np.ones(LAYOUT.size, bool)
    outside[codec.support.positions(LAYOUT)] = False
    assert np.count_nonzero(~outside) == round(LAYOUT.size / 2) and not fitted[outside].any()
    assert np.array_equal(codec.decode(codec.encode(fitted, LAYOUT), LAYOUT).dense(), fitted)
    with pytest.raises(ExchangeError, match="cannot carry these values exactly"):
        codec.encode(fitted + outside.astype(np.float32), LAYOUT)


@pytest.mark.parametrize("kind", CODECS)
def test_extreme_tensors(kind):
    layout, values = vector(50, 50, 50, 1)
    values[50:100] = 0
    values[100:150] *= np.float32(2.0**-20)
    values[3] = 1e6  # far more than 124 mean magnitudes
    codec = codec_of(kind)
    fitted = codec.fit(values, layout)
    assert np.abs(fitted[3] - 1e6) <= 1e6 / 124 and not fitted[50:150].any()
    assert np.array_equal(codec.decode(codec.encode(fitted, layout), layout).dense(), fitted)
    with pytest.raises(ExchangeError, match="too large"):
        codec.fit(np.full(layout.size, np.finfo(np.float32).max), layout)


def test_another_context_reads_other_values_or_refuses():
    """The dither is part of what is decoded: bytes of one message mean nothing in another."""
    codec, other = codec_of(Dithered2), codec_of(Dithered2, replace(CONTEXT, round=2))
    payload = codec.encode(codec.fit(VALUES, LAYOUT), LAYOUT)
    assert not np.array_equal(other.decode(payload, LAYOUT).dense(), codec.decode(payload, LAYOUT).dense())
    with pytest.raises(EnvelopeError, match="at most"):
        codec.decode(payload + bytes(5000), LAYOUT)


def test_a_private_plan_takes_it_after_the_noise_and_a_clip_before_later_noise_refuses_it():
    direction = DirectionConfig(codec="dithered-2", density=1.0, error_feedback=False)
    assert plan_from_config(direction, private=True).describe()[-1] == "codec: dithered-2"
    codec = Dithered2(PublicSupport(1.0))
    with pytest.raises(PlanError, match="rounds at random after clip"):
        ExchangePlan((Clip(1.0), Quantise(codec)), codec)


def test_settings_that_would_round_before_the_noise_are_refused():
    settings = {
        "privacy": {"unit": "node", "trust": "central", "epsilon": 8.0},
        "exchange": {"up": {"codec": "dithered-2", "error_feedback": False}},
    }
    with pytest.raises(ConfigError, match="rounds at random, after the node's clip and before the noise"):
        build_config(settings)
    settings["exchange"] = {
        "up": {"codec": "ternary", "error_feedback": False},
        "down": {"codec": "dithered-2"},
    }
    build_config(settings)

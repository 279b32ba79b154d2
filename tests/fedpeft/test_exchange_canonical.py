"""One byte string per vector: properties over layouts, densities, magnitudes, codecs and hostile bytes."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.errors import EnvelopeError
from fedpeft.exchange import (
    AnyOf,
    Codec,
    Context,
    Decoded,
    Layout,
    MaskedSign,
    PublicSupport,
    Update,
    codec_named,
    codec_of,
)
from fedpeft.exchange.codecs.dithered import Dithered2, Dithered3
from fedpeft.exchange.envelope import decode_body, encode_body

CODECS = {
    name: codec_named(name) for name in ("dense-fp32", "dense-bf16", "int8", "ternary", "sign", "dead-zone")
}

PATIENT = settings(max_examples=60, deadline=None, derandomize=True)
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
DITHERED = {"dithered-2": Dithered2(PublicSupport(1.0)), "dithered-3": Dithered3(PublicSupport(0.4))}
NAMES = (*CODECS, *DITHERED, "masked-sign", "masked-sign released")


@dataclass(frozen=True)
class Case:
    """A layout and raw values in it."""

    layout: Layout
    values: np.ndarray


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(1, 200), max_size=6))
    layout = Layout(tuple(f"t{index}" for index in range(len(sizes))), tuple((size,) for size in sizes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]))
    tail = draw(st.sampled_from(["flat", "normal", "heavy", "repeated"]))
    values = {
        "flat": rng.choice([-1.0, 1.0], layout.size) * rng.uniform(0.9, 1.1, layout.size),
        "normal": rng.standard_normal(layout.size),
        "heavy": rng.standard_t(2, layout.size),
        "repeated": np.round(rng.standard_normal(layout.size) * 2),
    }[tail]
    octaves = rng.integers(-draw(st.sampled_from([0, 3, 20])), 1, len(sizes))
    scales = np.repeat(2.0 ** (octaves + draw(st.sampled_from([-115, -10, 0, 100]))), layout.sizes)
    return Case(layout, (values * scales * (rng.random(layout.size) < density)).astype(np.float32))


def codec_for(name: str, layout: Layout) -> Codec:
    if name in CODECS:
        return CODECS[name]
    if name in DITHERED:
        return DITHERED[name].at(CONTEXT)
    numbers = np.random.default_rng(layout.size).standard_normal(layout.size).astype(np.float32)
    source = "released" if name.endswith("released") else "seed"
    return MaskedSign(PublicSupport(0.4, source)).at(CONTEXT, Decoded(layout, numbers))


def same_bits(left, right):
    return np.array_equal(left.view(np.uint32), right.view(np.uint32))


def body_of(case, codec):
    values = codec.fit(case.values, case.layout)
    return encode_body(Update(case.layout, values, round=3, steps=1), codec), values


def check_refused_or_canonical(body, layout, codec):
    """Whether the body is accepted; if so, its values are finite and only these bytes stand for them."""
    try:
        decoded = decode_body(body, layout, codec)
    except EnvelopeError:
        return False
    values = decoded.dense()
    assert values.dtype == np.float32 and values.shape == (layout.size,) and np.isfinite(values).all()
    assert encode_body(Update(layout, values, round=3, steps=1), codec) == body
    return True


@pytest.mark.parametrize("name", NAMES)
@given(cases())
@PATIENT
def test_fitted_values_survive_in_bounded_bytes(name, case):
    codec = codec_for(name, case.layout)
    body, fitted = body_of(case, codec)
    assert same_bits(codec.fit(fitted, case.layout), fitted)
    assert len(body) - 4 <= codec.max_bytes(case.layout)
    decoded = decode_body(body, case.layout, codec)
    assert same_bits(decoded.dense(), fitted)
    assert decoded.positions is None or np.all(np.diff(decoded.positions) > 0)
    assert encode_body(Update(case.layout, decoded.dense(), round=3, steps=1), codec) == body


@pytest.mark.parametrize("name", NAMES)
@given(cases(), st.data())
@PATIENT
def test_mutated_payloads_are_refused_or_canonical(name, case, data):
    codec = codec_for(name, case.layout)
    honest, _ = body_of(case, codec)
    for _ in range(5):
        changed = bytearray(honest)
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(4, max(4, len(changed))))
            removed, added = data.draw(st.integers(0, 3)), data.draw(st.binary(max_size=3))
            changed[place : place + removed] = added
        check_refused_or_canonical(bytes(changed), case.layout, codec)


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(st.integers(1, 9), max_size=4), st.binary(max_size=40))
@settings(PATIENT, max_examples=300)
def test_random_payloads_are_refused_or_canonical(name, sizes, payload):
    layout = Layout(tuple(f"t{index}" for index in range(len(sizes))), tuple((size,) for size in sizes))
    codec = codec_for(name, layout)
    check_refused_or_canonical(b"\x89F\x01" + bytes([codec.wire_id]) + payload, layout, codec)


@pytest.mark.parametrize("name", NAMES)
def test_flipping_every_bit_gives_another_vector_or_nothing(name):
    layout = Layout(("a", "b", "c"), ((30, 4), (25,), (1,)))
    codec = codec_for(name, layout)
    rng = np.random.default_rng(4)
    values = (rng.standard_t(3, layout.size) * (rng.random(layout.size) < 0.3)).astype(np.float32)
    body, _ = body_of(Case(layout, values), codec)
    seen, accepted = {body}, 0
    for place in range(32, 8 * len(body)):
        changed = bytearray(body)
        changed[place // 8] ^= 0x80 >> place % 8
        assert bytes(changed) not in seen
        seen.add(bytes(changed))
        accepted += check_refused_or_canonical(bytes(changed), layout, codec)
    assert accepted > 0


@given(cases())
@PATIENT
def test_an_envelope_of_auto_is_the_one_of_the_member_that_it_names(case):
    codec = AnyOf((CODECS["ternary"], CODECS["dead-zone"], CODECS["sign"], CODECS["dense-fp32"]))
    for member in codec.members:
        values = member.fit(case.values, case.layout)
        update = Update(case.layout, values, round=3, steps=1)
        body = encode_body(update, codec)
        named = next(own for own in codec.members if own.name == codec_of(body, codec))
        assert body == encode_body(update, named)
        assert len(body) == min(len(encode_body(update, own)) for own in (named, member))
        assert np.array_equal(decode_body(body, case.layout, codec).dense(), values)

"""Envelopes: binding, canonical bytes, hostile bytes, size."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import (
    CODECS,
    OVERHEAD_BYTES,
    Context,
    ExchangePlan,
    Layout,
    Quantise,
    Sparsify,
    Ternarise,
    Update,
    entropy_bits,
    open_envelope,
    seal,
)
from fedpeft.exchange.envelope import decode_body, encode_body
from fedpeft.trust import Signer, Verifier

LAYOUT = Layout(("a", "b", "c"), ((30, 10), (70,), (1,)))
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
SIGNER = Signer.from_seed(b"hospital")
VERIFIER = Verifier(SIGNER.public)
PLANS = {
    "ternary": ExchangePlan((Sparsify(0.3), Ternarise()), "ternary"),
    "dense-fp32": ExchangePlan((), "dense-fp32"),
    "dense-bf16": ExchangePlan((Quantise("dense-bf16"),), "dense-bf16"),
    "int8": ExchangePlan((Quantise("int8"),), "int8"),
}


def sent_update(codec, layout=LAYOUT, seed=0):
    values = np.random.default_rng(seed).standard_t(3, layout.size).astype(np.float32)
    return PLANS[codec].run(Update(layout, values, round=3, steps=4), {})[0]


def sealed(codec):
    return seal(sent_update(codec), PLANS[codec], CONTEXT, SIGNER)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_opens_to_the_same_bits_and_is_the_same_every_time(codec):
    data = sealed(codec)
    values = open_envelope(data, LAYOUT, codec, CONTEXT, VERIFIER)
    assert np.array_equal(values.view(np.uint32), sent_update(codec).values.view(np.uint32))
    assert sealed(codec) == data


@pytest.mark.parametrize(
    "other",
    [
        replace(CONTEXT, run=b"\1" * 16),
        replace(CONTEXT, round=4),
        replace(CONTEXT, sender="bank"),
        replace(CONTEXT, base_state=b"\1" * 32),
        replace(CONTEXT, direction="down"),
    ],
)
def test_another_context_does_not_verify(other):
    with pytest.raises(EnvelopeError, match="does not verify"):
        open_envelope(sealed("ternary"), LAYOUT, "ternary", other, VERIFIER)


def test_another_key_or_layout_or_codec_is_refused():
    data = sealed("ternary")
    with pytest.raises(EnvelopeError, match="does not verify"):
        open_envelope(data, LAYOUT, "ternary", CONTEXT, Verifier(Signer.from_seed(b"bank").public))
    renamed = Layout(("a", "b", "z"), LAYOUT.shapes)
    with pytest.raises(EnvelopeError, match="does not verify"):
        open_envelope(data, renamed, "ternary", CONTEXT, VERIFIER)
    with pytest.raises(EnvelopeError, match="agreed on dense-fp32"):
        open_envelope(data, LAYOUT, "dense-fp32", CONTEXT, VERIFIER)


def test_contexts_encode_injectively():
    fields = {
        "run": [bytes(16), b"\1" * 16],
        "round": [1, 2],
        "sender": ["", "a", "a\0"],
        "direction": ["up", "down"],
    }
    encoded = [
        replace(CONTEXT, **dict(zip(fields, choice, strict=True))).encode()
        for choice in itertools.product(*fields.values())
    ]
    assert len(set(encoded)) == len(encoded)


def test_contexts_of_the_wrong_size_are_refused():
    for change in ({"run": b""}, {"base_state": b"x"}, {"round": -1}, {"direction": "sideways"}):
        with pytest.raises(ExchangeError):
            replace(CONTEXT, **change)


def test_seal_refuses_another_round_and_values_the_codec_cannot_carry():
    with pytest.raises(ExchangeError, match="round 3 cannot be sealed for round 9"):
        seal(sent_update("ternary"), PLANS["ternary"], replace(CONTEXT, round=9), SIGNER)
    with pytest.raises(ExchangeError, match="Ternarise"):
        seal(sent_update("dense-fp32"), PLANS["ternary"], CONTEXT, SIGNER)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_flipped_bit_and_every_truncation_is_refused(codec):
    data = sealed(codec)
    for end in range(len(data)):
        with pytest.raises(EnvelopeError):
            open_envelope(data[:end], LAYOUT, codec, CONTEXT, VERIFIER)
    for position in range(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        with pytest.raises(EnvelopeError):
            open_envelope(bytes(changed), LAYOUT, codec, CONTEXT, VERIFIER)
    with pytest.raises(EnvelopeError):
        open_envelope(data + b"\0", LAYOUT, codec, CONTEXT, VERIFIER)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_the_parser_refuses_every_truncation(codec):
    body = encode_body(sent_update(codec).values, LAYOUT, codec)
    for end in range(len(body)):
        with pytest.raises(EnvelopeError):
            decode_body(body[:end], LAYOUT, codec)
    with pytest.raises(EnvelopeError):
        decode_body(body + b"\0", LAYOUT, codec)


def mutate(body, rng):
    changed = bytearray(body)
    for _ in range(int(rng.integers(1, 4))):
        kind, position = rng.integers(5), int(rng.integers(len(changed)))
        if kind == 0:
            changed[position] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[position] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            changed[position : position + 4] = rng.bytes(4)
        elif kind == 3:
            del changed[position : position + int(rng.integers(1, 5))]
        else:
            changed[position:position] = rng.bytes(int(rng.integers(1, 5)))
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize("mutations", [4000, pytest.param(200_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_mutated_payloads_are_refused_or_canonical(codec, mutations):
    """Past the signature: the parser raises nothing but EnvelopeError and accepts only canonical bytes."""
    rng = np.random.default_rng(7)
    bodies = [encode_body(sent_update(codec, seed=seed).values, LAYOUT, codec) for seed in range(10)]
    bodies.append(encode_body(np.zeros(LAYOUT.size, np.float32), LAYOUT, codec))
    accepted = refused = 0
    for number in range(mutations):
        body = mutate(bodies[number % len(bodies)], rng)
        try:
            values = decode_body(body, LAYOUT, codec)
        except EnvelopeError:
            refused += 1
            continue
        accepted += 1
        assert np.isfinite(values).all()
        assert encode_body(values, LAYOUT, codec) == body
    assert accepted > 50 and refused > 500


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_random_bytes_are_refused_or_canonical(codec):
    rng = np.random.default_rng(8)
    small = Layout(("a", "b"), ((6,), (2,)))
    head = encode_body(np.zeros(8, np.float32), small, codec)[:4]
    for _ in range(3000):
        body = head + rng.bytes(int(rng.integers(0, 40)))
        try:
            values = decode_body(body, small, codec)
        except EnvelopeError:
            continue
        assert encode_body(values, small, codec) == body


def test_memory_is_bounded_by_the_layout():
    layout = Layout(("a", "b"), ((1000, 100), (1000, 100)))
    codec = CODECS["ternary"]
    rng = np.random.default_rng(9)
    head = encode_body(np.zeros(layout.size, np.float32), layout, "ternary")[:4]
    hostile = [
        head + rng.bytes(codec.max_bytes(layout)),
        head + b"\xff" * codec.max_bytes(layout),
        head + b"\x7f" + bytes(codec.max_bytes(layout) - 1),
        head + rng.bytes(8),
        head + b"\xff" * 10 * codec.max_bytes(layout),
    ]
    for body in hostile:
        tracemalloc.start()
        with pytest.raises(EnvelopeError):
            decode_body(body, layout, "ternary")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40 * layout.size


def test_the_demo_sized_envelope_is_within_three_percent_of_shannon():
    """28 tensors, 90,112 values; all of the envelope against the entropy of the symbols alone."""
    names = tuple(f"layers.{index:02d}.B" for index in range(28))
    layout = Layout(names, ((92, 35),) * 27 + ((3172,),))
    assert layout.size == 90_112
    for density, allowed in ((0.05, 0.06), (0.1, 0.04), (0.2, 0.03), (0.5, 0.03), (1.0, 0.03)):
        values = np.random.default_rng(0).standard_t(4, layout.size).astype(np.float32)
        plan = ExchangePlan((Sparsify(density), Ternarise()), "ternary")
        update, _ = plan.run(Update(layout, values, round=3, steps=1), {})
        size = len(seal(update, plan, CONTEXT, SIGNER))
        assert size <= (1 + allowed) * entropy_bits(update.values, layout) / 8


def test_fixed_overhead():
    empty = Layout((), ())
    update = Update(empty, np.zeros(0, np.float32), round=3, steps=1)
    assert OVERHEAD_BYTES == 68
    assert len(seal(update, PLANS["ternary"], CONTEXT, SIGNER)) == 70

"""Envelopes: what they are bound to, canonical bytes, refusals, size."""

import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.config.models import DirectionConfig
from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import (
    OVERHEAD_BYTES,
    Context,
    DenseFp32,
    ExchangePlan,
    Layout,
    Sparsify,
    Ternarise,
    Ternary,
    Update,
    codec_of,
    entropy_bits,
    open_envelope,
    plan_from_config,
    seal,
)
from fedpeft.exchange.envelope import decode_body, encode_body
from fedpeft.trust import Signer, Verifier

LAYOUT = Layout(("a", "b", "c"), ((30, 10), (70,), (1,)))
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
SIGNER = Signer.from_seed(b"hospital")
VERIFIER = Verifier(SIGNER.public)
NAMES = (
    "ternary",
    "dead-zone",
    "sign",
    "masked-sign",
    "stochastic-ternary",
    "dithered-2",
    "dithered-4",
    "int8",
    "dense-bf16",
    "dense-fp32",
    "auto",
)
ANY_DENSITY = (0.005, 0.01, 0.3, 0.34, 0.38, 0.43, 0.5, 0.57, 0.62, 0.66, 0.8, 0.97, 1.0)
CODECS = [name for name in NAMES if name != "auto"]


def plan_of(name, density=0.3):
    direction = DirectionConfig(codec=name, density=density, error_feedback=False)
    return plan_from_config(direction, private=False).at(CONTEXT)


def sent_update(name, layout=LAYOUT, seed=0):
    values = np.random.default_rng(seed).standard_t(3, layout.size).astype(np.float32)
    return plan_of(name).run(Update(layout, values, round=3, steps=4), {})[0]


def sealed(name):
    return seal(sent_update(name), plan_of(name), CONTEXT, SIGNER)


def opened(data, name, context=CONTEXT, layout=LAYOUT, verifier=VERIFIER):
    return open_envelope(data, layout, plan_of(name).codec, context, verifier)


@pytest.mark.parametrize("name", NAMES)
def test_opens_to_the_same_bits_and_is_the_same_every_time(name):
    data = sealed(name)
    values = opened(data, name).dense()
    assert np.array_equal(values.view(np.uint32), sent_update(name).values.view(np.uint32))
    assert sealed(name) == data


def test_bytes_are_the_documented_ones():
    data, plan = sealed("ternary"), plan_of("ternary")
    payload = plan.codec.encode(sent_update("ternary").values, LAYOUT)
    assert data[:-64] == b"\x89F\x01\x03" + payload
    signed = hashlib.sha256(LAYOUT.digest + CONTEXT.encode() + data[:-64]).digest()
    assert VERIFIER.verify(data[-64:], b"fedpeft-envelope-1\0" + signed)
    assert OVERHEAD_BYTES == 68 == len(data) - len(payload)


@pytest.mark.parametrize("name", CODECS)
def test_the_header_names_the_codec(name):
    codec = plan_of(name).codec
    assert sealed(name)[3] == codec.wire_id and codec_of(sealed(name), codec) == codec.name


@pytest.mark.parametrize(
    "change",
    [
        {"run": b"\1" * 16},
        {"round": 4},
        {"sender": "bank"},
        {"base_state": b"\1" * 32},
        {"direction": "down"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_context_does_not_verify(change):
    with pytest.raises(EnvelopeError, match="does not verify"):
        opened(sealed("ternary"), "ternary", context=replace(CONTEXT, **change))


def test_another_key_or_layout_or_codec_is_refused():
    data = sealed("ternary")
    with pytest.raises(EnvelopeError, match="does not verify"):
        opened(data, "ternary", verifier=Verifier(Signer.from_seed(b"bank").public))
    with pytest.raises(EnvelopeError, match="does not verify"):
        opened(data, "ternary", layout=Layout(("a", "b", "z"), LAYOUT.shapes))
    with pytest.raises(EnvelopeError, match="number 3, this run agreed on dense-fp32"):
        opened(data, "dense-fp32")


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


def test_what_all_nodes_share_leaves_out_sender_and_state():
    same = replace(CONTEXT, sender="bank", base_state=b"\1" * 32)
    assert same.shared() == CONTEXT.shared()
    others = [replace(CONTEXT, run=b"\1" * 16), replace(CONTEXT, round=4), replace(CONTEXT, direction="down")]
    assert len({CONTEXT.shared(), *(other.shared() for other in others)}) == 4


def test_contexts_of_the_wrong_size_are_refused():
    for change in ({"run": b""}, {"base_state": b"x"}, {"round": -1}, {"direction": "sideways"}):
        with pytest.raises(ExchangeError):
            replace(CONTEXT, **change)


def test_seal_refuses_another_round_and_values_the_codec_cannot_carry():
    with pytest.raises(ExchangeError, match="round 3 cannot be sealed for round 9"):
        seal(sent_update("ternary"), plan_of("ternary"), replace(CONTEXT, round=9), SIGNER)
    with pytest.raises(ExchangeError, match="Ternarise"):
        seal(sent_update("dense-fp32"), plan_of("ternary"), CONTEXT, SIGNER)


@pytest.mark.parametrize("name", CODECS)
def test_every_flipped_bit_is_refused(name):
    data = sealed(name)
    for position in range(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        with pytest.raises(EnvelopeError):
            opened(bytes(changed), name)


def test_bytes_like_objects_are_opened():
    data = sealed("ternary")
    for form in (bytearray(data), memoryview(data)):
        assert np.array_equal(opened(form, "ternary").dense(), sent_update("ternary").values)


def overhead(layout, values, density):
    """Bytes of the whole signed envelope over Shannon's bound for its symbols, each tensor with its own."""
    plan = ExchangePlan((Sparsify(density), Ternarise()), Ternary())
    update, _ = plan.run(Update(layout, values, round=3, steps=1), {})
    size = len(seal(update, plan, CONTEXT, SIGNER))
    return 8 * size / entropy_bits(update.values, layout) - 1


@pytest.mark.parametrize(
    ("density", "allowed"), [(0.05, 0.06), (0.1, 0.04), (0.2, 0.03), (0.5, 0.03), (1.0, 0.03)]
)
def test_a_small_envelope_is_within_a_few_percent_of_shannon(density, allowed):
    """28 tensors, 90,112 values; all of the envelope against the entropy of the symbols alone."""
    names = tuple(f"layers.{index:02d}.B" for index in range(28))
    layout = Layout(names, ((92, 35),) * 27 + ((3172,),))
    assert layout.size == 90_112
    values = np.random.default_rng(0).standard_t(4, layout.size).astype(np.float32)
    assert overhead(layout, values, density) <= allowed


@pytest.fixture(scope="module")
def adapter():
    """140 tensors, 3.2 million values, each tensor with its own magnitude and tail."""
    rng = np.random.default_rng(0)
    shapes = [(16, 2048) if index % 2 else (816, 16) for index in range(140)]
    layout = Layout(tuple(f"layers.{index:03d}" for index in range(140)), tuple(shapes))
    spread = np.repeat(np.exp(0.25 * rng.standard_normal(140)), layout.sizes)
    values = (rng.standard_normal(layout.size) * spread).astype(np.float32)
    assert layout.size > 3_200_000
    return layout, values


@pytest.mark.parametrize("density", [0.03, 0.05, 0.1, 0.15, 0.2, 0.25])
def test_an_adapters_envelope_is_within_one_and_a_half_percent_of_shannon(adapter, density):
    assert 0 < overhead(*adapter, density) <= 0.015


@pytest.mark.parametrize("density", ANY_DENSITY)
def test_an_adapters_envelope_is_within_three_percent_of_shannon_at_any_density(adapter, density):
    assert 0 < overhead(*adapter, density) <= 0.032


def test_an_empty_layout_needs_two_bytes_of_payload():
    update = Update(Layout((), ()), np.zeros(0, np.float32), round=3, steps=1)
    assert len(seal(update, plan_of("ternary"), CONTEXT, SIGNER)) == OVERHEAD_BYTES + 2


def test_the_body_is_what_the_signature_covers():
    update = sent_update("dense-fp32")
    body = encode_body(update, DenseFp32())
    assert seal(update, plan_of("dense-fp32"), CONTEXT, SIGNER)[:-64] == body
    assert np.array_equal(decode_body(body, LAYOUT, DenseFp32()).dense(), update.values)


def test_envelopes_need_numpy_and_hashlib_and_no_heavy_library():
    program = "import sys, fedpeft.exchange; print(*({'torch', 'scipy', 'zstandard'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

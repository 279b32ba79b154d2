"""Malicious inputs that a decoder must survive, one test for each of twelve kinds.

Those behind a broken signature never reach the parser; here most are put to the parser itself.
"""

import inspect
import pickle
import pkgutil
import re
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from fedpeft import exchange
from fedpeft.aggregation import weighted_sum
from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import (
    OVERHEAD_BYTES,
    Context,
    DeadZone,
    Decoded,
    DenseFp32,
    ExchangePlan,
    Int8,
    Layout,
    MaskedSign,
    PublicSupport,
    Sign,
    Ternary,
    Update,
    codec_named,
    open_envelope,
    seal,
)
from fedpeft.exchange.codecs.bit_io import field_bits, to_bytes
from fedpeft.exchange.codecs.bitfields import write_counts, write_scales
from fedpeft.exchange.envelope import decode_body, encode_body
from fedpeft.trust import Signer, Verifier

CODECS = {
    name: codec_named(name) for name in ("dense-fp32", "dense-bf16", "int8", "ternary", "sign", "dead-zone")
}

LAYOUT = Layout(("a", "b", "c"), ((30, 10), (70,), (1,)))
LARGE = Layout(("a", "b"), ((1000, 150), (50_000,)))
MANY = Layout(tuple(f"{index:04d}" for index in range(500)), ((40,),) * 500)
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
SIGNER = Signer.from_seed(b"hospital")
VERIFIER = Verifier(SIGNER.public)
EVERY = {**CODECS, "masked-sign": MaskedSign(PublicSupport(0.3)).at(CONTEXT, None)}
SPARSE = {name: EVERY[name] for name in ("ternary", "dead-zone")}
CODED = {name: EVERY[name] for name in ("ternary", "dead-zone", "sign", "masked-sign")}
BYTES_PER_VALUE = 64
FIXED_BYTES = 1 << 17


def every(codecs):
    return pytest.mark.parametrize("codec", codecs.values(), ids=codecs.keys())


def honest(codec, layout=LAYOUT, density=0.3, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, layout.size) * (rng.random(layout.size) < density)
    return codec.encode(codec.fit(values.astype(np.float32), layout), layout)


def refused(codec, payload, layout=LAYOUT, reason=None):
    with pytest.raises(EnvelopeError, match=reason):
        codec.decode(payload, layout)


def peak_bytes(call, *given):
    """The most memory that a call holds, whether or not it refuses what it is given."""
    tracemalloc.start()
    try:
        with suppress(EnvelopeError):
            call(*given)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def seconds(call, *given):
    """Processor time of a call, whether or not it refuses what it is given."""
    start = time.process_time()
    with suppress(EnvelopeError):
        call(*given)
    return time.process_time() - start


def sealed(values=None, context=CONTEXT, layout=LAYOUT):
    values = np.ones(layout.size, np.float32) if values is None else values
    update = Update(layout, values, round=context.round, steps=1)
    return seal(update, ExchangePlan((), DenseFp32()), context, SIGNER)


def payload_of(*parts):
    return to_bytes([np.asarray(part, np.uint8) for part in parts])


@every(EVERY)
def test_01_truncated_at_every_byte_and_over_long(codec):
    payload = honest(codec)
    body = b"\x89F\x01" + bytes([codec.wire_id]) + payload
    for end in range(len(body)):
        with pytest.raises(EnvelopeError):
            decode_body(body[:end], LAYOUT, codec)
    for more in (b"\0", b"\xff", b"\0" * 9, payload):
        refused(codec, payload + more)
    data = body + SIGNER.sign(b"")
    for wrong in (data[: OVERHEAD_BYTES - 1], b"", data + bytes(4 * LAYOUT.size + 99)):
        with pytest.raises(EnvelopeError, match="bytes"):
            open_envelope(wrong, LAYOUT, codec, CONTEXT, VERIFIER)


@every(SPARSE)
def test_02_density_bombs(codec):
    """A few bytes that claim all values: refused for want of bits, in memory that the layout bounds."""
    none = write_counts(LARGE.sizes, 0 * LARGE.sizes)
    later = [none, none] if codec.name == "dead-zone" else []
    scales = write_scales(np.ones(2, np.float32))
    for claimed in (LARGE.sizes, LARGE.sizes // 2, LARGE.sizes // 3):
        for rest in (b"", b"\0" * 8, b"\xff" * 8, np.random.default_rng(0).bytes(1000)):
            bomb = payload_of(write_counts(LARGE.sizes, claimed), *later, scales) + rest
            refused(codec, bomb, LARGE)
            assert peak_bytes(codec.decode, bomb, LARGE) < BYTES_PER_VALUE * LARGE.size
    refused(codec, b"", LARGE)
    refused(codec, payload_of(field_bits([0, (1 << 18) - 1, (1 << 16) - 1], [5, 18, 16])), LARGE)


@every(EVERY)
def test_03_decompression_bombs(codec):
    """No input grows by more than a constant times the layout; longer input is refused unread."""
    longest = codec.max_bytes(LARGE)
    rng = np.random.default_rng(1)
    inputs = [honest(codec, LARGE, density) for density in (0, 0.01, 0.33, 0.36, 0.45, 0.6, 1)]
    inputs += [fill * longest for fill in (b"\0", b"\xff", b"\x55", b"\x07")]
    inputs += [rng.bytes(longest), rng.bytes(longest // 2)]
    for payload in inputs:
        assert peak_bytes(codec.decode, payload, LARGE) < BYTES_PER_VALUE * LARGE.size + FIXED_BYTES
    huge = bytes(OVERHEAD_BYTES + 50 * longest)
    assert peak_bytes(open_envelope, huge, LARGE, codec, CONTEXT, VERIFIER) < FIXED_BYTES
    assert peak_bytes(codec.decode, huge, LAYOUT) < FIXED_BYTES


@every(CODED)
def test_04_missing_bits_are_not_filled_up(codec):
    payload = honest(codec, density=0.2)
    for cut in range(1, 9):
        refused(codec, payload[:-cut])


def test_04_positions_stay_in_their_tensor():
    layout = Layout(("a", "b"), ((4,), (4,)))
    ones = np.array([1, 1], np.int64)
    head = [write_counts(layout.sizes, ones), write_scales(np.ones(2, np.float32))]
    for unary in ([0, 0, 1, 1], [0, 0, 0, 1, 1], [1, 0, 0, 1]):
        jump = payload_of(*head, [0, 0], [1, 1], [0, 0], unary)  # planes, further bits, signs, quotients
        refused(Ternary(), jump, layout, "outside its tensor")
    assert Ternary().decode(payload_of(*head, [0, 0], [0, 0], [1, 1]), layout).positions.tolist() == [0, 4]


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3e38, -1.0, -0.0, 1e-40, 1.0000001])
@pytest.mark.parametrize("codes", [(127, 0), (0, 0)])
def test_05_scales_that_are_never_sent(scale, codes):
    layout = Layout(("a",), ((2,),))
    refused(Int8(), np.float32(scale).tobytes() + bytes(codes), layout, "scale")


@every(CODED)
def test_05_scale_fields_that_are_never_sent(codec):
    """Not a number, infinity, zero, subnormal, too far below the largest, for a tensor without values."""
    layout = Layout(("a", "b"), ((1000,), (1000,)))
    payload = honest(codec, layout, 0.3)
    bits, start = scales_of(codec, payload, layout)
    for biased in (0, 255):
        changed = bits.copy()
        changed[start : start + 8] = field_bits([biased], [8])
        refused(codec, np.packbits(changed).tobytes(), layout, "normal range")
    bits[start + 8 : start + 11] = 1
    refused(codec, np.packbits(bits).tobytes(), layout, "octaves|cut off")


def scales_of(codec, payload, layout):
    """The bits of a payload and where its scales begin."""
    values = codec.decode(payload, layout).dense()
    parts = [part[part != 0] for part in np.split(values, layout.offsets[1:-1])]
    scales = write_scales(np.array([np.abs(part).min() for part in parts], np.float32))
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    return bits, "".join(map(str, bits)).index("".join(map(str, scales)))


def test_05_levels_that_overflow():
    layout = Layout(("a",), ((6,),))
    payload = DeadZone().encode(np.array([1, 4, 2, 1, 0, -4], np.float32), layout)
    bits, start = scales_of(DeadZone(), payload, layout)
    bits[start : start + 8] = field_bits([254], [8])
    refused(DeadZone(), np.packbits(bits).tobytes(), layout, "outside the range of float32")


@pytest.mark.parametrize(
    ("names", "shapes"),
    [
        (("a", "a"), ((1,), (1,))),
        (("b", "a"), ((1,), (1,))),
        (("a", "b"), ((1,),)),
        (("a", "b"), ((1,), (0, 5))),
        (("a",), ((-1, -5),)),
    ],
)
def test_06_names_and_shapes_that_lie_make_no_layout(names, shapes):
    with pytest.raises(ExchangeError, match="layout"):
        Layout(names, shapes)


@pytest.mark.parametrize(
    "other",
    [
        Layout(("a", "b", "ç"), LAYOUT.shapes),
        Layout(("a", "b", "c\u0327"), LAYOUT.shapes),
        Layout(("a", "b", "с"), LAYOUT.shapes),
        Layout(("a", "b", "c"), ((10, 30), (70,), (1,))),
        Layout(("a", "b", "c"), ((300,), (70,), (1,))),
        Layout(("a", "b", "c"), ((70,), (300,), (1,))),
    ],
)
def test_06_look_alike_names_and_other_shapes_do_not_verify(other):
    with pytest.raises(EnvelopeError, match="does not verify"):
        open_envelope(sealed(), other, DenseFp32(), CONTEXT, VERIFIER)


@every(CODED)
def test_07_bits_that_are_free_to_choose(codec):
    """Padding, widths, complement and parameters follow from the rest: no second form of any vector."""
    for density in (0.05, 0.3, 0.4, 0.5, 0.6, 0.97):
        payload = honest(codec, density=density)
        padded = {payload[:-1] + bytes([payload[-1] | 1 << bit]) for bit in range(8)} - {payload}
        for changed in padded:
            try:
                decoded = codec.decode(changed, LAYOUT)
            except EnvelopeError:
                continue
            assert codec.encode(decoded.dense(), LAYOUT) == changed
        refused(codec, payload + b"\0")
    ones = field_bits([3, 7, 1, 1, 1], [4, 3, 3, 3, 3])  # three counts of one, at order 3
    refused(Ternary(), payload_of(ones, write_scales(np.ones(3, np.float32))), reason="not written shortest")


def test_07_a_dead_zone_without_its_first_level():
    """Twos and fours without ones are ones and twos of another scale."""
    layout = Layout(("a",), ((6,),))
    one = np.ones(1, np.int64)
    counts = [write_counts(size * one, count * one) for size, count in ((6, 2), (2, 2), (2, 1))]
    refused(DeadZone(), payload_of(*counts), layout, "no value of its first level")


@pytest.mark.parametrize(
    "change",
    [{"round": 2}, {"round": 4}, {"run": b"\1" * 16}, {"base_state": b"\1" * 32}, {"sender": "bank"}],
    ids=lambda change: next(iter(change)),
)
def test_08_replays_of_another_round_run_base_or_node(change):
    with pytest.raises(EnvelopeError, match="does not verify"):
        open_envelope(sealed(context=replace(CONTEXT, **change)), LAYOUT, DenseFp32(), CONTEXT, VERIFIER)


def test_08_a_broadcast_is_not_an_upload():
    broadcast = sealed(context=replace(CONTEXT, direction="down"))
    with pytest.raises(EnvelopeError, match="does not verify"):
        open_envelope(broadcast, LAYOUT, DenseFp32(), CONTEXT, VERIFIER)


@every(EVERY)
def test_09_unknown_magic_version_or_codec(codec):
    body = b"\x89F\x01" + bytes([codec.wire_id]) + honest(codec)
    assert decode_body(body, LAYOUT, codec).layout is LAYOUT
    for place, reason in ((0, "not a fedpeft envelope"), (1, "not a fedpeft"), (2, "version"), (3, "number")):
        for value in set(range(256)) - {body[place]}:
            changed = body[:place] + bytes([value]) + body[place + 1 :]
            with pytest.raises(EnvelopeError, match=reason):
                decode_body(changed, LAYOUT, codec)


def nasty(codec, layout):
    """Bodies that look right for as long as possible, or make streams as long as they can be."""
    rng = np.random.default_rng(2)
    for density in (0.001, 0.05, 0.33, 0.38, 0.5, 0.62, 0.8, 1):
        payload = honest(codec, layout, density)
        fields = len(payload) // 50 + 12
        yield payload[: len(payload) // 2]
        yield payload[:-1]
        yield payload[:fields] + bytes(len(payload) - fields)
        yield payload[:fields] + b"\xff" * (len(payload) - fields)
        yield payload[:fields] + rng.bytes(len(payload) - fields)
        yield payload + bytes(max(0, codec.max_bytes(layout) - len(payload)))
    for fill in (b"\0", b"\xff", b"\x80", b"\x01"):
        yield fill * codec.max_bytes(layout)


@every(EVERY)
@pytest.mark.parametrize("layout", [LARGE, MANY], ids=["two tensors", "500 tensors"])
def test_10_no_input_takes_ten_times_the_honest_time(codec, layout):
    """In processor time; a suspicion is measured again, so that a busy machine does not fail the test."""
    good = [honest(codec, layout, density) for density in (0.05, 0.33, 0.4, 0.5, 1)]
    fastest = [min(seconds(codec.decode, payload, layout) for _ in range(3)) for payload in good]
    for payload in nasty(codec, layout):
        taken = (seconds(codec.decode, payload, layout) for _ in range(9))
        assert any(spent <= 10 * max(fastest) + 0.001 for spent in taken)


def test_11_envelopes_carry_no_claims():
    """Steps, weight and sample counts do not travel; weights are the coordinator's and must be sound."""
    values = np.ones(LAYOUT.size, np.float32)
    plain = Update(LAYOUT, values, round=3, steps=1)
    boasting = Update(LAYOUT, values, round=3, steps=10**9, weight=1e30)
    assert encode_body(plain, DenseFp32()) == encode_body(boasting, DenseFp32())
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ExchangeError, match="must be positive"):
            weighted_sum(LAYOUT.size, [("a", weight, Decoded(LAYOUT, values))])


class Exploit:
    """Would end the test if it were ever unpickled."""

    def __reduce__(self):
        return pytest.exit, ("unpickled",)


@every(EVERY)
def test_12_pickles_are_bytes_like_any_other(codec):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        exploit = pickle.dumps(Exploit(), protocol)
        for body in (exploit, b"\x89F\x01" + bytes([codec.wire_id]) + exploit):
            with pytest.raises(EnvelopeError):
                decode_body(body, LAYOUT, codec)
            with pytest.raises(EnvelopeError):
                open_envelope(body + bytes(64), LAYOUT, codec, CONTEXT, VERIFIER)


def test_12_nothing_that_reads_envelopes_can_unpickle_or_decompress():
    names = [module.name for module in pkgutil.walk_packages(exchange.__path__, "fedpeft.exchange.")]
    names += [f"fedpeft_kernels.{name}" for name in ("golomb", "ternary", "threshold")]
    forbidden = re.compile(r"\b(pickle|marshal|eval|exec|zlib|zstandard|np\.load|torch\.load)\b")
    for name in names:
        assert not forbidden.search(inspect.getsource(import_module(name))), name


def test_every_sign_payload_has_the_length_of_its_tensors():
    """Signs have no stream whose length varies: the tensors that are sent say how many bits follow."""
    payload = honest(Sign(), density=1.0)
    assert Sign().max_bytes(LAYOUT) - 2 <= len(payload) <= Sign().max_bytes(LAYOUT)
    refused(Sign(), payload[:-1], reason="cut off")

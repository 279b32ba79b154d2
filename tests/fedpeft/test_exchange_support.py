"""Signs on a support that both ends derive: what it is, what it depends on, and that no position travels."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.config.models import ExchangeConfig
from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import (
    AddResidual,
    Context,
    Decoded,
    ExchangePlan,
    KeepResidual,
    Layout,
    MaskedSign,
    PublicSupport,
    Quantise,
    Ternary,
    Update,
    open_envelope,
    seal,
)
from fedpeft.exchange.codecs.bit_io import to_bytes
from fedpeft.exchange.codecs.bitfields import write_scales
from fedpeft.exchange.plan import noisy_values
from fedpeft.trust import Signer, Verifier

LAYOUT = Layout(("a", "b", "c"), ((300, 10), (70,), (1,)))
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
VALUES = np.random.default_rng(0).standard_t(3, LAYOUT.size).astype(np.float32)
RELEASED = Decoded(LAYOUT, np.random.default_rng(1).standard_normal(LAYOUT.size).astype(np.float32))


def support_of(codec, layout=LAYOUT):
    values = np.ones(layout.size, np.float32)
    return np.flatnonzero(codec.fit(values, layout))


def naive_drawn(context, layout, count, taken=()):
    """The documented draw: 16 bits per value, least significant first, of a generator that a digest seeds.

    The ``count`` positions with the lowest bits that are not ``taken``, the first of equals.
    """
    shared = context.run + context.round.to_bytes(8, "little") + bytes([context.direction == "up"])
    key = hashlib.sha256(b"fedpeft-support-2\0" + layout.digest + shared).digest()
    generator = np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little")))
    bits = []
    while len(bits) < layout.size:
        raw = int(generator.random_raw())
        bits += [raw >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    free = [index for index in range(layout.size) if index not in taken]
    return sorted(sorted(free, key=lambda index: bits[index])[:count])


@pytest.mark.parametrize("density", [1e-6, 0.01, 0.3, 0.99999, 1.0])
def test_the_seed_gives_the_documented_support(density):
    codec = MaskedSign(PublicSupport(density)).at(CONTEXT, RELEASED)
    count = max(1, round(density * LAYOUT.size))
    assert support_of(codec).tolist() == naive_drawn(CONTEXT, LAYOUT, count)


@pytest.mark.parametrize("source", ["seed", "released"])
@pytest.mark.parametrize(
    ("values", "density"), [(1, 0.4), (512, 0.25), (1024, 0.1), (10_000, 0.25), (70_001, 0.9)]
)
def test_the_support_has_exactly_the_size_that_is_accounted_for(source, values, density):
    """A sum's sensitivity is worked out for that many values; drawn by coins, half the rounds had more."""
    layout = Layout(("a",), ((values,),))
    exchange = ExchangeConfig.model_validate(
        {"up": {"support": source}, "secure": {"enabled": True, "share": density}}
    )
    released = Decoded(layout, np.random.default_rng(1).standard_normal(values).astype(np.float32))
    for round_ in range(1, 40):
        bound = PublicSupport(density, source).at(replace(CONTEXT, round=round_), released)
        found = bound.positions(layout)
        assert len(found) == noisy_values(exchange, values) and (np.diff(found) > 0).all()


def test_it_follows_from_the_round_and_not_from_the_sender_or_the_state():
    codec = MaskedSign(PublicSupport(0.3))
    base = support_of(codec.at(CONTEXT, None)).tolist()
    for other in (replace(CONTEXT, sender="bank"), replace(CONTEXT, base_state=b"\1" * 32)):
        assert support_of(codec.at(other, None)).tolist() == base
    changes = ({"round": 4}, {"run": b"\1" * 16}, {"direction": "down"})
    for change in changes:
        assert support_of(codec.at(replace(CONTEXT, **change), None)).tolist() != base
    renamed = Layout(("a", "b", "z"), LAYOUT.shapes)
    assert support_of(codec.at(CONTEXT, None), renamed).tolist() != base


def test_every_value_is_sent_at_times():
    rounds = [
        support_of(MaskedSign(PublicSupport(0.2)).at(replace(CONTEXT, round=r), None)) for r in range(60)
    ]
    times = np.bincount(np.concatenate(rounds), minlength=LAYOUT.size)
    assert times.min() > 0 and times.mean() == pytest.approx(12, rel=0.05)


def test_the_last_release_gives_four_fifths_of_the_support_and_the_seed_the_rest():
    codec = MaskedSign(PublicSupport(0.25, "released")).at(CONTEXT, RELEASED)
    support = set(support_of(codec).tolist())
    count = round(0.8 * 0.25 * LAYOUT.size)
    order = sorted(range(LAYOUT.size), key=lambda index: -abs(float(RELEASED.numbers[index])))
    leading = set(order[:count])
    assert support == leading | set(naive_drawn(CONTEXT, LAYOUT, round(0.25 * LAYOUT.size) - count, leading))


def test_the_seed_fills_up_what_a_sparse_release_lacks():
    positions = np.arange(100, 200)
    released = Decoded(LAYOUT, np.ones(100, np.float32), positions)
    support = support_of(MaskedSign(PublicSupport(0.25, "released")).at(CONTEXT, released))
    size = round(0.25 * LAYOUT.size)
    drawn = naive_drawn(CONTEXT, LAYOUT, size - 100, set(range(100, 200)))
    assert set(support.tolist()) == set(positions.tolist()) | set(drawn)
    nothing = Decoded(LAYOUT, np.zeros(0, np.float32), np.zeros(0, np.int64))
    empty = support_of(MaskedSign(PublicSupport(0.25, "released")).at(CONTEXT, nothing))
    assert empty.tolist() == naive_drawn(CONTEXT, LAYOUT, size)


@pytest.mark.parametrize("source", ["seed", "released"])
def test_node_and_coordinator_derive_the_same(source):
    """The node has read the broadcast from bytes; the coordinator holds what it made them from."""
    broadcast = Ternary().fit(RELEASED.numbers, LAYOUT)
    read = Ternary().decode(Ternary().encode(broadcast, LAYOUT), LAYOUT)
    codec = MaskedSign(PublicSupport(0.25, source))
    plan = ExchangePlan((AddResidual(), Quantise(codec), KeepResidual()), codec).at(CONTEXT, read)
    sent, _ = plan.run(Update(LAYOUT, VALUES, round=3, steps=1), {})
    signer = Signer.from_seed(b"hospital")
    data = seal(sent, plan, CONTEXT, signer)
    agreed = codec.at(CONTEXT, Decoded(LAYOUT, broadcast))
    decoded = open_envelope(data, LAYOUT, agreed, CONTEXT, Verifier(signer.public))
    assert np.array_equal(decoded.dense(), sent.values)
    assert decoded.positions.size == np.count_nonzero(sent.values)


def test_only_signs_and_scales_travel():
    codec = MaskedSign(PublicSupport(0.25)).at(CONTEXT, None)
    payload = codec.encode(codec.fit(VALUES, LAYOUT), LAYOUT)
    sizes = np.diff(np.searchsorted(support_of(codec), LAYOUT.offsets))
    fewest, most = (11 + bits * np.count_nonzero(sizes) for bits in (6, 10))
    signs = len(sizes) + support_of(codec).size
    assert fewest + signs <= 8 * len(payload) <= most + signs + 7


def test_values_off_the_support_are_refused_and_kept_for_later():
    codec = MaskedSign(PublicSupport(0.25)).at(CONTEXT, None)
    with pytest.raises(ExchangeError, match="no value off its support"):
        codec.encode(np.ones(LAYOUT.size, np.float32), LAYOUT)
    plan, state = ExchangePlan((AddResidual(), Quantise(codec), KeepResidual()), codec), {}
    sent, _ = plan.run(Update(LAYOUT, VALUES, round=3, steps=1), state)
    off = np.setdiff1d(np.arange(LAYOUT.size), support_of(codec))
    assert np.array_equal(state["residual"][off], VALUES[off]) and not sent.values[off].any()


def test_an_unbound_codec_says_what_to_do():
    codec = MaskedSign(PublicSupport(0.25))
    steps = (
        lambda: codec.fit(VALUES, LAYOUT),
        lambda: codec.encode(VALUES, LAYOUT),
        lambda: codec.decode(b"", LAYOUT),
    )
    for step in steps:
        with pytest.raises(ExchangeError, match=r"bind the plan with at\(\)"):
            step()


def test_a_tensor_without_support_may_not_claim_a_scale():
    layout = Layout(("a", "b"), ((1,), (500,)))
    rounds = (MaskedSign(PublicSupport(0.25)).at(replace(CONTEXT, round=r), None) for r in range(1, 50))
    codec = next(codec for codec in rounds if support_of(codec, layout)[0] > 0)
    support = support_of(codec, layout)
    claimed = write_scales(np.ones(2, np.float32))
    payload = to_bytes([np.ones(2, np.uint8), claimed, np.zeros(support.size, np.uint8)])
    with pytest.raises(EnvelopeError, match="without values claims a scale"):
        codec.decode(payload, layout)


@pytest.mark.parametrize("density", [0, -0.1, 1.1, float("nan")])
def test_densities_out_of_range_are_refused(density):
    with pytest.raises(ExchangeError, match="above 0 and at most 1"):
        MaskedSign(PublicSupport(density))

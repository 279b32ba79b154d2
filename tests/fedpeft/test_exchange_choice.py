"""``auto``: the codec with the most energy per bit of the vector that is sent, reported and checked."""

import numpy as np
import pytest

from fedpeft.config.models import DirectionConfig
from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import (
    AnyOf,
    Choose,
    Context,
    DeadZone,
    ExchangePlan,
    Layout,
    MaskedSign,
    PublicSupport,
    Sign,
    Sparsify,
    Ternary,
    Update,
    codec_named,
    codec_of,
    entropy_bits,
    open_envelope,
    plan_from_config,
    seal,
)
from fedpeft.exchange.envelope import decode_body, encode_body
from fedpeft.trust import Signer, Verifier

CODECS = {
    name: codec_named(name) for name in ("dense-fp32", "dense-bf16", "int8", "ternary", "sign", "dead-zone")
}

LAYOUT = Layout(("a", "b", "c"), ((60, 50), (900,), (1,)))
CONTEXT = Context(bytes(16), 3, "hospital", bytes(32), "up")
SIGNER = Signer.from_seed(b"hospital")
SIGNS = np.random.default_rng(1).choice([-1.0, 1.0], LAYOUT.size)
RNG = np.random.default_rng(0)
VECTORS = {
    "flat": SIGNS * RNG.uniform(0.8, 1.2, LAYOUT.size),
    "normal": RNG.standard_normal(LAYOUT.size),
    "heavy": RNG.standard_t(2, LAYOUT.size),
    "few large": np.where(RNG.random(LAYOUT.size) < 0.02, 5.0, 0.05) * SIGNS,
    "zero": np.zeros(LAYOUT.size),
}


def update_of(name):
    return Update(LAYOUT, VECTORS[name].astype(np.float32), round=3, steps=1)


def plan_of(density, feedback=False, private=False):
    direction = DirectionConfig(codec="auto", density=density, error_feedback=feedback)
    return plan_from_config(direction, private).at(CONTEXT)


def chosen_for(name, density=0.1):
    sent, metrics = plan_of(density).run(update_of(name), {})
    codecs = {codec.wire_id: codec.name for codec in plan_of(density).codec.members}
    return codecs[int(metrics["choose.codec"])], sent, metrics


@pytest.mark.parametrize(
    ("name", "expected"),
    [("flat", {"masked-sign"}), ("heavy", {"ternary", "dead-zone"}), ("few large", {"ternary", "dead-zone"})],
)
def test_flat_vectors_take_signs_and_heavy_tailed_ones_a_sparse_code(name, expected):
    assert chosen_for(name)[0] in expected


def test_with_a_wide_budget_flat_vectors_take_all_signs():
    name, sent, _ = chosen_for("flat", density=0.5)
    assert name == "sign" and sent.values.all()


def naive_energy_per_bit(codec, values, density):
    share = {"ternary": density, "dead-zone": 0.75 * density}.get(codec.name)
    kept = values
    if share:
        order = np.argsort(-np.abs(values), kind="stable")[round(share * values.size) :]
        kept = values.copy()
        kept[order] = 0
    fitted = codec.fit(kept, LAYOUT).astype(np.float64)
    energy = 1 - np.sum((values - fitted) ** 2) / np.sum(values.astype(np.float64) ** 2)
    return energy * values.size / (8 * len(codec.encode(fitted.astype(np.float32), LAYOUT)))


@pytest.mark.parametrize("name", ["flat", "normal", "heavy", "few large"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_the_reported_energy_per_bit_is_what_is_measured_and_its_maximum_wins(name, density):
    choice, _, metrics = chosen_for(name, density)
    scores = {
        codec.name: naive_energy_per_bit(codec, update_of(name).values, density)
        for codec in plan_of(density).codec.members
    }
    for codec, score in scores.items():
        assert metrics[f"choose.energy_per_bit.{codec}"] == pytest.approx(score, rel=1e-4)
    # A dead-zone vector that uses one level only is a ternary vector, and written as one.
    best = max(scores, key=scores.__getitem__)
    assert choice == best or (choice, best) == ("ternary", "dead-zone")


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_the_envelope_names_the_choice_and_opens_to_the_same_bits(name, density):
    choice, sent, _ = chosen_for(name, density)
    plan = plan_of(density)
    data = seal(sent, plan, CONTEXT, SIGNER)
    named = codec_of(data, plan.codec)
    assert named == plan.codec.writer(sent.values, LAYOUT).name
    assert named == choice
    decoded = open_envelope(data, LAYOUT, plan.codec, CONTEXT, Verifier(SIGNER.public))
    assert np.array_equal(decoded.dense().view(np.uint32), sent.values.view(np.uint32))


@pytest.mark.parametrize("density", [0.05, 0.2])
def test_every_choice_keeps_to_the_bytes_of_ternary(density):
    sizes = [len(seal(chosen_for(n, density)[1], plan_of(density), CONTEXT, SIGNER)) for n in VECTORS]
    ternary = ExchangePlan((Sparsify(density), Choose(AnyOf((Ternary(),)), 1.0)), AnyOf((Ternary(),)))
    allowed = len(seal(ternary.run(update_of("normal"), {})[0], ternary, CONTEXT, SIGNER))
    assert max(sizes) <= 1.1 * allowed


def test_the_choice_is_made_on_the_vector_with_the_residual():
    """What is measured is what is sent: a flat update with a heavy-tailed residual is heavy-tailed."""
    state = {"residual": (VECTORS["few large"] * 40).astype(np.float32)}
    _, metrics = plan_of(0.05, feedback=True).run(update_of("flat"), state)
    assert metrics["choose.codec"] in (Ternary.wire_id, DeadZone.wire_id)


def test_the_coordinator_accepts_members_only():
    members = AnyOf((Ternary(), Sign()))
    for codec in (*CODECS.values(), MaskedSign(PublicSupport(0.3)).at(CONTEXT, None)):
        values = codec.fit(update_of("normal").values, LAYOUT)
        body = encode_body(update_of("normal").with_values(values), codec)
        if codec in members.members:
            assert np.array_equal(decode_body(body, LAYOUT, members).dense(), values)
        else:
            with pytest.raises(EnvelopeError, match=f"number {codec.wire_id}, this run agreed on auto"):
                decode_body(body, LAYOUT, members)
    with pytest.raises(EnvelopeError, match="number 255"):
        decode_body(body[:3] + b"\xff" + body[4:], LAYOUT, members)


def test_the_shortest_member_that_carries_the_values_writes_them():
    codec = AnyOf((CODECS["dense-fp32"], DeadZone(), Ternary()))
    sparse = Ternary().fit(np.where(RNG.random(LAYOUT.size) < 0.1, SIGNS, 0).astype(np.float32), LAYOUT)
    assert codec.writer(sparse, LAYOUT).name == "ternary"
    dense = update_of("normal").values
    assert codec.writer(dense, LAYOUT).name == "dense-fp32"
    assert codec.encode(dense, LAYOUT) == CODECS["dense-fp32"].encode(dense, LAYOUT)
    with pytest.raises(ExchangeError, match=r"none of ternary, sign carries these values; put Choose\(\)"):
        AnyOf((Ternary(), Sign())).encode(dense, LAYOUT)
    with pytest.raises(EnvelopeError, match="header names one"):
        codec.decode(b"", LAYOUT)


def test_auto_carries_more_energy_than_ternary_for_its_bytes():
    for name in ("flat", "normal", "heavy"):
        _, _, metrics = chosen_for(name, 0.2)
        scores = {key: value for key, value in metrics.items() if "energy_per_bit" in key}
        assert max(scores.values()) >= scores["choose.energy_per_bit.ternary"] > 0


def test_auto_is_allowed_in_private_plans_and_counts_its_entropy():
    plan = plan_of(0.2, feedback=True, private=True)
    sent, _ = plan.run(update_of("heavy"), {})
    size = len(seal(sent, plan, CONTEXT, SIGNER))
    assert 8 * size > entropy_bits(sent.values, LAYOUT) > 0

"""The private benchmark: which runs it compares, and how it sums them up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.privacy import plan_from_config
from fedpeft_bench.federation.gain import options
from fedpeft_bench.privacy import record_level


def config_of(settings: Sequence[str]) -> Config:
    return load_config(embedded_scenario(), (*options(record_level.QUIET), *settings))


def figures(loss: float, accuracy: float, noise: float = 1.0) -> record_level.Figures:
    return record_level.Figures(8.0, 0.1, loss, accuracy, 1000.0, noise, 0.2)


def test_every_arm_is_private_at_its_epsilon():
    for arm in (
        *record_level.utility_variants(),
        *record_level.exchange_variants(),
        *record_level.few_variants(),
    ):
        found = config_of(record_level.private(arm.settings, arm.epsilon))
        trust = "distributed" if "shared" in arm.name else "local"
        assert (found.privacy.unit, found.privacy.trust) == ("record", trust)
        assert found.privacy.epsilon == arm.epsilon
        same_noise = arm in record_level.few_variants()
        assert found.privacy.randomness == ("seeded" if same_noise else "system")
        assert found.privacy.noise_multiplier is None


def test_a_twin_differs_in_its_noise_alone_and_promises_nothing():
    for arm in record_level.utility_variants():
        own, twin = (
            config_of(record_level.private(arm.settings, epsilon)) for epsilon in (arm.epsilon, None)
        )
        privacy = {"epsilon": None, "noise_multiplier": record_level.NO_NOISE, "randomness": "seeded"}
        alike = own.privacy.model_copy(update=privacy)
        assert twin == own.model_copy(update={"privacy": alike})
        plan = plan_from_config(twin, 100)
        assert plan is not None and plan.epsilon() == math.inf


def test_the_reference_has_neither_privacy_nor_compression():
    found = config_of(options(record_level.OPEN))
    assert found.privacy.unit == "none"
    assert found.exchange.up.codec == found.exchange.down.codec == "dense-fp32"


def test_families_of_one_budget_send_as_many_bits():
    """Bits per value: the density of a shared support, and the entropy of a ternary value of this density."""
    for arm in record_level.exchange_variants():
        up = config_of(record_level.private(arm.settings, arm.epsilon)).exchange.up
        if up.codec not in ("masked-sign", "ternary"):
            continue
        entropy = -up.density * math.log2(up.density / 2) - (1 - up.density) * math.log2(1 - up.density)
        bits = up.density if up.codec == "masked-sign" else entropy
        assert bits == pytest.approx(float(arm.name.split()[0]), rel=0.1), arm.name


def test_gains_are_shares_of_the_twins_and_of_the_open_federations():
    found, twin, reference = figures(4.0, 0.5), figures(3.0, 0.6), figures(2.0, 0.9, 0.0)
    made = record_level.row("utility", "epsilon 8", 3, found, reference, twin)
    assert made["loss_of_twin"] == pytest.approx(4 / 5) and made["loss_of_open"] == pytest.approx(4 / 6)
    assert made["accuracy_of_twin"] == pytest.approx(0.4 / 0.5)
    assert made["accuracy_of_open"] == pytest.approx(0.4 / 0.8)


def test_means_name_the_worst_seed_and_the_spread():
    reference, twin = figures(2.0, 0.9, 0.0), figures(3.0, 0.6)
    rows = [
        record_level.row("utility", "epsilon 8", seed, figures(loss, 0.5), reference, twin)
        for seed, loss in enumerate((4.0, 5.0))
    ]
    rows.append(record_level.row("exchange", "epsilon 8", 0, figures(2.0, 0.9), reference))
    first, second = record_level.means(rows)
    assert first["seeds"] == [0, 1] and first["loss"] == pytest.approx(4.5)
    assert first["loss_of_twin"] == pytest.approx(0.7) and first["worst_loss_of_twin"] == pytest.approx(0.6)
    assert first["spread_loss"] == pytest.approx(math.sqrt(0.5)) and first["spread_accuracy"] == 0
    assert second["loss_of_open"] == pytest.approx(1) and "loss_of_twin" not in second
    assert {len(record_level.cells(mean)) for mean in (first, second)} == {len(record_level.COLUMNS)}


@pytest.mark.slow
def test_a_run_without_noise_is_measured_and_repeats():
    small = {
        "federation.nodes": 2,
        "federation.rounds": 2,
        "federation.local_steps": 1,
        "federation.batch_size": 4,
        "adapter.rank": 4,
        "data.samples": 16,
        "data.test_samples": 16,
    }
    settings = record_level.private({**record_level.TUNED["1 bit: sign"], **small}, None)
    found = record_level.measure(settings)
    assert found == record_level.measure(settings)
    assert found.noise == 0 or found.noise == record_level.NO_NOISE
    assert found.up > 0 and found.base_loss > 0

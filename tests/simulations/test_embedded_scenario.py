"""The embedded scenario: sound, and of the sizes that its claims rest on."""

import math

import pytest

from fedpeft.adapters import attach
from fedpeft.bases import load_base
from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.privacy.plan_builder import plan_from_config
from fedpeft_simulations.baselines import private_config


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(embedded_scenario())


def shannon(density: float) -> float:
    """Bits of a ternary symbol of this density with even signs; no tensor-wise coder needs more."""
    empty = 1 - density
    return -empty * math.log2(empty) - density * math.log2(density / 2)


def test_ternary_both_ways_is_fifty_times_smaller_than_both_dense_factors(config: Config) -> None:
    attached = attach(load_base(config.base), config.adapter, config.run.seed)
    factors = [module for module in attached.model.modules() if hasattr(module, "lora_A")]
    both = sum(p.numel() for m in factors for f in (m.lora_A, m.lora_B) for p in f.parameters())
    assert attached.layout.size == 90112
    bits = 1.03 * (shannon(config.exchange.up.density) + shannon(config.exchange.down.density))
    assert 2 * 32 * both / (bits * attached.layout.size) > 50


def test_the_private_arm_is_private_and_within_its_epsilon(config: Config) -> None:
    assert config.privacy.unit == "none" and plan_from_config(config) is None
    private = private_config(config)
    plan = plan_from_config(private)
    assert plan is not None and plan.epsilon() <= 8.0
    assert plan.delta < 1 / config.data.samples
    assert 0 in private.adapter.skip_layers

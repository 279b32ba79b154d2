"""The laboratory is the platform with other exchanges, and the tables say what was measured."""

from dataclasses import dataclass

import numpy as np
import pytest

from fedpeft.config import load_config
from fedpeft.config.profiles import PROFILES
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.exchange import ExchangePlan, Layout, Sparsify, Ternarise, Update, codec_named
from fedpeft_bench.exchange.peers import TopK
from fedpeft_bench.federation import federation, gain, participation
from fedpeft_server.rounds.checkpoints import load_arrays
from fedpeft_simulations.federation_lab import (
    FederationLab,
    coded_down,
    coded_up,
    dense_down,
    dense_up,
    sparse_state,
)
from fedpeft_simulations.federation_run import run

QUIET = ("run.baselines=[]", "audit.enabled=false")
SMALL = (
    *QUIET,
    "base.device=cpu",
    "base.threads=1",
    "federation.nodes=2",
    "federation.rounds=3",
    "federation.local_steps=1",
    "federation.batch_size=4",
    "federation.optimiser=sgd",
    "federation.server.name=adam",
    "adapter.rank=4",
    "data.samples=16",
    "data.test_samples=16",
)
DENSE = gain.options(federation.DENSE)


@dataclass(frozen=True)
class Ternary:
    """The platform's ternary rule as a coder."""

    density: float
    codec = codec_named("ternary")

    def encode(self, values, layout):
        plan = ExchangePlan((Sparsify(self.density), Ternarise()), self.codec)
        update, _ = plan.run(Update(layout, values, 1, 0), {})
        return self.codec.encode(update.values, layout)

    def decode(self, data, layout):
        return self.codec.decode(data, layout).dense()


def platform_values(config, out):
    run(config, out, "new", lambda event: None)
    arrays, _ = load_arrays(out / "state" / "final.npz")
    return arrays["values"]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_dense_laboratory_gives_the_platforms_bits(tmp_path, share):
    config = load_config(embedded_scenario(), (*SMALL, *DENSE, f"federation.participation={share}"))
    found = FederationLab.of(config).run(dense_up, dense_down)
    np.testing.assert_array_equal(found.values, platform_values(config, tmp_path / "run"))
    assert found.up == found.down == 4 * found.values.size


@pytest.mark.parametrize("feedback", [True, False])
def test_ternary_laboratory_gives_the_platforms_bits(tmp_path, feedback):
    exchange = {
        f"exchange.{way}.{key}": value
        for way in ("up", "down")
        for key, value in (("codec", "ternary"), ("density", 0.05), ("error_feedback", feedback))
    }
    config = load_config(embedded_scenario(), (*SMALL, *gain.options(exchange)))
    laboratory, coder = FederationLab.of(config), Ternary(0.05)
    found = laboratory.run(
        coded_up(coder, laboratory.layout, feedback=feedback),
        coded_down(coder, laboratory.layout, feedback=feedback),
    )
    np.testing.assert_array_equal(found.values, platform_values(config, tmp_path / "run"))


@pytest.mark.slow
def test_dense_laboratory_gives_the_platforms_bits_on_the_whole_scenario(tmp_path):
    chosen = {"exchange.profile": "thin", **federation.DENSE}
    config = load_config(embedded_scenario(), (*QUIET, *gain.options(chosen)))
    found = FederationLab.of(config).run(dense_up, dense_down)
    np.testing.assert_array_equal(found.values, platform_values(config, tmp_path / "run"))


@pytest.fixture
def layout():
    return Layout.of({"a": np.zeros((3, 4), np.float32), "b": np.zeros((8,), np.float32)})


def test_feedback_carries_what_was_not_sent_for_each_node_alone(layout):
    rng = np.random.default_rng(0)
    up = coded_up(TopK(0.2, "<f4"), layout, feedback=True)
    left = dict.fromkeys("xy", np.zeros(layout.size, np.float32))
    for _ in range(5):
        for node in "xy":
            change = rng.standard_normal(layout.size).astype(np.float32)
            sent, size = up(node, change)
            wanted = change + left[node]
            largest = np.argsort(-np.abs(wanted))[:4]
            np.testing.assert_array_equal(np.flatnonzero(sent), np.sort(largest))
            np.testing.assert_array_equal(sent[largest], wanted[largest])
            assert size == 4 * (4 + 4)
            left[node] = wanted - sent


def test_without_feedback_what_is_not_sent_is_lost_at_both_ends(layout):
    rng = np.random.default_rng(0)
    change, exact = rng.standard_normal((2, layout.size))
    up = coded_up(TopK(0.2, "<f4"), layout, feedback=False)
    first, _ = up("x", change.astype(np.float32))
    again, _ = up("x", change.astype(np.float32))
    np.testing.assert_array_equal(first, again)
    broadcast = coded_down(TopK(0.2, "<f4"), layout, feedback=False)(exact, np.zeros_like(first))
    assert np.count_nonzero(broadcast.node_values) == 4
    np.testing.assert_array_equal(broadcast.exact, broadcast.node_values)


def test_flasc_sends_the_largest_values_of_the_state_and_keeps_all(layout):
    exact = np.random.default_rng(0).standard_normal(layout.size)
    broadcast = sparse_state(TopK(0.2, "<f2"), layout)(exact, np.ones(layout.size, np.float32))
    kept = np.sort(np.argsort(-np.abs(exact))[:4])
    np.testing.assert_array_equal(np.flatnonzero(broadcast.node_values), kept)
    np.testing.assert_allclose(broadcast.node_values[kept], exact[kept], rtol=1e-3)
    assert broadcast.exact is exact and broadcast.size == 4 * (4 + 2)


def test_a_gain_is_a_share_of_the_dense_gain():
    dense = gain.Figures(8.0, 0.1, 2.0, 0.9, 4000.0, 4000.0)
    found = gain.Figures(8.0, 0.1, 5.0, 0.7, 40.0, 20.0)
    made = gain.row("thin", 3, found, dense)
    assert made["loss_gain"] == pytest.approx(0.5) and made["accuracy_gain"] == pytest.approx(0.75)
    assert (made["ratio_up"], made["ratio_down"]) == (100.0, 200.0)
    worse = gain.row("thin", 4, gain.Figures(8.0, 0.1, 6.5, 0.5, 40.0, 20.0), dense)
    (mean,) = gain.means([made, worse])
    assert mean["loss_gain"] == pytest.approx(0.375) and mean["worst_loss_gain"] == pytest.approx(0.25)
    assert len(gain.cells(mean)) == len(gain.COLUMNS)


def test_every_arm_is_a_valid_config_and_stands_behind_its_dense_reference():
    first = {arm.profile: arm for arm in reversed(federation.variants())}
    assert first.keys() == PROFILES.keys() - {"private"}, "which fedpeft bench private measures"
    assert all(arm.settings.items() >= federation.DENSE.items() for arm in first.values())
    assert all(arm.directions is None for arm in first.values())
    for arm in federation.variants():
        chosen = {"exchange.profile": arm.profile, **arm.settings}
        config = load_config(embedded_scenario(), gain.options(chosen))
        optimiser = PROFILES[arm.profile].settings["federation.optimiser"]
        assert (config.exchange.profile, config.federation.optimiser) == (arm.profile, optimiser)


def test_two_of_eight_nodes_take_part_in_every_arm():
    for settings in participation.VARIANTS.values():
        config = load_config(embedded_scenario(), gain.options({**participation.SETTING, **settings}))
        assert config.federation.nodes * config.federation.participation == 2


@pytest.mark.slow
def test_a_baseline_is_measured_as_a_run_is():
    found = federation.measure(SMALL, federation.flasc(0.05))
    dense = gain.platform((*SMALL, *DENSE))
    assert (found.base_loss, found.base_accuracy) == (dense.base_loss, dense.base_accuracy)
    size = round((dense.up - 68) / 4)
    assert found.up == found.down == 6 * round(0.05 * size)
    assert dense.up == dense.down

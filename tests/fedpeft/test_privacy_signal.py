"""Noise over signal against a simulation, the reference figures, and the advice of a refusal."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.matrix import correlated, optimised
from fedpeft.privacy.noise_to_signal import check_signal, remedies, signal
from fedpeft.privacy.plan import PrivacyPlan

LOCAL = PrivacyPlan(16 / 200, 1.2, 1.0, 16, 10, 10, 1e-5)
NODES = PrivacyPlan(1.0, 3.2877, 1.0, 20, 1, 30, 1e-5, "node", "central")
DISTRIBUTED = replace(NODES, trust="distributed", grid=Grid(10_000, 1600.0, 13))


@pytest.mark.parametrize(("size", "published"), [(10**4, 16), (10**5, 52), (2 * 10**7, 735)])
def test_twenty_nodes_and_thirty_rounds_give_the_published_figures(size, published):
    plan = NODES.with_noise(noise_multiplier(NODES, 8.0))
    assert round(signal(plan, size, 20).per_release) == published


@pytest.mark.parametrize(("nodes", "published"), [(100, (3.3, 10.4, 147)), (1000, (0.3, 1.0, 14.7))])
def test_more_nodes_give_the_published_figures(nodes, published):
    plan = replace(NODES, expected_batch_size=nodes)
    figures = [signal(plan, size, nodes).per_release for size in (10**4, 10**5, 2 * 10**7)]
    assert figures == pytest.approx(published, rel=0.1)


def test_local_noise_averages_over_steps_and_nodes():
    size, nodes = 400, 5
    rng = np.random.default_rng(0)
    direction = np.ones(size) / math.sqrt(size)
    z, batch, steps = LOCAL.noise_multiplier, LOCAL.expected_batch_size, LOCAL.steps
    noise = rng.standard_normal((nodes, steps, size)) * z / batch
    figures = signal(LOCAL, size, nodes)
    assert np.linalg.norm(noise[0, 0]) / np.linalg.norm(direction) == pytest.approx(
        figures.per_release, rel=0.2
    )
    total = np.linalg.norm(noise.mean(0).sum(0)) / np.linalg.norm(steps * direction)
    assert total == pytest.approx(figures.whole_run, rel=0.2)


def test_banded_noise_cancels_as_the_mechanism_does():
    bands, rounds, size = 4, 24, 3_000
    plan = replace(NODES, bands=bands, separation=bands, rounds=rounds)
    rng = np.random.default_rng(1)
    column, history, total = optimised(bands, rounds), np.zeros((0, size)), np.zeros(size)
    for _ in range(rounds):
        row, history = correlated(column, rng.standard_normal(size), history)
        total += row
    scale = plan.noise_multiplier / plan.expected_batch_size
    figures = signal(plan, size, 20)
    assert scale * np.linalg.norm(row) == pytest.approx(figures.per_release, rel=0.1)
    assert scale * np.linalg.norm(total) / rounds == pytest.approx(figures.whole_run, rel=0.1)
    assert figures.whole_run < signal(replace(NODES, rounds=rounds), size, 20).whole_run


def test_distributed_noise_is_that_of_all_nodes():
    plan = replace(NODES, trust="distributed", grid=Grid(100, 160.0, 5))
    assert signal(plan, 100, 20).per_release == pytest.approx(2 * signal(NODES, 100, 20).per_release)


def test_a_quiet_plan_passes_and_its_figures_come_back():
    assert check_signal(LOCAL, 400, 4, 1.0) == signal(LOCAL, 400, 4)


def test_a_refusal_names_what_helps_best_first():
    plan = LOCAL.with_noise(noise_multiplier(LOCAL, 1.0))
    figure = signal(plan, 30_720, 4).whole_run
    with pytest.raises(PrivacyError) as refused:
        check_signal(plan, 30_720, 4, 0.75 * figure)
    message = str(refused.value)
    assert "\n" not in message and "enough is any of" in message
    assert f"noise is {figure:.2g} times" in message and f"max_noise_to_signal = {0.75 * figure:g}" in message
    found = remedies(plan, 30_720, 4)
    enough = [each.change for each in found if each.whole_run <= 0.75 * figure]
    assert all((each.change in message) == (each.change in enough) for each in found)
    assert {"federation.nodes = 16", "noise on 25 % of the values", "half the adapter.rank"} <= set(enough)
    changes = " ".join(each.change for each in found)
    assert "federation.batch_size = 64" in changes and "4 times the privacy.public_records" in changes
    figures = [float(each) for each in re.findall(r"\((\d[\d.]*)\)", message)]
    assert len(figures) == len(enough) >= 4
    assert figures == sorted(figures) and figures[-1] <= 0.76 * figure


def test_a_hopeless_plan_is_told_so():
    with pytest.raises(PrivacyError, match=r"none alone is enough; best are: federation.nodes = 80"):
        check_signal(NODES, 2 * 10**7, 20, 1.0)


@pytest.mark.parametrize("plan", [NODES, replace(NODES, bands=4, separation=4), DISTRIBUTED])
def test_remedies_keep_the_epsilon(plan):
    before = signal(plan, 10_000, 20).whole_run
    found = {remedy.change: remedy.whole_run for remedy in remedies(plan, 10_000, 20)}
    assert all(figure < before * 1.02 for figure in found.values())
    assert found["federation.nodes = 80"] == pytest.approx(before / 4, rel=0.03)
    assert found["noise on 25 % of the values"] == pytest.approx(before / 2)


def test_asking_for_more_survivors_lessens_distributed_noise():
    plan = replace(DISTRIBUTED, grid=Grid(10_000, 1600.0, 3))
    found = {remedy.change: remedy.whole_run for remedy in remedies(plan, 10_000, 20)}
    before = signal(plan, 10_000, 20).whole_run
    assert found["exchange.secure.min_nodes = 14"] == pytest.approx(before * math.sqrt(3 / 14))


def test_a_plan_without_guarantee_still_gets_advice():
    seeded = replace(NODES, reproducible=True)
    assert remedies(seeded, 10_000, 20) == remedies(NODES, 10_000, 20)


@pytest.mark.parametrize(("size", "nodes"), [(0, 4), (10, 0)])
def test_nothing_has_no_signal(size, nodes):
    with pytest.raises(PrivacyError, match="at least 1"):
        signal(LOCAL, size, nodes)

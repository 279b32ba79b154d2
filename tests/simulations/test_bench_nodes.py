"""The benchmark of whole nodes: published figures, and that training under the noise works."""

import math

import numpy as np
import pytest

from fedpeft.privacy.plan import AdaptiveClip
from fedpeft_bench.privacy import node_level

PUBLISHED = {  # epsilon 2: noise of the running sum over the clip, by schedule and nodes of a round
    ("all", 100): 1.417,
    ("secret coins", 20): 1.483,
    (node_level.BANDED, 20): 1.613,
    ("secret coins", 10): 1.598,
    (node_level.TURNS, 10): 4.481,
    (node_level.BANDED, 10): 1.858,
}


def check_published(monkeypatch, sampled):
    chosen = [schedule for schedule in node_level.schedules(100) if schedule.sampled == sampled]
    monkeypatch.setattr(node_level, "EPSILONS", (2.0,))
    monkeypatch.setattr(node_level, "schedules", lambda count: chosen)
    found = {(row["schedule"], row["expected"]): row for row in node_level.schedule_rows()}
    for key in PUBLISHED.keys() & found.keys():
        assert found[key]["running"] == pytest.approx(PUBLISHED[key], rel=2e-3), key
    assert all(
        len(node_level.schedule_cells(row)) == len(node_level.SCHEDULE_COLUMNS) for row in found.values()
    )


def test_noise_without_secret_coins_is_the_published_one(monkeypatch):
    check_published(monkeypatch, sampled=False)


@pytest.mark.slow
def test_noise_with_secret_coins_is_the_published_one(monkeypatch):
    check_published(monkeypatch, sampled=True)


@pytest.fixture(scope="module")
def population():
    return node_level.Population.make(nodes=300, records=10, values=60)


def test_a_nodes_change_follows_its_own_loss(population):
    weights = np.zeros(60)
    change = population.change(5, weights)
    margins = [population.labels[5] * (population.points[5] @ (weights + s * change)) for s in (0, 1)]
    before, after = (np.logaddexp(0, -margin).mean() for margin in margins)
    assert before == pytest.approx(math.log(2)) and after < before


def test_training_works_under_noise_and_a_clip_from_nowhere_finds_its_length(population):
    nothing = node_level.trained(population, None, rounds=25, expected=60)
    assert nothing["accuracy"] > 0.8
    shape = node_level.plan_of(node_level.Schedule("", 60, sampled=True), 300, 25).with_noise(1.0)
    scores = {}
    for clip in (100.0, 0.01):
        for adaptive in (None, AdaptiveClip(0.5, 1.0, 3.0)):
            plan = node_level.replace(shape, clip=clip, adaptive=adaptive)
            scores[clip, adaptive is not None] = node_level.trained(population, plan, rounds=25, expected=60)
    assert scores[0.01, True]["accuracy"] > 0.75
    assert scores[100.0, False]["accuracy"] < 0.65
    found = [scores[clip, True]["last_clip"] for clip in (0.01, 100.0)]
    assert 0.3 < found[0] < 3 and 0.3 < found[1] < 3
    assert scores[0.01, True]["ratio"] == pytest.approx(math.sqrt(60) / 60)


def test_every_arm_has_its_row_and_its_cells(monkeypatch):
    monkeypatch.setattr(node_level, "EPSILONS", (8.0,))
    found = list(node_level.variants(200, 40, 5))
    assert found[0][2] is None and len({name for name, _, _ in found}) == 7
    assert all(plan.epsilon() <= target for _, target, plan in found if plan)
    row = node_level.trained(node_level.Population.make(200, 4, 20), found[-1][2], 2, 40)
    made = {"arm": "x", "epsilon": 2.0, "noise_multiplier": 1.0, **row}
    assert len(node_level.training_cells(made)) == len(node_level.TRAINING_COLUMNS)

"""What hiding whole nodes costs: noise by schedule at equal privacy, and a convex problem under it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.aggregation.central_dp import CentralNoise
from fedpeft.aggregation.mean import Contribution
from fedpeft.cli.output import table
from fedpeft.exchange import Decoded, Layout
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.matrix import optimised, participations, running_error
from fedpeft.privacy.plan import AdaptiveClip, PrivacyPlan
from fedpeft.privacy.sampling import poisson
from fedpeft_bench.harness.command import machine

Wide = NDArray[np.float64]
Row = dict[str, Any]

DELTA = 1e-5
EPSILONS = (2.0, 8.0)
TURNS = "in turns, independent"
BANDED = "in turns, banded"

SCHEDULE_COLUMNS = (
    "schedule",
    "nodes a round",
    "epsilon",
    "z",
    "noise of a mean",
    "noise of the running sum",
)
TRAINING_COLUMNS = ("arm", "epsilon", "z", "last clip", "noise / clip", "accuracy", "loss")


@dataclass(frozen=True)
class Schedule:
    """Who takes part when.

    Attributes:
        name: in the table.
        expected: nodes of one round.
        sampled: each node by a secret coin.
        separation: rounds from one turn of a node to its next; 1: every round counts.
        bands: of the noise.
    """

    name: str
    expected: int
    sampled: bool = False
    separation: int = 1
    bands: int = 1


def plan_of(schedule: Schedule, nodes: int, rounds: int) -> PrivacyPlan:
    """A plan that charges as many releases as one node can be in; its noise is still to be solved for."""
    return PrivacyPlan(
        sampling_probability=schedule.expected / nodes if schedule.sampled else 1.0,
        noise_multiplier=1.0,
        clip=1.0,
        expected_batch_size=schedule.expected,
        steps_per_round=1,
        rounds=participations(rounds, schedule.separation),
        delta=DELTA,
        unit="node",
        trust="central",
    )


def schedules(nodes: int) -> Iterator[Schedule]:
    """All nodes each round, or a tenth and a fifth of them by secret coins or in turns."""
    yield Schedule("all", nodes)
    for turns in (5, 10):
        yield Schedule("secret coins", nodes // turns, sampled=True)
        yield Schedule(TURNS, nodes // turns, separation=turns)
        yield Schedule(BANDED, nodes // turns, separation=turns, bands=turns)


def schedule_rows(nodes: int = 100, rounds: int = 100) -> list[Row]:
    """Noise at equal privacy: of one round's mean, and of the running sum of means, in units of the clip.

    Analytic: the root mean square over rounds of the standard deviation of each value.
    """
    return [_schedule_row(s, e, nodes, rounds) for e in EPSILONS for s in schedules(nodes)]


def _schedule_row(schedule: Schedule, target: float, nodes: int, rounds: int) -> Row:
    noise = noise_multiplier(plan_of(schedule, nodes, rounds), target)
    return {
        "schedule": schedule.name,
        "expected": schedule.expected,
        "epsilon": target,
        "noise_multiplier": noise,
        "mean": noise / schedule.expected,
        "running": noise / schedule.expected * running_error(optimised(schedule.bands, rounds), rounds),
    }


def schedule_cells(row: Row) -> list[str]:
    """A row of `schedule_rows` as text, in the order of `SCHEDULE_COLUMNS`."""
    figures = (f"{row[key]:.3f}" for key in ("noise_multiplier", "mean", "running"))
    return [row["schedule"], str(row["expected"]), f"{row['epsilon']:g}", *figures]


@dataclass(frozen=True)
class Population:
    """Made-up nodes with labelled points of one linear rule; no model, no text.

    Attributes:
        points: float32, shape ``(nodes, records, values)``.
        labels: -1 or 1, shape ``(nodes, records)``.
        test_points: float32, shape ``(records, values)``.
        test_labels: shape ``(records,)``.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.float32]
    test_points: NDArray[np.float32]
    test_labels: NDArray[np.float32]

    @classmethod
    def make(cls, nodes: int = 1000, records: int = 20, values: int = 1000, seed: int = 0) -> Population:
        """Points in all directions, most of their length in some; a tenth of the labels is wrong."""
        rng = np.random.default_rng(seed)
        scale = (np.arange(1, values + 1) ** -0.5).astype(np.float32)
        rule = rng.standard_normal(values).astype(np.float32)

        def draw(*shape: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            points = rng.standard_normal((*shape, values), np.float32) * scale
            right = np.sign(points @ rule)
            return points, np.where(rng.random(shape) < 0.1, -right, right).astype(np.float32)

        return cls(*draw(nodes, records), *draw(5000))

    def change(self, node: int, weights: Wide, steps: int = 5, lr: float = 0.5) -> NDArray[np.float32]:
        """What a few steps of logistic regression on one node's points change, shape ``(values,)``."""
        points, labels = self.points[node], self.labels[node]
        start = weights.astype(np.float32)
        local = start.copy()
        for _ in range(steps):
            margin = np.clip(labels * (points @ local), -30, 30)
            local += lr / len(labels) * ((labels / (1 + np.exp(margin))) @ points)
        return local - start

    def judged(self, weights: Wide) -> tuple[float, float]:
        """Accuracy and logistic loss on test points."""
        margin = self.test_labels * (self.test_points @ weights)
        return float((margin > 0).mean()), float(np.logaddexp(0, -margin).mean())


def trained(
    population: Population, plan: PrivacyPlan | None, rounds: int, expected: int, lr: float = 3.0
) -> Row:
    """Federated averaging with nodes drawn by secret coins, under a plan's noise or without any."""
    nodes, _, values = population.points.shape
    layout, weights = Layout.of({"w": np.zeros(values)}), np.zeros(values)
    aggregator = CentralNoise.of(plan) if plan else None
    clip = 0.0
    for _ in range(rounds):
        drawn = _updates(population, weights, layout, poisson(nodes, expected / nodes))
        if aggregator is None:
            weights = weights + lr * sum(c[2].numbers.astype(np.float64) for c in drawn) / expected
            continue
        mean, aggregator, facts = aggregator.mean(values, drawn)
        weights, clip = weights + lr * mean, facts["clip"]
    accuracy, loss = population.judged(weights)
    ratio = plan.noise_multiplier * math.sqrt(values) / plan.expected_batch_size if plan else 0.0
    return {"last_clip": clip, "ratio": ratio, "accuracy": accuracy, "loss": loss}


def _updates(
    population: Population, weights: Wide, layout: Layout, drawn: NDArray[np.int64]
) -> Iterator[Contribution]:
    for node in drawn:
        yield f"{node:09d}", 1.0, Decoded(layout, population.change(int(node), weights))


def variants(nodes: int, expected: int, rounds: int) -> Iterator[tuple[str, float, PrivacyPlan | None]]:
    """Name, epsilon and plan: no noise, clips that are too short, right and too long, and adaptive ones."""
    yield "no noise, no clip", math.inf, None
    shape = replace(plan_of(Schedule("", expected, sampled=True), nodes, rounds), rounds=rounds)
    for target in EPSILONS:
        plan = shape.with_noise(noise_multiplier(shape, target))
        for clip in (0.01, 0.1, 1.0, 10.0):
            yield f"fixed clip {clip:g}", target, replace(plan, clip=clip)
        adaptive = AdaptiveClip(0.5, 0.2, max(expected / 20, 2 * plan.noise_multiplier))
        for clip in (0.01, 10.0):
            yield f"adaptive clip from {clip:g}", target, replace(plan, clip=clip, adaptive=adaptive)


def training_rows(
    nodes: int = 1000, expected: int = 100, rounds: int = 100, report: Callable[[str], None] | None = None
) -> list[Row]:
    """All variants on one population; one row of figures each."""
    population, results = Population.make(nodes), list[Row]()
    for name, target, plan in variants(nodes, expected, rounds):
        noise = plan.noise_multiplier if plan else 0.0
        figures = trained(population, plan, rounds, expected)
        results.append({"arm": name, "epsilon": target, "noise_multiplier": noise, **figures})
        if report:
            report(f"{name}, epsilon {target:g}")
    return results


def training_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `training_rows` as text, in the order of `TRAINING_COLUMNS`."""
    keys = ("noise_multiplier", "last_clip", "ratio", "accuracy", "loss")
    return [row["arm"], f"{row['epsilon']:g}", *(f"{row[key]:.3f}" for key in keys)]


def run(report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Both tables, machine and date."""
    return {"machine": machine(), "schedules": schedule_rows(), "training": training_rows(report=report)}


def show(facts: Mapping[str, Any]) -> None:
    """Print what `run` found."""
    schedules, training = map(schedule_cells, facts["schedules"]), map(training_cells, facts["training"])
    table(f"100 nodes, 100 rounds, delta {DELTA:g} ({facts['machine']})", SCHEDULE_COLUMNS, schedules)
    table("1000 nodes, 100 a round by secret coins, 1000 values", TRAINING_COLUMNS, training)

"""How far a state may lie from its start: against adversarial gradients, and in honest federations."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.aggregation.central_dp import CentralNoise
from fedpeft.aggregation.drift_bound import Drift, DriftBound, adam_step, drifts, node_drift
from fedpeft.aggregation.global_state import VectorState, initial_state
from fedpeft.aggregation.robust import rule_of
from fedpeft.aggregation.server_optimisers import step as server_step
from fedpeft.config import build_config
from fedpeft.config.models import ServerOptimiserConfig
from fedpeft.exchange import Context, Decoded, Layout, Update
from fedpeft.run_plan import RunPlan
from fedpeft.secagg.grid_values import from_grid, noisy_grid
from fedpeft.training.optimisers import optimiser
from fedpeft.training.plan import ADAMW_BETAS, LocalPlan

LAYOUT = Layout.of({"a.lora_B.weight": np.zeros((12, 4)), "b.lora_B.weight": np.zeros((9, 4))})
ZEROS = np.zeros(LAYOUT.size, np.float32)
NODES = ("clinic", "hospital", "practice", "ward")
CODECS = ("dense-fp32", "dense-bf16", "int8", "sign", "masked-sign", "ternary", "dead-zone", "auto")


def settings(up="dense-fp32", down="dense-fp32", exchange=None, **federation):
    exchange = {"up": {"codec": up}, "down": {"codec": down}, **(exchange or {})}
    return {"federation": {"nodes": 4, "rounds": 10, "local_steps": 3, **federation}, "exchange": exchange}


def trained(plan, gradients):
    """Where the platform's own optimiser ends from 0 along these gradients, float64."""
    values, rule = torch.zeros(len(gradients[0])), optimiser(plan)
    for gradient in gradients:
        rule.step(values, torch.tensor(np.asarray(gradient, np.float32)))
    return values.double().numpy()


@pytest.mark.parametrize("steps", [1, 2, 6, 40])
def test_no_gradients_move_adamw_further_and_the_worst_reach_it(steps):
    plan = LocalPlan(steps, 1, "adamw", lr=0.1)
    rng, limit = np.random.default_rng(steps), node_drift(plan, None, 64).peak
    growth = ADAMW_BETAS[0] / ADAMW_BETAS[1]
    hostile = [
        [np.full(64, growth**-k) for k in range(steps)],
        [np.ones(64)] * steps,
        [np.full(64, 1e6 if k == steps - 1 else 1.0) for k in range(steps)],
        [np.full(64, 1e-6 * 10.0**k) for k in range(steps)],
        *([rng.standard_normal(64) * 10.0 ** rng.uniform(-6, 6) for _ in range(steps)] for _ in range(50)),
    ]
    reached = [np.abs(trained(plan, gradients)).max() for gradients in hostile]
    assert max(reached) <= limit * (1 + 1e-5)
    assert max(reached) >= 0.98 * limit


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.95), (0.9, 0.99), (0.0, 0.99), (0.5, 0.1)])
def test_a_step_of_adam_is_bounded_by_its_naive_twin(beta1, beta2):
    for step in range(1, 30):
        gradients = [(beta1 / beta2) ** age if beta1 else float(age == 0) for age in reversed(range(step))]
        first = second = 0.0
        for gradient in gradients:
            first = beta1 * first + (1 - beta1) * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
        ratio = first / (1 - beta1**step) / math.sqrt(second / (1 - beta2**step))
        assert ratio <= adam_step(beta1, beta2, step) * (1 + 1e-9)
        assert ratio >= adam_step(beta1, beta2, step) * (1 - 1e-9)
    assert adam_step(0.9, 0.0, 2) == math.inf and adam_step(0.0, 0.0, 2) == 1.0


def test_clipped_gradients_move_sgd_no_further_and_equal_ones_reach_it():
    plan = LocalPlan(5, 1, "sgd", lr=0.5, momentum=0.9, max_grad_norm=2.0)
    limit, rng = node_drift(plan, None, 30).norm, np.random.default_rng(0)
    directions = [rng.standard_normal((5, 30)) for _ in range(50)] + [np.ones((5, 30))]
    reached = [
        np.linalg.norm(trained(plan, 2.0 * d / np.linalg.norm(d, axis=1, keepdims=True))) for d in directions
    ]
    assert 0.999 * limit <= max(reached) <= limit * (1 + 1e-5)


@pytest.mark.parametrize("name", ["mean", "momentum", "adam"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_no_means_move_the_servers_step_further(name, optimiser):
    server = {"name": name, "lr": 0.7, "epsilon": 0.1 if optimiser == "sgd" else 1e-8}
    config = build_config(settings(optimiser=optimiser, server=server))
    limits, rng = drifts(RunPlan.from_config(config, 40), 40), np.random.default_rng(1)
    constants = ServerOptimiserConfig(**server)
    for kind in ("equal", "random", "late", "one value"):
        total, moments = np.zeros(40), {}
        for round in range(1, 10):
            node = node_drift(LocalPlan.of(config.federation, round), None, 40)
            direction = {"random": rng.standard_normal(40), "one value": np.eye(40)[3]}.get(kind, np.ones(40))
            scale = 0.0 if kind == "late" and round < 6 else 1.0
            length = min(node.peak / np.abs(direction).max(), node.norm / np.linalg.norm(direction))
            change, moments = server_step(constants, scale * length * direction, moments)
            total += change
            assert np.abs(total).max() <= limits[round].peak * (1 + 1e-9)
            assert np.linalg.norm(total) <= limits[round].norm * (1 + 1e-9)
        if name != "adam" and kind == "equal":
            assert np.linalg.norm(total) == pytest.approx(limits[9].norm)


@pytest.mark.parametrize("bands", [1, 3])
def test_the_noise_of_a_trusted_coordinator_is_within_the_bound(bands):
    cyclic = {"participation": 1 / 3, "selection": "cyclic"} if bands > 1 else {}
    private = {"unit": "node", "trust": "central", "noise_multiplier": 2.0, "bands": bands, "clip": 0.5}
    given = settings(rounds=12, nodes=6, **cyclic)
    given["exchange"]["up"]["error_feedback"] = False
    config = build_config(given | {"privacy": {**private, "max_noise_to_signal": 1e9}})
    plan = RunPlan.from_config(config, LAYOUT.size)
    limits, rule, total = drifts(plan, LAYOUT.size), CentralNoise.of(plan.central), np.zeros(LAYOUT.size)
    for round in range(1, 12):
        long = Decoded(LAYOUT, np.full(LAYOUT.size, 1.0, np.float32))
        mean, rule, _ = rule.mean(LAYOUT.size, [(f"n{k}", 1.0, long) for k in range(2 if bands > 1 else 6)])
        total += mean
        assert np.abs(total).max() <= limits[round].peak


@pytest.mark.parametrize("nodes", [3, 4])
def test_sums_of_gradients_with_shared_noise_are_within_the_bound(nodes):
    """Expected batches of aligned gradients of clip length, and the noise of all or of the fewest nodes."""
    sums = {"up": {"error_feedback": False}, "secure": {"enabled": True, "bits": 32}}
    private = {"unit": "record", "trust": "distributed", "noise_multiplier": 2.0, "clip": 0.5}
    given = settings(rounds=12, local_steps=1, optimiser="sgd", lr=0.3) | {"exchange": sums}
    rates = {"sampling_probability": 0.1, "max_noise_to_signal": 1e9}
    plan = RunPlan.from_config(build_config(given | {"privacy": private | rates}), LAYOUT.size)
    limits, privacy, total = drifts(plan, LAYOUT.size), plan.summed, np.zeros(LAYOUT.size)
    gradient = np.eye(LAYOUT.size)[0] * 0.5 * privacy.expected_batch_size
    for round in range(1, 12):
        integers = sum(noisy_grid(gradient, privacy) for _ in range(nodes))
        mean = from_grid(integers, 0.5 / privacy.grid.steps_per_clip) / privacy.expected_batch_size / nodes
        total += mean * LocalPlan.of(plan.config.federation, round).lr
        assert np.abs(total).max() <= limits[round].peak < 10 * np.abs(total).max()
        assert np.linalg.norm(total) <= limits[round].norm


def test_what_is_beyond_is_named_and_cut():
    config = build_config(settings(local_steps=1, lr=0.01, lr_decay=0.0))
    bound = DriftBound.of(RunPlan.from_config(config, LAYOUT.size), ZEROS + 1)
    near, far = ZEROS + np.float32(1.0099), ZEROS + 1
    far[7] = 1.5
    assert bound.within(2, near) is near and not bound.excess(2, near)
    assert bound.excess(2, far) == (
        "a value of the state of round 2 lies 0.5 from the agreed start; training as agreed reaches 0.01001"
    )
    cut = bound.within(2, far)
    assert cut[7] == pytest.approx(1.01) and not bound.excess(2, cut) and bound.excess(1, near)
    assert bound.excess(2, ZEROS * np.float32(np.nan)) and not bound.excess(
        2, bound.within(2, ZEROS * np.float32(np.nan))
    )
    short = replace(bound, drifts=(Drift(1.0, 1.0),) * 2)
    assert "L2 norm" in short.excess(2, ZEROS + 1.5)
    assert np.linalg.norm(short.within(2, ZEROS + 1.5) - 1) == pytest.approx(1.0)


class Federation:
    """Nodes that draw towards targets of their own by the real optimisers, codecs, rules and server."""

    def __init__(self, config, seed):
        self.config, self.rng = config, np.random.default_rng(seed)
        self.plan = RunPlan.from_config(config, LAYOUT.size)
        self.bound = DriftBound.of(self.plan, ZEROS)
        self.state = initial_state(config, None, LAYOUT, ZEROS, rule_of(config), self.bound)
        self.targets = {name: self.rng.standard_normal(LAYOUT.size) for name in NODES}
        self.residuals = {name: {} for name in NODES}
        self.cut = 0

    def round(self, number, hostile=0.0):
        context = Context(bytes(16), number, "coordinator", bytes(32), "down")
        self.state, release = self.state.publish(self.plan.down.at(context), number)
        self.cut += release.kind == "full"
        problem = self.bound.excess(number, self.state.node_values)
        present = [name for name in NODES if self.rng.random() < self.config.federation.participation]
        updates = [(name, 1.0, self._update(name, number)) for name in present or NODES[:1]]
        if hostile:
            updates[0] = (updates[0][0], 1.0, Decoded(LAYOUT, np.full(LAYOUT.size, hostile, np.float32)))
        self.state, _ = self.state.absorb(number, updates)
        return problem

    def _update(self, name, number):
        plan, received = LocalPlan.of(self.config.federation, number), self.state.node_values
        values, rule = torch.from_numpy(received.copy()), optimiser(plan)
        for _ in range(plan.steps):
            noise = self.rng.standard_normal(LAYOUT.size)
            gradient = torch.from_numpy((values.numpy() - self.targets[name] + noise).astype(np.float32))
            rule.step(values, gradient * min(1.0, plan.max_grad_norm / float(gradient.norm())))
        context = Context(bytes(16), number, name, bytes(32), "up")
        change = Update(LAYOUT, values.numpy() - received, number, plan.steps)
        sent, _ = self.plan.up.at(context).run(change, self.residuals[name])
        return Decoded(LAYOUT, sent.values)


def shapes():
    """All codecs both ways, optimisers, server optimisers, rules, participation, feedback: in turns."""
    rules = itertools.cycle(("auto", "none", "median", "trimmed-mean", "norm-clip", "geometric-median"))
    shares, feedback = itertools.cycle((1.0, 0.5)), itertools.cycle((True, True, False))
    for up, down, local, server in itertools.product(
        CODECS, CODECS, ("adamw", "sgd"), ("mean", "momentum", "adam")
    ):
        dense = up.startswith(("dense", "int8"))
        rule = next(rule for rule in rules if dense or rule not in ("median", "trimmed-mean"))
        ways = {"up": {"codec": up, "error_feedback": next(feedback)}, "down": {"codec": down}}
        yield settings(
            exchange=ways,
            optimiser=local,
            robust=rule,
            participation=next(shares),
            server={"name": server, "lr": 0.5},
        )


def refusals(given, rounds=10):
    """What nodes would refuse of honest runs, the rounds run, and how often the coordinator had to cut."""
    problems, count, cut = [], 0, 0
    for seed, run in enumerate(given):
        federation = Federation(build_config(run), seed)
        problems += [problem for number in range(1, rounds + 1) if (problem := federation.round(number))]
        count, cut = count + rounds, cut + federation.cut
    return problems, count, cut


def test_no_node_refuses_an_honest_coordinator():
    problems, count, cut = refusals(np.random.default_rng(0).permutation(list(shapes()))[:20])
    assert problems == [] and count == 200 and cut <= 0.05 * count


@pytest.mark.slow
def test_a_thousand_honest_rounds_are_never_refused_and_hardly_ever_cut():
    problems, count, cut = refusals(shapes())
    assert problems == [] and count == 3840 and cut <= 0.02 * count


def test_a_hostile_node_makes_nobody_refuse():
    """Without a robust rule one node can push the mean anywhere; what is published stays within the bound."""
    federation = Federation(build_config(settings(robust="none", norm_ratio=0.0)), 0)
    assert not any(federation.round(number, hostile=1e3) for number in range(1, 10))
    assert federation.cut == 8
    assert isinstance(federation.state, VectorState)

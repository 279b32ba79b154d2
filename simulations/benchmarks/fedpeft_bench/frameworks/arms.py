"""fedpeft and Opacus on the problem, each in a process of its own: ``python -m … NAME FOLDER EPSILON``."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from fedpeft.data.batches import Batch, gather
from fedpeft.training import LocalPlan, train_local
from fedpeft.training.loss import per_example_loss
from fedpeft_bench.frameworks import problem
from fedpeft_simulations.federation_lab import FederationLab

Facts = dict[str, Any]


def fedpeft(lab: FederationLab, epsilon: float) -> Facts:
    """A node's training under a plan that is solved for epsilon."""
    from fedpeft.privacy.calibration import noise_multiplier
    from fedpeft.privacy.plan_builder import plan_from_config

    config, pool = lab.config, problem.records(lab)
    started = time.process_time()
    plan = plan_from_config(config)
    assert plan is not None
    plan = replace(plan, expected_batch_size=plan.expected_batch_size * len(lab.nodes))
    plan = plan.with_noise(noise_multiplier(plan, epsilon))
    calibrated = time.process_time()
    for round in range(1, config.federation.rounds + 1):
        local = LocalPlan.of(config.federation, round)
        train_local(lab.attached, pool, local, np.random.default_rng(), plan)
    return _facts("fedpeft", plan.noise_multiplier, plan.epsilon(), (started, calibrated))


def opacus(lab: FederationLab, epsilon: float) -> Facts:
    """The engine of Opacus with its sampler, hooks, noise and accountant."""
    from opacus import PrivacyEngine
    from opacus.accountants.utils import get_noise_multiplier

    config, pool = lab.config, problem.records(lab)
    batch, rates = config.federation.batch_size * len(lab.nodes), problem.rates(config)
    settings: Any = {
        "target_epsilon": epsilon,
        "target_delta": config.privacy.delta,
        "sample_rate": batch / len(pool),
        "steps": len(rates),
        "accountant": "prv",
    }
    started = time.process_time()
    noise = get_noise_multiplier(**settings)
    calibrated = time.process_time()
    whole = gather(lab.attached.model, pool)
    data: Any = TensorDataset(whole.ids, whole.weights)
    engine: Any = PrivacyEngine(accountant="prv")
    module, optimiser, loader = engine.make_private(
        module=lab.attached.model.train(),
        optimizer=torch.optim.SGD(list(lab.attached.parameters.values()), lr=1.0),
        data_loader=DataLoader(data, batch_size=batch),
        noise_multiplier=noise,
        max_grad_norm=config.privacy.clip,
    )
    batches = chain.from_iterable(repeat(loader))
    for rate, (ids, weights) in zip(rates, batches, strict=False):
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad()
        longest = int((weights > 0).any(0).sum()) + 1
        drawn = Batch(ids[:, :longest], weights[:, :longest], whole.lengths, whole.targets)
        per_example_loss(module, drawn).mean().backward()
        optimiser.step()
    return _facts("opacus", noise, engine.get_epsilon(config.privacy.delta), (started, calibrated))


def _facts(package: str, noise: float, epsilon: float, times: tuple[float, float]) -> Facts:
    started, calibrated = times
    return {
        "version": importlib.metadata.version(package),
        "noise": noise,
        "epsilon": epsilon,
        "calibration_s": calibrated - started,
        "training_s": time.process_time() - calibrated,
    }


ARMS: Mapping[str, Callable[[FederationLab, float], Facts]] = {"fedpeft": fedpeft, "opacus": opacus}


def main(name: str, folder: Path, epsilon: float) -> None:
    """Solve the problem, leave the values of the adapter in the folder, print the figures as JSON."""
    lab = FederationLab.of(problem.private_recipe())
    lab.attached.begin(lab.attached.initial())
    before = problem.first_loss(lab)
    facts = ARMS[name](lab, epsilon)
    values: NDArray[np.float32] = lab.attached.get()
    np.save(folder / f"{name}.npy", values)
    print(json.dumps(facts | {"first_loss": before}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))

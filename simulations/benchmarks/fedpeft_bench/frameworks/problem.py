"""The problem that all frameworks solve: the private recipe of the embedded scenario on all records pooled.

One folder holds everything, so that a script of another framework in another environment needs no fedpeft:

* ``task.json``: rates, steps, clip, learning rates, delta, and the shape of the base;
* ``problem.npz``: ``ids`` int64 and ``weights`` float32, shape ``(records, tokens)``, padded on the right;
  ``lengths`` int64, shape ``(records,)``; ``base/NAME``: the frozen weights, float32; ``A`` and ``B``: the
  factors of the one adapted module, whose product counts times ``scaling``.

What is trained is ``A``, shape ``(rank, inputs)``, from zero; ``B`` is frozen. The loss of a record is the
weighted mean of its tokens' cross entropies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.data import Example
from fedpeft.data.batches import gather
from fedpeft.training import LocalPlan
from fedpeft.training.loss import per_example_loss
from fedpeft_simulations.baselines import private_config
from fedpeft_simulations.federation_lab import FederationLab

TASK, ARRAYS = "task.json", "problem.npz"
PREFIX = "base_model.model."
"""What peft writes before the names of a base."""
FIRST = 64
"""Records over which losses before training are compared, in every framework."""


def private_recipe() -> Config:
    """The private recipe of the embedded scenario, by plain gradient descent."""
    return private_config(load_config(embedded_scenario(), ["federation.momentum=0.0"]))


def records(lab: FederationLab) -> list[Example]:
    """Those of all organisations, as if they were of one."""
    return [example for part in lab.nodes.values() for example in part]


def rates(config: Config) -> list[float]:
    """The learning rate of each step."""
    federation = config.federation
    plans = [LocalPlan.of(federation, round) for round in range(1, federation.rounds + 1)]
    return [plan.lr for plan in plans for _ in range(plan.steps)]


def first_loss(lab: FederationLab) -> float:
    """Mean loss of the first records at the adapter's present values."""
    with torch.no_grad():
        batch = gather(lab.attached.model, records(lab)[:FIRST])
        return float(per_example_loss(lab.attached.model, batch).mean())


def write(folder: Path, lab: FederationLab) -> None:
    """Put the problem into a folder that exists."""
    config, pool, model = lab.config, records(lab), lab.attached.model
    share = config.federation.batch_size * len(lab.nodes)
    (trained,) = lab.attached.parameters
    module = trained.partition(".lora_")[0]
    task: dict[str, Any] = {
        "records": len(pool),
        "batch": share,
        "rate": share / len(pool),
        "clip": config.privacy.clip,
        "delta": config.privacy.delta,
        "learning_rates": rates(config),
        "module": module,
        "base": {
            name: getattr(model.config, name)
            for name in ("num_hidden_layers", "num_attention_heads", "head_dim", "rms_norm_eps")
        },
        "rope_theta": model.config.rope_parameters["rope_theta"],
    }
    (folder / TASK).write_text(json.dumps(task, indent=1))
    batch, state = gather(model, pool), model.state_dict()
    arrays = {
        f"base/{name.removeprefix(PREFIX).replace('.base_layer', '')}": value
        for name, value in state.items()
        if ".lora_" not in name
    }
    arrays |= {factor: state[f"{PREFIX}{module}.lora_{factor}.default.weight"] for factor in "AB"}
    np.savez(
        folder / ARRAYS,
        ids=batch.ids.numpy(),
        weights=batch.weights.numpy(),
        lengths=batch.lengths.numpy(),
        scaling=np.float32(model.get_submodule(PREFIX + module).scaling["default"]),
        **{name: value.float().numpy() for name, value in arrays.items()},
    )

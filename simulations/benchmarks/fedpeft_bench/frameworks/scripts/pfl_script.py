"""The problem by pfl-research: ``python pfl_script.py FOLDER EPSILON``; needs numpy, torch, pfl.

pfl protects users, so each record is a user of its own: one step of gradient descent on it is its update,
clipped and summed with the others of a cohort; the server adds noise once and takes the step. The cohort is
drawn by pfl's own sampler, in a size that is fixed.
"""

import asyncio
import importlib.metadata
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism, PLDPrivacyAccountant
from torch.nn import functional


class Llama(torch.nn.Module):
    """A Llama with frozen weights and one adapted module, whose factor A is trained."""

    def __init__(self, task, arrays):
        super().__init__()
        self.task, self.frozen = task, {name: torch.from_numpy(arrays[name]) for name in arrays}
        self.trained = torch.nn.Parameter(self.frozen.pop("A"))

    def linear(self, name, inputs):
        outputs = inputs @ self.frozen[f"base/{name}.weight"].T
        if name == self.task["module"]:
            outputs = outputs + self.frozen["scaling"] * (inputs @ self.trained.T) @ self.frozen["B"].T
        return outputs

    def norm(self, name, x):
        scale = torch.rsqrt((x**2).mean(-1, keepdim=True) + self.task["base"]["rms_norm_eps"])
        return x * scale * self.frozen[f"base/{name}.weight"]

    def forward(self, ids):
        shape = self.task["base"]
        heads, size, (rows, tokens) = shape["num_attention_heads"], shape["head_dim"], ids.shape
        frequencies = self.task["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angles = (torch.arange(tokens)[:, None] * frequencies).repeat(1, 2)

        def turned(x):
            half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
            return x * angles.cos() + half * angles.sin()

        x = self.frozen["base/model.embed_tokens.weight"][ids]
        for index in range(shape["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            h = self.norm(f"{layer}.input_layernorm", x)
            parts = (self.linear(f"{layer}.self_attn.{name}_proj", h) for name in "qkv")
            q, k, v = (part.reshape(rows, tokens, heads, size).transpose(1, 2) for part in parts)
            mixed = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
            x = x + self.linear(f"{layer}.self_attn.o_proj", mixed.transpose(1, 2).reshape(rows, tokens, -1))
            h = self.norm(f"{layer}.post_attention_layernorm", x)
            gate, up = (self.linear(f"{layer}.mlp.{name}_proj", h) for name in ("gate", "up"))
            x = x + self.linear(f"{layer}.mlp.down_proj", functional.silu(gate) * up)
        return self.linear("lm_head", self.norm("model.norm", x))

    def loss(self, ids, weights):
        logits = self(ids)[:, :-1].transpose(1, 2)
        losses = functional.cross_entropy(logits, ids[:, 1:], reduction="none") * weights[:, 1:]
        return (losses.sum(1) / weights[:, 1:].sum(1)).mean()

    def metrics(self, ids, weights):
        return {}


def backend_of(task, accountant, ids, weights, lengths):
    """Users of a record each, pfl's own sampler of them, and noise on the sum of their updates."""

    def user(index):
        tokens = slice(int(lengths[index]))
        return PyTorchTensorDataset([ids[index, tokens][None], weights[index, tokens][None]])

    mechanism = GaussianMechanism.from_privacy_accountant(accountant, clipping_bound=task["clip"])
    users = FederatedDataset(user, get_user_sampler("random", list(range(task["records"]))))
    return SimulatedBackend(users, users, [CentrallyAppliedPrivacyMechanism(mechanism)])


async def train(module, backend, task):
    """Train the module in place: rounds of one step of each user of a cohort."""
    rates = task["learning_rates"]
    optimiser = torch.optim.SGD([module.trained], lr=1.0)
    model = PyTorchModel(module, torch.optim.SGD, optimiser)
    algorithm = FederatedAveraging()
    rounds = NNAlgorithmParams(
        central_num_iterations=len(rates),
        evaluation_frequency=len(rates) + 1,
        train_cohort_size=task["batch"],
        val_cohort_size=None,
    )
    user = NNTrainHyperParams(
        local_num_epochs=None, local_num_steps=1, local_learning_rate=1.0, local_batch_size=None
    )
    for step, rate in enumerate(rates):
        optimiser.param_groups[0]["lr"] = rate
        (context, *_), model, _ = algorithm.get_next_central_contexts(
            model, step, rounds, user, NNEvalHyperParams(local_batch_size=None)
        )
        statistics, metrics = await backend.async_gather_results(
            model=model, training_algorithm=algorithm, central_context=context
        )
        model, _ = algorithm.process_aggregated_statistics(context, metrics, model, statistics)


def main(folder, epsilon):
    task, arrays = json.loads((folder / "task.json").read_text()), dict(np.load(folder / "problem.npz"))
    ids, weights = (torch.from_numpy(arrays.pop(name)) for name in ("ids", "weights"))
    lengths = arrays.pop("lengths")
    module = Llama(task, arrays)
    with torch.no_grad():
        first = float(module.loss(ids[:64], weights[:64]))

    started, steps = time.process_time(), len(task["learning_rates"])
    accountant = PLDPrivacyAccountant(
        num_compositions=steps,
        sampling_probability=task["rate"],
        mechanism="gaussian",
        epsilon=epsilon,
        delta=task["delta"],
    )
    calibrated = time.process_time()
    asyncio.run(train(module, backend_of(task, accountant, ids, weights, lengths), task))
    finished = time.process_time()

    np.save(folder / "pfl.npy", module.trained.detach().numpy())
    composed = accountant.get_composed_accountant(
        "gaussian", accountant.noise_parameter, True, task["rate"], True, 1e-4, steps
    )
    facts = {
        "version": importlib.metadata.version("pfl"),
        "noise": float(accountant.noise_parameter),
        "epsilon": float(composed.get_epsilon_for_delta(task["delta"])),
        "first_loss": first,
        "calibration_s": calibrated - started,
        "training_s": finished - calibrated,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))

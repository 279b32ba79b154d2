"""The problem by jax-privacy: ``python jax_privacy_script.py FOLDER EPSILON``; needs jax and jax-privacy 2.

Written as that library's users write it: an execution plan that is calibrated to epsilon, its sampler with
batches padded to a multiple of 64, its clipped gradient, its noise, and the optimiser of optax.
"""

import importlib.metadata
import json
import sys
import time
from functools import partial
from pathlib import Path

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax_privacy import batch_selection
from jax_privacy.experimental.execution_plan import BandMFExecutionPlanConfig

MULTIPLE = 64


def forward(weights, task, trained, ids):
    """Logits of one record, shape ``(T, V)``, of a Llama with the adapted module."""
    shape, module = task["base"], task["module"]
    heads, size, epsilon = shape["num_attention_heads"], shape["head_dim"], shape["rms_norm_eps"]
    tokens = ids.shape[0]
    frequencies = task["rope_theta"] ** (-jnp.arange(0, size, 2) / size)
    angles = jnp.arange(tokens)[:, None] * frequencies
    angles = jnp.concatenate([angles, angles], -1)[:, None]

    def linear(name, inputs):
        outputs = inputs @ weights[name + ".weight"].T
        if name == module:
            outputs += weights["scaling"] * (inputs @ trained.T) @ weights["B"].T
        return outputs

    def norm(name, x):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights[name + ".weight"]

    def turned(x):
        half = jnp.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
        return x * jnp.cos(angles) + half * jnp.sin(angles)

    x = weights["model.embed_tokens.weight"][ids]
    for index in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        h = norm(f"{layer}.input_layernorm", x)
        q, k, v = (linear(f"{layer}.self_attn.{n}_proj", h).reshape(tokens, heads, size) for n in "qkv")
        scores = jnp.einsum("qhd,khd->hqk", turned(q), turned(k)) / size**0.5
        scores = jnp.where(jnp.tri(tokens, dtype=bool), scores, -jnp.inf)
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(tokens, -1)
        x = x + linear(f"{layer}.self_attn.o_proj", mixed)
        h = norm(f"{layer}.post_attention_layernorm", x)
        gate, up = (linear(f"{layer}.mlp.{n}_proj", h) for n in ("gate", "up"))
        x = x + linear(f"{layer}.mlp.down_proj", jax.nn.silu(gate) * up)
    return linear("lm_head", norm("model.norm", x))


def loss(weights, task, trained, record):
    """Weighted mean cross entropy of one record."""
    ids, token_weights = record
    logits = jax.nn.log_softmax(forward(weights, task, trained, ids)[:-1])
    losses = -jnp.take_along_axis(logits, ids[1:, None], 1)[:, 0] * token_weights[1:]
    return losses.sum() / token_weights[1:].sum()


def plan_of(task, epsilon, accountant):
    """Sampler, clip and noise, calibrated to epsilon."""
    return BandMFExecutionPlanConfig(
        strategy=np.ones(1),
        iterations=len(task["learning_rates"]),
        epsilon=epsilon,
        delta=task["delta"],
        sampling_prob=task["rate"],
        l2_clip_norm=task["clip"],
        rescale_to_unit_norm=False,
        normalize_by=task["batch"],
        partition_type=batch_selection.PartitionType.INDEPENDENT,
        accountant=accountant,
    ).plan


def train(plan, task, record_loss, trained, ids, token_weights):
    """The adapter after all steps."""
    gradient = jax.jit(plan.clipped_grad(record_loss, keep_batch_dim=False))
    privatizer = plan.noise_addition_transform
    noise_state = privatizer.init(trained)
    batches = plan.batch_selection_strategy.batch_iterator(task["records"])
    for rate, batch in zip(task["learning_rates"], batches, strict=True):
        rows = batch_selection.pad_to_multiple_of(batch, MULTIPLE)
        mean = gradient(trained, (ids[rows], token_weights[rows]), is_padding_example=rows == -1)
        noisy, noise_state = privatizer.update(mean, noise_state)
        trained = optax.apply_updates(trained, -rate * noisy)
    return np.asarray(jax.block_until_ready(trained))


def noise_of(event):
    """The noise multiplier in a composed event."""
    while not hasattr(event, "noise_multiplier"):
        event = event.event
    return float(event.noise_multiplier)


def main(folder, epsilon):
    task, arrays = json.loads((folder / "task.json").read_text()), np.load(folder / "problem.npz")
    weights = {name.removeprefix("base/"): jnp.asarray(arrays[name]) for name in arrays}
    ids, token_weights, trained = (weights.pop(name) for name in ("ids", "weights", "A"))
    record_loss = partial(loss, weights, task)
    first = float(jax.vmap(record_loss, (None, 0))(trained, (ids[:64], token_weights[:64])).mean())

    started = time.process_time()
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    plan = plan_of(task, epsilon, accountant)
    calibrated = time.process_time()
    trained = train(plan, task, record_loss, trained, ids, token_weights)
    finished = time.process_time()

    np.save(folder / "jax-privacy.npy", trained)
    accountant.compose(plan.dp_event)
    facts = {
        "version": importlib.metadata.version("jax-privacy"),
        "noise": noise_of(plan.dp_event),
        "epsilon": accountant.get_epsilon(task["delta"]),
        "first_loss": first,
        "calibration_s": calibrated - started,
        "training_s": finished - calibrated,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))

"""Train with a loss of your own, with and without privacy.

A loss gives one number per example, and none depends on another example. Under privacy it is given one record
at a time, so that no record can enter the clipped gradient of another.
"""

import numpy as np
import torch
from torch.nn import functional

from fedpeft import (
    Extras,
    LocalPlan,
    PrivacyPlan,
    Record,
    attach,
    load_base,
    load_config,
    tokenise,
    train_local,
)

SMOOTHING = 0.1


def smoothed_loss(model, batch):
    """Cross entropy with label smoothing (Szegedy et al. 2016), a weighted mean for each example."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(
        logits.transpose(1, 2), batch.ids[:, 1:], reduction="none", label_smoothing=SMOOTHING
    )
    weights = batch.weights[:, 1:]
    return (losses * weights).sum(1) / weights.sum(1)


config = load_config(overrides={"base.threads": 1, "adapter.rank": 4, "data.max_length": 32})
base = load_base(config.base)
records = [Record(f"Where is room {number}?", f" On floor {number % 3}.") for number in range(24)]
examples = tokenise(records, base.tokenizer, config.data)
plan = LocalPlan(steps=4, batch_size=8, lr=5e-3)
privacy = PrivacyPlan(
    sampling_probability=8 / 24,
    noise_multiplier=1.0,
    clip=1.0,
    expected_batch_size=8,
    steps_per_round=plan.steps,
    rounds=1,
    delta=1e-5,
)

for name, guarantee in (("without privacy", None), (f"epsilon {privacy.epsilon():.1f}", privacy)):
    attached = attach(base, config.adapter, seed=0)
    extras = Extras(loss=smoothed_loss, longest=config.data.max_length)
    result = train_local(attached, examples, plan, np.random.default_rng(0), guarantee, extras)
    moved = float(torch.linalg.vector_norm(torch.from_numpy(attached.get())))
    losses = "" if result.loss_first is None else f", loss {result.loss_first:.2f} -> {result.loss_last:.2f}"
    print(f"{name}: {result.steps} steps, the adapter's norm is {moved:.2f}{losses}")

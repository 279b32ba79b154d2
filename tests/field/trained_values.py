"""Adapters with values as after training, and what a model computes with them."""

import numpy as np
import torch


@torch.no_grad()
def logits_of(ids, model):
    """Logits of one batch of token ids, float32."""
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def moved(size, attached, seed=0):
    """The agreed start of an adapter, moved by normal values of a standard deviation."""
    noise = np.random.default_rng(seed).standard_normal(attached.layout.size, np.float32)
    return attached.initial() + size * noise

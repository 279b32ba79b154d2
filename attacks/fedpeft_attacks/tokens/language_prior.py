"""What an attacker can guess without any update: what the base itself writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.progress_reports import each
from fedpeft.rng import torch_stream

_TEXTS = 32
_LENGTH = 64


def token_prior(model: Any, start: int, vocabulary: int) -> NDArray[np.float64]:
    """How often each token occurs in text sampled from a causal base; shape ``(tokens,)``, sum 1.

    The next-token distributions along 32 texts of 64 tokens are averaged, which varies less than counting
    the drawn tokens. Reproducible. A base without a language model head has a uniform prior.

    Args:
        model: the model, with no adapter or with one that changes nothing.
        start: id of the token that begins each text.
        vocabulary: number of tokens.
    """
    device = next(model.parameters()).device
    draws = torch_stream(0, 0, "", "audit-prior")
    tokens = torch.full((_TEXTS, 1), start, device=device)
    total, memory = torch.zeros(vocabulary, dtype=torch.float64), None
    for _ in each(range(_LENGTH), "token of the sampled texts"):
        with torch.no_grad():
            output = model(input_ids=tokens, past_key_values=memory, use_cache=True)
        logits = output.logits
        if logits.ndim != 3 or logits.shape[-1] < vocabulary:
            return np.full(vocabulary, 1.0 / vocabulary)
        memory = output.past_key_values
        shares = logits[:, -1, :vocabulary].float().softmax(dim=-1).cpu()
        total += shares.sum(dim=0)
        tokens = torch.multinomial(shares, 1, generator=draws).to(device)
    return (total / total.sum()).numpy()

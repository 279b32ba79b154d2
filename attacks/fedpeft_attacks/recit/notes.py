"""Memory strengthening with Personal Notes: the base that a malicious coordinator hands out.

The base is fine-tuned on two kinds of samples: a text with personal data, and the same text followed by a
Personal Note that restates the data. It learns how such texts run and to pick the personal data out of them,
so that what it cannot foresee in a record of that kind, and what makes its gradient, is the personal data.
The new base has another content hash: a node that checks the agreed one refuses it.
Source: Xie et al., arXiv 2504.20570 (memory strengthening); the wording of the note is our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpeft.bases.files import content_hash, read_model_config
from fedpeft.bases.load import load_apart, quiet
from fedpeft.config.models import BaseConfig
from fedpeft.errors import AuditError
from fedpeft.rng import stream

Progress = Callable[[str], None]

_WARMUP, _REPORT_EVERY = 20, 50
_LONGEST = 256


@dataclass(frozen=True)
class Sample:
    """A public or invented text and the personal data that occur in it."""

    text: str
    secrets: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How the base is strengthened; the same recipe, samples and machine give the same base.

    Attributes:
        steps: optimiser steps.
        batch: texts per step.
        lr: peak learning rate of AdamW.
        notes: whether every text also appears with its note; False: the same texts, without any note.
        seed: of the order of the texts.
    """

    steps: int = 300
    batch: int = 32
    lr: float = 2e-3
    notes: bool = True
    seed: int = 0


def with_note(sample: Sample) -> str:
    r"""The text followed by a Personal Note that restates its personal data.

    >>> with_note(Sample("Ann called.", ("Ann",)))
    'Ann called.\nPersonal note: Ann.'
    """
    return f"{sample.text}\nPersonal note: {'; '.join(sample.secrets)}."


def strengthen(
    folder: Path, samples: Sequence[Sample], out: Path, recipe: Recipe, progress: Progress | None = None
) -> str:
    """Fine-tune a base on samples and their Personal Notes and write it to a new folder.

    Args:
        folder: the agreed base, which stays as it is.
        samples: auxiliary texts; none of them is of a node.
        out: folder of the strengthened base, in the weights' own dtype.
        recipe: steps and seed.
        progress: called with a line that names the step and its loss in nats per token, now and then.

    Returns:
        Content hash of the strengthened base.

    Raises:
        AuditError: no samples.
        BaseModelError: the folder holds no base that can be loaded.
    """
    if not samples:
        raise AuditError("strengthening needs auxiliary texts; none were given; pass at least one sample")
    base = load_apart(BaseConfig(model=str(folder), device="cpu"))
    texts = [
        text
        for sample in samples
        for text in (sample.text, with_note(sample) if recipe.notes else sample.text)
    ]
    rows = [_row(base.tokenizer, text) for text in texts]
    _train(base.model, rows, recipe, progress)
    with quiet():
        base.model.requires_grad_(False).to(_dtype(folder)).save_pretrained(out)
    base.tokenizer.save_pretrained(out)
    return content_hash(out, "none")


def _row(tokenizer: Any, text: str) -> list[int]:
    ids = [int(token) for token in tokenizer(text)["input_ids"]][:_LONGEST]
    return ids if tokenizer.eos_token_id is None else [*ids, int(tokenizer.eos_token_id)]


def _dtype(folder: Path) -> torch.dtype:
    config = read_model_config(folder)
    dtype: object = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _train(model: Any, rows: Sequence[Sequence[int]], recipe: Recipe, progress: Progress | None) -> None:
    model.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01)
    draws = stream(recipe.seed, 0, "public", "recit-order")
    for step in range(1, recipe.steps + 1):
        chosen = [rows[int(index)] for index in draws.integers(len(rows), size=recipe.batch)]
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * min(1.0, step / _WARMUP, max(0.02, 2.0 * (1 - step / recipe.steps)))
        loss = _loss(model, chosen)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if progress and (step % _REPORT_EVERY == 0 or step == recipe.steps):
            progress(f"step {step} of {recipe.steps}, loss {loss.item():.3f}")
    model.eval()


def _loss(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean token loss of a batch that is padded on the right."""
    ids_BT = np.zeros((len(rows), max(map(len, rows))), np.int64)
    targets_BT = np.full(ids_BT.shape, -100)
    for place, row in enumerate(rows):
        ids_BT[place, : len(row)] = row
        targets_BT[place, 1 : len(row)] = row[1:]
    logits_BTV = model(input_ids=torch.from_numpy(ids_BT), use_cache=False).logits[:, :-1]
    targets = torch.from_numpy(targets_BT)[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets)

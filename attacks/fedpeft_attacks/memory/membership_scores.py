"""Scores of membership: the higher, the more a record looks like one that was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import logsumexp

from fedpeft.data.batches import physical
from fedpeft.training.loss import per_example_loss
from fedpeft.training.modes import steady
from fedpeft_attacks.memory.span_likelihood import TOKENS_AT_ONCE
from fedpeft_attacks.memory.statistics import Floats

if TYPE_CHECKING:
    from fedpeft.data import Example

_LEAST_LOSS = 1e-6
_LEAST_SPREAD = 1e-6


def losses(model: Any, examples: Sequence[Example]) -> Floats:
    """The loss that training lowers, of each record by itself; float64, shape ``(records,)``.

    Its negative is the score of Yeom et al. 2018 (arXiv:1709.01604, section 3.2); the base's loss less the
    adapter's is the score calibrated by a reference (Watson et al. 2022, arXiv:2111.08440; for fine-tuned
    language models Mireshghallah et al. 2022, arXiv:2205.12506).
    """
    values = np.zeros(len(examples))
    order = np.argsort([len(example.ids) for example in examples], kind="stable")  # as `physical` goes
    with steady(model), torch.no_grad():
        parts = [per_example_loss(model, batch) for batch in physical(model, examples, TOKENS_AT_ONCE)]
    values[order] = torch.cat(parts).double().cpu().numpy() if parts else 0.0
    return values


def confidence(loss: Floats) -> Floats:
    """``log(p / (1 - p))`` of ``p = exp(-loss)``: nearly normal over models (Carlini et al. 2022)."""
    loss = np.maximum(loss, _LEAST_LOSS)
    return -loss - np.log(-np.expm1(-loss))


def likelihood_ratio(target: Floats, shadows: Floats, inside: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
    """LiRA, online, with one variance for all records, as few shadows need it; shape ``(records,)``.

    Confidences are centred over the records of each model first: shadows are trained on fewer records, and so
    are surer or less sure of everything.
    Source: Carlini et al. 2022 (arXiv:2112.03570), algorithm 1 and section VI-C.

    Args:
        target: confidences of the released adapter, shape ``(records,)``.
        shadows: those of the shadow adapters, shape ``(shadows, records)``.
        inside: which records each shadow was trained on, shape ``(shadows, records)``; every record is in
            some of them and not in others.
    """
    target, shadows = target - target.mean(), shadows - shadows.mean(axis=1, keepdims=True)
    inner, outer = _mean(shadows, inside), _mean(shadows, ~inside)
    spread_in, spread_out = _spread(shadows - inner, inside), _spread(shadows - outer, ~inside)
    near_in, near_out = (target - inner) / spread_in, (target - outer) / spread_out
    return (near_out**2 - near_in**2) / 2 + np.log(spread_out / spread_in)


def relative_likelihood(target: Floats, shadows: Floats) -> Floats:
    """RMIA, online: how much likelier a record is than under the shadows' average, shape ``(records,)``.

    RMIA calls a record a member where this ratio exceeds that of enough other records. All records are
    compared with the same ones here, so the order of the records, and with it every figure over thresholds,
    is that of the ratio itself.
    Source: Zarifzadeh, Liu and Shokri 2024 (arXiv:2312.03262), section 3.

    Args:
        target: confidences of the released adapter, shape ``(records,)``.
        shadows: those of the shadow adapters, shape ``(shadows, records)``; each record is in half of them.
    """
    log_likelihoods = -np.logaddexp(0.0, -shadows)
    return -np.logaddexp(0.0, -target) - (logsumexp(log_likelihoods, axis=0) - np.log(len(shadows)))


def _mean(values: Floats, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
    return (values * chosen).sum(axis=0) / chosen.sum(axis=0)


def _spread(values: Floats, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    """Standard deviation of what the chosen differ from their record's mean by, over all records."""
    freedom = int((chosen.sum(axis=0) - 1).sum())
    return max(float(np.sqrt((values[chosen] ** 2).sum() / max(freedom, 1))), _LEAST_SPREAD)

"""The noisy training loss that nodes release, and when it says that a run gets no further.

All of it is computed from released values and public constants: it spends no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.privacy import PrivacyPlan
from fedpeft.protocol.messages import TrainReply


def loss_event(number: int, accepted: Mapping[str, TrainReply], plan: PrivacyPlan) -> dict[str, Any]:
    """The event of a round's released losses in ``metrics.jsonl``: those of the nodes, their mean, its error.

    Args:
        number: 1-based round.
        accepted: the valid replies by node, one at least, each with its loss.
        plan: with a loss.
    """
    losses = {name: reply.loss[0] for name, reply in sorted(accepted.items())}
    mean, error = sum(losses.values()) / len(losses), plan.loss_error / math.sqrt(len(losses))
    text = f"round {number}: training loss {mean:.4f} ± {error:.4f}, noisy"
    return {
        "event": "training",
        "round": number,
        "loss": mean,
        "standard_error": error,
        "nodes": losses,
        "text": text,
    }


def is_stuck(events: Sequence[Mapping[str, Any]], rounds: int) -> bool:
    """Whether ``rounds`` rounds have not lowered the smoothed loss by its standard error.

    Smoothed is the mean over ``rounds`` rounds in a row; it is lower than before where it passes the lowest
    mean so far by more than its own standard error. So a run has twice as many rounds at least.

    Args:
        events: of `loss_event`, in order.
        rounds: how many to wait, and to smooth over, at least 1.
    """
    lowest, since = math.inf, 0
    for end in range(rounds, len(events) + 1):
        window = events[end - rounds : end]
        mean = sum(event["loss"] for event in window) / rounds
        error = math.hypot(*(event["standard_error"] for event in window)) / rounds
        since = 0 if mean < lowest - error else since + 1
        lowest = mean if since == 0 else lowest
    return since >= rounds

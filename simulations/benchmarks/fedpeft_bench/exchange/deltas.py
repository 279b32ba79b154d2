"""Real updates: what the nodes of the embedded federation change in a round, with SGD and with AdamW.

The embedded base is trained as `fedpeft simulate` trains it: same records, steps and batches, the uplink
ternary with error feedback (here at 5 %), the server's step along the mean. Of each round are kept the raw
changes ``trained - received`` of all nodes and the bytes that were really sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.exchange import ExchangePlan, FloatVector, Layout, State, Update, plan_from_config, seal
from fedpeft_bench.exchange.exchange import DENSITY
from fedpeft_bench.harness.sealing import SIGNER, context

if TYPE_CHECKING:
    from fedpeft.config import Config
    from fedpeft_simulations.federation_lab import FederationLab

SMALL, LARGE = "B only, rank 32", "A and B, rank 136"
ADAPTERS: dict[str, dict[str, Any]] = {
    SMALL: {"aggregation": "frozen_a", "rank": 32, "skip_layers": [0]},
    LARGE: {"aggregation": "naive", "rank": 136, "skip_layers": []},
}
"""The demo's adapter, and one of a million values; the base itself has 902,016, so no larger one is real."""

RULES: dict[tuple[str, str], dict[str, Any]] = {
    ("SGD", SMALL): {"optimiser": "sgd", "lr": 0.4},
    ("AdamW", SMALL): {"optimiser": "adamw"},
    ("SGD", LARGE): {"optimiser": "sgd", "lr": 0.3},
    ("AdamW", LARGE): {"optimiser": "adamw"},
}
"""Local optimisers; SGD has momentum and a rate with which the loss falls about as with the demo's AdamW."""


@dataclass(frozen=True)
class Round:
    """One round of one federation.

    Attributes:
        number: 1-based round.
        layout: the exchanged tensors.
        deltas: the raw changes, one per node, float32, shape ``(layout.size,)``.
        loss: held-out loss before the round and after it.
        sent: bytes of each node's envelope with error feedback, in the order of the nodes.
    """

    number: int
    layout: Layout
    deltas: tuple[FloatVector, ...]
    loss: tuple[float, float]
    sent: tuple[int, ...]


def train_rounds(optimiser: str, adapter: str, count: int, **federation: Any) -> Iterator[Round]:
    """Train the embedded federation for the first ``count`` rounds of its schedule.

    Args:
        optimiser: ``SGD`` or ``AdamW``.
        adapter: a key of `ADAPTERS`.
        count: number of rounds.
        federation: further settings of the federation.
    """
    from fedpeft.adapters import detach
    from fedpeft_simulations.federation_lab import FederationLab

    config = _config(RULES[optimiser, adapter] | federation, ADAPTERS[adapter])
    try:
        yield from _rounds(FederationLab.of(config), count)
    finally:
        detach()


def _config(federation: dict[str, Any], adapter: dict[str, Any]) -> Config:
    from fedpeft.config import build_config, load_config
    from fedpeft.config.scenarios import embedded_scenario

    settings = load_config(embedded_scenario()).model_dump(mode="json", exclude_none=True)
    settings["federation"] |= federation
    settings["adapter"] |= adapter
    settings["exchange"]["up"] |= {"codec": "ternary", "density": DENSITY, "error_feedback": True}
    return build_config(settings)


def _rounds(laboratory: FederationLab, count: int) -> Iterator[Round]:
    """Local training, exchange and the server's step along the mean; the broadcast is exact."""
    config, layout = laboratory.config, laboratory.layout
    plan = plan_from_config(config.exchange.up, private=False)
    states: dict[str, State] = {name: {} for name in laboratory.nodes}
    values = laboratory.attached.initial()
    loss = laboratory.score(values).loss
    for number in range(1, count + 1):
        deltas = {name: laboratory.change(name, number, values) for name in laboratory.nodes}
        sent = [_send(plan, Update(layout, deltas[name], number, 1), states[name]) for name in deltas]
        mean = np.mean([received for received, _ in sent], axis=0, dtype=np.float64)
        values = (values + config.federation.server.lr * mean).astype(np.float32)
        before, loss = loss, laboratory.score(values).loss
        yield Round(number, layout, tuple(deltas.values()), (before, loss), tuple(size for _, size in sent))


def _send(plan: ExchangePlan, update: Update, state: State) -> tuple[FloatVector, int]:
    """What the server decodes, and the bytes that carry it."""
    final, _ = plan.run(update, state)
    return final.values, len(seal(final, plan, context(update.round), SIGNER))

"""What the coordinator writes down of a round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fedpeft_server.rounds.orders import Orders
from fedpeft_server.rounds.replies import Inbox


def times(started: float, inbox: Inbox, parallel: bool) -> dict[str, float]:
    """Seconds of the round that nodes spent training, and all others.

    Nodes that take turns add up; of nodes that work side by side only the slowest counts.
    """
    total = time.monotonic() - started
    seconds = [reply.train_s for reply in inbox.accepted.values()]
    train = min(max(seconds, default=0.0) if parallel else sum(seconds), total)
    return {"train_s": train, "overhead_s": total - train, "total_s": total}


def round_event(
    number: int, orders: Orders, inbox: Inbox, measured: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The event of a round in ``metrics.jsonl``."""
    accepted = inbox.accepted
    return {
        "event": "round",
        "round": number,
        "applied": False,
        "replies": len(accepted),
        "refused": dict(sorted(inbox.refused.items())),
        "codecs": dict(sorted(inbox.codecs.items())),
        "bytes_up": inbox.bytes_up,
        "bytes_down": orders.bytes_down,
        "values_up": inbox.values,
        "density": inbox.nonzero / max(inbox.values, 1),
        "entropy_bits": inbox.entropy,
        "epsilon": {name: reply.epsilon for name, reply in accepted.items()},
        "ledger": {name: [reply.ledger_entry, reply.ledger.hex()] for name, reply in accepted.items()},
        **seconds,
        **measured,
    }

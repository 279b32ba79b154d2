"""Which figures of an event a tracker is sent: numbers, and under DP those alone that the claim covers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpeft.epsilons import spent_in

ROUND = ("replies", "bytes_up", "bytes_down", "density", "entropy_bits", "train_s", "overhead_s", "total_s")


def figures(event: Mapping[str, Any], *, private: bool = False) -> dict[str, float]:
    """The numbers of an event of ``metrics.jsonl`` by name; empty where it has none.

    Args:
        event: one event.
        private: the run claims DP. A tracker may be a stranger's: it then gets what follows from the released
            adapter alone, its held-out figures and the epsilon spent. How many nodes answered, how many bytes
            and how long they took may tell who took part; losses on training records are covered by no claim,
            but for those that were released with noise, which have a standard error.
    """
    kind = event.get("event")
    if kind == "evaluation":
        named = {f"{event['arm']}/{name}": event.get(name) for name in ("loss", "accuracy")}
    elif kind == "training" and (not private or "standard_error" in event):
        named = {f"training/{name}": event.get(name) for name in ("loss", "standard_error")}
    elif kind == "round":
        named = {"round/epsilon": spent_in(event)}
        named |= {} if private else {f"round/{name}": event.get(name) for name in ROUND}
    else:
        return {}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}

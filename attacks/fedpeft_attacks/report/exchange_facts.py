"""What was exchanged: the plan of each direction from the config, its bytes from the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from fedpeft.exchange import ExchangePlan
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import RunStore
from fedpeft_attacks.evidence.taps import Tap
from fedpeft_attacks.results.findings import AuditedEnvelope, Direction, Exchange


def exchange_of(store: RunStore, plan: RunPlan, stages: Sequence[str]) -> Exchange:
    """Both directions of a run.

    Args:
        store: the run; bytes are those of all its rounds, as the coordinator counted them.
        plan: what follows from its config.
        stages: audited stages in the order in which an update passes them.
    """
    rounds = list(store.events("round"))
    answered = [event for event in rounds if event["bytes_down"]]
    directions = (
        direction_of("up", plan.up, _sum(rounds, "values_up"), _sum(rounds, "bytes_up")),
        direction_of("down", plan.down, _sum(answered, "values_up"), _sum(rounds, "bytes_down")),
    )
    return Exchange(stages=tuple(stages), directions=directions)


def envelopes_of(store: RunStore, taps: Sequence[Tap]) -> list[AuditedEnvelope]:
    """Files of bytes of the audited rounds: those of the audited nodes and the coordinator's broadcasts."""
    envelopes: list[AuditedEnvelope] = []
    for number in sorted({tap.round for tap in taps}):
        names = [tap.node for tap in taps if tap.round == number] + ["broadcast"]
        for path in (store.path / "updates" / f"r{number:02d}" / f"{name}.fpd" for name in names):
            if path.is_file():
                data, file = path.read_bytes(), path.relative_to(store.path).as_posix()
                digest = hashlib.sha256(data).hexdigest()
                envelopes.append(AuditedEnvelope(file=file, sha256=digest, bytes=len(data)))
    return envelopes


def direction_of(name: Any, plan: ExchangePlan, values: int, length: int) -> Direction:
    """One direction: its plan, the values that the counted envelopes carry, and their bytes."""
    return Direction(
        direction=name,
        steps=tuple(plan.describe()),
        digest=plan.digest.hex(),
        values=values,
        bytes=length,
        bits_per_value=8 * length / values if values and length else None,
    )


def _sum(events: Sequence[dict[str, Any]], key: str) -> int:
    return sum(int(event[key]) for event in events)

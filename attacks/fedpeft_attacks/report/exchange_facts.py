"""What was exchanged: the plan of each direction from the config, its bytes from the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedpeft.config import Config
from fedpeft.exchange import ExchangePlan, plan_from_config, up_plan
from fedpeft.runstore import RunStore
from fedpeft_attacks.evidence.taps import Tap
from fedpeft_attacks.results.findings import AuditedEnvelope, Direction, Exchange

if TYPE_CHECKING:
    from fedpeft.privacy import PrivacyPlan


def exchange_of(store: RunStore, privacy: PrivacyPlan | None, stages: Sequence[str]) -> Exchange:
    """Both directions of a run.

    Args:
        store: the run; bytes are those of all its rounds, as the coordinator counted them.
        privacy: the run's privacy plan.
        stages: audited stages in the order in which an update passes them.
    """
    rounds = list(store.events("round"))
    answered = [event for event in rounds if event["bytes_down"]]
    up, down = _plans(store.config, privacy)
    directions = (
        _direction("up", up, _sum(rounds, "values_up"), _sum(rounds, "bytes_up")),
        _direction("down", down, _sum(answered, "values_up"), _sum(rounds, "bytes_down")),
    )
    return Exchange(stages=tuple(stages), directions=directions)


def envelopes_of(store: RunStore, taps: Sequence[Tap]) -> list[AuditedEnvelope]:
    """Files of bytes of the audited rounds: those of the audited nodes and the coordinator's broadcasts."""
    found: list[AuditedEnvelope] = []
    for number in sorted({tap.round for tap in taps}):
        names = [tap.node for tap in taps if tap.round == number] + ["broadcast"]
        for path in (store.path / "updates" / f"r{number:02d}" / f"{name}.fpd" for name in names):
            if path.is_file():
                data, file = path.read_bytes(), path.relative_to(store.path).as_posix()
                digest = hashlib.sha256(data).hexdigest()
                found.append(AuditedEnvelope(file=file, sha256=digest, bytes=len(data)))
    return found


def _plans(config: Config, privacy: PrivacyPlan | None) -> tuple[ExchangePlan, ExchangePlan]:
    """The plans as node and coordinator make them: a node clips only where the clip is fixed."""
    local = privacy is not None and privacy.trust == "local"
    fixed = privacy is not None and privacy.trust == "central" and privacy.adaptive is None
    up = up_plan(config.exchange, local, privacy.clip if privacy is not None and fixed else None)
    return up, plan_from_config(config.exchange.down.model_copy(update={"error_feedback": False}), False)


def _direction(name: Any, plan: ExchangePlan, values: int, length: int) -> Direction:
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

"""What the entries say: one function per kind."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from fedpeft._version import __version__
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import Event, Steps
from fedpeft.privacy.event_json import event_to_json
from fedpeft.privacy.ledger.budget import Claim
from fedpeft.privacy.ledger.chain import Head
from fedpeft.privacy.plan import PrivacyPlan

Body = dict[str, Any]

SALT_BYTES = 16
SAME = ("kind", "lineage", "run", "round", "event", "unit", "trust", "delta", "clip", "content")
"""What must be equal for a reservation to be handed out again."""


def reserve(lineage: str, run: str, round: int, plan: PrivacyPlan | None, steps: int) -> Body:
    """A round of training; without a plan, or with a reproducible one, it is not private.

    Raises:
        PrivacyError: steps that the plan does not allow.
    """
    if steps < 1:
        raise PrivacyError(f"a reservation needs at least 1 step, got {steps}")
    if plan is not None and steps > plan.steps_per_round:
        raise PrivacyError(f"the plan allows {plan.steps_per_round} steps per round, asked for {steps}")
    private = plan is not None and not plan.reproducible
    return {
        "kind": "reserve",
        "lineage": lineage,
        "run": run,
        "round": round,
        "steps": steps,
        "event": event_to_json(Steps(1.0, 0.0, steps) if plan is None else plan.event(steps)),
        "unit": plan.unit if plan and private else None,
        "trust": plan.trust if plan and private else None,
        "delta": plan.delta if plan and private else None,
        "clip": plan.clip if plan else None,
        "plan": None if plan is None else plan.fields(),
    }


def spend(lineage: str, purpose: str, event: Event, delta: float, claim: Claim) -> Body:
    """Another output that depends on the data; ``steps`` is 0, nothing is trained.

    Raises:
        PrivacyError: an unknown event, unit or trust, or a delta out of range.
    """
    if not 0 < delta < 0.1:
        raise PrivacyError(f"delta = {delta} must be in (0, 0.1), best below 1 / units")
    return {
        "kind": "spend",
        "lineage": lineage,
        "purpose": purpose,
        "steps": 0,
        "event": event_to_json(event),
        "unit": claim.check().unit,
        "trust": claim.trust,
        "delta": delta,
    }


def started(seq: int) -> Body:
    """The data of a reservation are opened."""
    return {"kind": "started", "reservation": seq}


def released(seq: int, digest: str) -> Body:
    """Bytes left under a reservation.

    Raises:
        PrivacyError: the digest is no SHA-256 in lower-case hexadecimal digits.
    """
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise PrivacyError(f"{digest!r} is no SHA-256: give 64 lower-case hexadecimal digits")
    return {"kind": "released", "reservation": seq, "sha256": digest}


def key(public: bytes) -> Body:
    """The key by which this and all later entries are signed."""
    return {"kind": "key", "public": public.hex()}


def clock() -> Body:
    """The owner confirms the time of this entry, whatever the times before say."""
    return {"kind": "clock"}


CHARGED = (
    *("lineage", "run", "round", "steps", "event", "unit", "trust", "delta", "clip", "plan"),
    *("content", "attempt", "epsilon"),
)
"""What a reservation says beside its kind; with it, and no more, it can be written anew."""


def charged(body: Body) -> Body:
    """What a reservation cost, to be remembered elsewhere."""
    return {name: body[name] for name in CHARGED}


def closing(lineage: str) -> Body:
    """A data set of which something left at an unknown cost: no privacy can be promised for it any more."""
    bare = reserve(lineage, "declared", 1, None, 1)
    return charged(bare | {"content": None, "attempt": 1, "epsilon": None})


def declared(because: str, replaces: Iterable[Head]) -> Body:
    """The owner's word that entries are lost, which need not be there from now on."""
    heads = [[head.seq, head.hash] for head in replaces]
    return {"kind": "declared", "because": because, "replaces": heads}


def stamped(body: Body, now: float) -> Body:
    """With the version of the code, the time (seconds since 1970, UTC) and a salt.

    The hash of the newest entry leaves the node; without the salt, whoever tries all times of a second would
    learn from it how long training took, and so how many records were drawn.
    """
    return {**body, "version": __version__, "time": now, "salt": os.urandom(SALT_BYTES).hex()}

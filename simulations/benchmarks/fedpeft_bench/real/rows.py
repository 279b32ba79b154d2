"""The lines of the real-base table: settings that all share, and what each one changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.config.profiles import PROFILES
from fedpeft_bench.federation.federation import DENSE
from fedpeft_bench.real.prepare import Material


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: as printed, and of the run's folder.
        settings: what it changes.
        baselines: whether local-only and centralised training run beside it; they are the same for each row.
        seeds: whether it is run with every seed, or with the first alone.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    baselines: bool = False
    seeds: bool = False


PRIVATE: Mapping[str, Any] = {
    "privacy.unit": "record",
    "privacy.epsilon": 8.0,
    "privacy.clip": 0.25,
    "privacy.public_records": 80,  # the smallest organisation has 88
    "data.prompt_weight": 0.0,
    # Few values bear noise: A of one module, which writes towards the answers' tokens. The input of the last
    # o_proj differs more between reviews than that of down_proj, most of which all reviews share.
    "adapter.aggregation": "frozen_b",
    "adapter.output_tokens": ["positive", "neutral", "negative", "<|im_end|>"],
    "adapter.rank": 4,
    "adapter.target_modules": ["o_proj"],
    "adapter.skip_layers": list(range(29)),
    # Small batches and many rounds: what all reviews share bounds the rate, so the rest needs many steps.
    "federation.rounds": 64,
    "federation.local_steps": 1,
    "federation.batch_size": 8,
    "federation.optimiser": "sgd",
    "federation.lr": 40.0,
    "federation.lr_decay": 0.94,
    "federation.robust": "none",  # four updates of mostly noise: the plain mean, as a secure sum has
    "federation.server.name": "momentum",
    "federation.server.momentum": 0.8,
    "federation.server.lr": 1.0,
    "exchange.up.codec": "int8",
    "exchange.up.density": 1.0,
    "exchange.up.error_feedback": False,
    "exchange.down.codec": "int8",
}

SHARED_NOISE: Mapping[str, Any] = {
    **PRIVATE,
    "privacy.trust": "distributed",
    "exchange.up.codec": "ternary",  # of a secure sum: whole numbers of so many bits
    "exchange.secure.enabled": True,
    "exchange.secure.bits": 16,
}

RATES_OF_THIN: Mapping[str, Any] = {
    name: PROFILES["thin"].settings[name] for name in ("federation.lr", "federation.server.lr")
}
"""SGD's own: those of `settings` are AdamW's, and win over a profile's."""

AUDITED: Mapping[str, Any] = {
    "exchange.profile": "drop-in",
    "federation.rounds": 2,  # what leaves a node in its first round and in a later one
    "audit.enabled": True,
    "audit.attacks": ["span", "sparse-recovery"],
}

ROWS = (
    Row("drop-in", {"exchange.profile": "drop-in"}, baselines=True, seeds=True),
    Row("dense", DENSE, seeds=True),
    Row("thin", {"exchange.profile": "thin", **RATES_OF_THIN}),
    Row("nf4", {"exchange.profile": "drop-in", "base.quantisation": "nf4"}),
    Row("stack", {**DENSE, "adapter.aggregation": "stack", "exchange.up.error_feedback": False}),
    Row("miss", {"exchange.profile": "drop-in", "adapter.method": "miss"}),
    Row("ia3", {"exchange.profile": "drop-in", "adapter.method": "ia3"}),
    Row("epsilon-8", PRIVATE),
    Row("epsilon-8-shared", SHARED_NOISE),
    Row("audit", AUDITED),
)

SIZES: Mapping[str, Any] = {
    "federation.rounds": 12,
    "federation.local_steps": 2,  # few, and many rounds: what compression holds back is sent soon
    "federation.batch_size": 8,
    "federation.server.lr": 2.0,
}
QUICK: Mapping[str, Any] = {**SIZES, "federation.rounds": 3, "federation.batch_size": 4}


def settings(material: Material, quick: bool = False) -> dict[str, Any]:
    """What all rows share; dotted keys."""
    return {
        "base.model": str(material.base),
        "base.threads": 1,
        "data.source": str(material.organisations),
        "data.test": str(material.test),
        "data.template": "Review: {prompt}\nRating: {completion}",
        "data.max_length": 128,
        "data.validation": 0.0,
        "adapter.rank": 16,
        "adapter.skip_layers": list(range(15)),  # of 30: backward passes are shorter, and it learns no less
        "federation.lr": 1e-3,
        "federation.lr_decay": 0.8,
        "audit.enabled": False,
        "run.name": "real",
        **(QUICK if quick else SIZES),
    }

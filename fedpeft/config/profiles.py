"""Bandwidth profiles: named settings that belong together, for ``exchange.profile``.

A profile fills in settings that are not given: in a file those of the file win, and a profile given with
``--set`` wins over the file but not over other ``--set`` options. What each was measured to keep of the gain
of dense exchange stands beside it, from ``fedpeft bench federation`` and ``fedpeft bench private``
(docs/benchmarks.md, docs/privacy.md).

Where nodes protect records or persons and no profile is given, ``private`` is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpeft.config.models import Config


@dataclass(frozen=True)
class Profile:
    """Settings for a bandwidth.

    Attributes:
        purpose: when to choose it.
        measured: bytes and quality on the embedded federation, against dense fp32 exchange.
        settings: dotted keys and values.
    """

    purpose: str
    measured: str
    settings: Mapping[str, Any]


def _both_ways(**settings: Any) -> dict[str, Any]:
    return {f"exchange.{way}.{key}": value for way in ("up", "down") for key, value in settings.items()}


PROFILES: Mapping[str, Profile] = {
    "drop-in": Profile(
        purpose="nodes train with AdamW as they would alone; nothing to tune",
        measured="32x fewer bytes each way, 99.9 % of the dense gain in loss, 99.8 % in accuracy",
        settings={
            "federation.optimiser": "adamw",
            # A few steps of AdamW move all values about as far: no fifth of them carries the update.
            **_both_ways(codec="sign", error_feedback=True),
        },
    ),
    "thin": Profile(
        purpose="slow lines: SGD with momentum makes updates that few values carry; tune both learning rates",
        measured="101x fewer bytes each way, 97 % of the dense gain in loss, 96 % in accuracy",
        settings={
            "federation.optimiser": "sgd",
            "federation.momentum": 0.9,
            "federation.lr": 1.5,
            "federation.server.name": "adam",
            "federation.server.lr": 0.3,
            "federation.server.momentum": 0.0,  # the residuals delay as momentum does: both overshoot
            "federation.server.epsilon": 0.1,  # a small one makes all steps alike, and nothing stands out
            **_both_ways(codec="ternary", density=0.0455, error_feedback=True),
        },
    ),
    "private": Profile(
        purpose="DP-SGD in the nodes: gradients are cut to a public half before clip and noise; fewer values "
        "bear noise, and their signs need no indices. The default there; tune clip and rate",
        measured="61x fewer bytes up; of the dense gain under DP 97 % in loss, 79 % in accuracy",
        settings={
            "exchange.up.codec": "masked-sign",
            "exchange.up.density": 0.5,
            "exchange.up.error_feedback": False,  # a residual would send its noise twice
            "exchange.down.codec": "ternary",
            "exchange.down.density": 0.25,
            "exchange.down.error_feedback": True,
        },
    ),
}


def default_profile(config: Config) -> str:
    """The profile of a config that names none."""
    noisy_gradients = config.privacy.unit in ("record", "person") and config.privacy.trust == "local"
    return "private" if noisy_gradients and not config.exchange.secure.enabled else "none"

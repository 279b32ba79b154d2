"""Differential privacy: plan, sampling, clipping, noise, accounting, ledger.

The names below are loaded when they are first used, so that importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpeft.privacy.dpsgd import noisy_gradient
    from fedpeft.privacy.ledger import Head, Ledger, Reservation
    from fedpeft.privacy.plan import PrivacyPlan
    from fedpeft.privacy.planning import plan_from_config

__all__ = ["Head", "Ledger", "PrivacyPlan", "Reservation", "noisy_gradient", "plan_from_config"]

_HOMES = {
    "Head": "ledger",
    "Ledger": "ledger",
    "PrivacyPlan": "plan",
    "Reservation": "ledger",
    "noisy_gradient": "dpsgd",
    "plan_from_config": "planning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

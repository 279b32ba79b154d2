"""Differential privacy: plan, sampling, clipping, noise, accounting, ledger.

The names below are loaded when they are first used, so that importing the package imports no torch.
"""

from typing import TYPE_CHECKING

from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft.privacy.dpsgd import noisy_gradient
    from fedpeft.privacy.ledger import Budget, Head, Ledger, Reservation
    from fedpeft.privacy.plan import PrivacyPlan
    from fedpeft.privacy.planning import plan_from_config

__all__ = ["Budget", "Head", "Ledger", "PrivacyPlan", "Reservation", "noisy_gradient", "plan_from_config"]

__getattr__ = lazy(
    __name__,
    {
        "Budget": "ledger",
        "Head": "ledger",
        "Ledger": "ledger",
        "PrivacyPlan": "plan",
        "Reservation": "ledger",
        "noisy_gradient": "dpsgd",
        "plan_from_config": "planning",
    },
)

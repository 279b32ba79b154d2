"""Differential privacy: plan, sampling, clipping, noise, accounting, ledger.

The names below are loaded when they are first used, so that importing the package imports no torch.
"""

from typing import TYPE_CHECKING

from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft.privacy.ledger import Budget, Head, Ledger, Reservation
    from fedpeft.privacy.plan import PrivacyPlan
    from fedpeft.privacy.plan_builder import plan_from_config

__all__ = ["Budget", "Head", "Ledger", "PrivacyPlan", "Reservation", "plan_from_config"]

__getattr__ = lazy(
    __name__,
    {
        "Budget": "ledger",
        "Head": "ledger",
        "Ledger": "ledger",
        "PrivacyPlan": "plan",
        "Reservation": "ledger",
        "plan_from_config": "plan_builder",
    },
)

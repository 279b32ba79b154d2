"""Local training: one per-example loss, with and without privacy.

The names below are loaded when they are first used, so that importing the package imports no torch.
"""

from typing import TYPE_CHECKING

from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft.training.local import Extras, TrainResult, gradient_sum, train_local
    from fedpeft.training.loss import per_example_loss
    from fedpeft.training.plan import LocalPlan, PerformanceFlags

__all__ = [
    "Extras",
    "LocalPlan",
    "PerformanceFlags",
    "TrainResult",
    "gradient_sum",
    "per_example_loss",
    "train_local",
]

__getattr__ = lazy(
    __name__,
    {
        "Extras": "local",
        "PerformanceFlags": "plan",
        "TrainResult": "local",
        "gradient_sum": "local",
        "train_local": "local",
        "per_example_loss": "loss",
        "LocalPlan": "plan",
    },
)

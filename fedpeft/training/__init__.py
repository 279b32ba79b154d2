"""Local training and evaluation: one per-example loss, with and without privacy.

The names below are loaded when they are first used, so that importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpeft.training.evaluation import Evaluation, evaluate
    from fedpeft.training.local import TrainResult, train_local
    from fedpeft.training.loss import per_example_loss
    from fedpeft.training.plan import LocalPlan

__all__ = ["Evaluation", "LocalPlan", "TrainResult", "evaluate", "per_example_loss", "train_local"]

_HOMES = {
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "TrainResult": "local",
    "train_local": "local",
    "per_example_loss": "loss",
    "LocalPlan": "plan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

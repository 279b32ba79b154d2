"""How a model stands while it is trained."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def steady(model: Any) -> Generator[None]:
    """No dropout and no batch statistics, so that a pass depends on its inputs alone.

    Every module is in evaluation mode, except layers that recompute activations (gradient checkpointing)
    and bitsandbytes layers: in evaluation mode the 4-bit ones repack the shared base in place on CPUs with
    AVX512-BF16, and the 8-bit ones choose outliers over the whole batch. Restored on exit.
    """
    changed = [module for module in model.modules() if module.training != _stays_in_training(module)]
    try:
        for module in changed:
            module.training = not module.training
        yield
    finally:
        for module in changed:
            module.training = not module.training


def _stays_in_training(module: Any) -> bool:
    recomputes = getattr(module, "gradient_checkpointing", False)
    return bool(recomputes) or type(module).__module__.startswith("bitsandbytes.")

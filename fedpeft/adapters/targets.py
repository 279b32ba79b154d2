"""Which modules of a base get an adapter."""

from __future__ import annotations

import difflib
import re
from typing import Any

from fedpeft.bases.load import HEAD_MODULES, Base
from fedpeft.config.models import ALL_LINEAR, AdapterConfig
from fedpeft.errors import ConfigError

_LAYER = re.compile(r"\.(\d+)(?:\.|$)")


def linear_modules(model: Any) -> dict[str, Any]:
    """Every linear module by name, quantised ones and GPT-2's Conv1D included, output heads excluded."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not head
        and not set(name.split(".")) & set(HEAD_MODULES)
    }


def find_targets(base: Base, cfg: AdapterConfig, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Full names of the modules that get an adapter, sorted.

    ``cfg.target_modules`` are name suffixes; empty means the method's own ``default``, and where that is
    empty too all linear modules.

    Raises:
        ConfigError: a suffix fits no module, or nothing is left.
    """
    names = list(linear_modules(base.model))
    wanted = () if ALL_LINEAR in cfg.target_modules else cfg.target_modules or default
    for suffix in wanted:
        if not any(fits(name, suffix) for name in names):
            raise ConfigError(_unknown(suffix, names))
    chosen = [name for name in names if not wanted or any(fits(name, suffix) for suffix in wanted)]
    targets = [name for name in chosen if layer_of(name) not in cfg.skip_layers]
    if not targets:
        raise ConfigError(
            f"no module of {base.name!r} is left for an adapter; "
            f"{len(names)} are linear: change adapter.target_modules or adapter.skip_layers"
        )
    return tuple(sorted(targets))


def layer_of(name: str) -> int | None:
    """Index of the layer that a module belongs to, None outside the layers.

    >>> layer_of("model.layers.12.mlp.up_proj")
    12
    """
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def fits(name: str, suffix: str) -> bool:
    """Whether a module's full name ends with a suffix, whole parts only."""
    return name == suffix or name.endswith(f".{suffix}")


def _unknown(suffix: str, names: list[str]) -> str:
    known = sorted({name.rsplit(".", 1)[-1] for name in names})
    near = difflib.get_close_matches(suffix, known, n=3, cutoff=0.3) or known
    return f"adapter.target_modules: {suffix!r} fits no linear module; nearest: {', '.join(near)}"

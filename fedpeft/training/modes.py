"""How a model stands while it is trained, and what a pass may leave behind in it: nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

_TORCH = frozenset(vars(nn.Module()))
"""What torch keeps in each module; everything else there is the model's own."""
_CONTAINERS = frozenset((list, tuple, dict, OrderedDict, set, np.ndarray))

_steady: WeakKeyDictionary[nn.Module, list[_ModuleState]] = WeakKeyDictionary()
"""The models that are steady now, and what they were at the outermost entry."""


@contextmanager
def steady(model: Any) -> Generator[None]:
    """No dropout, no batch statistics and no memory, so that a pass depends on its inputs alone.

    Every module is in evaluation mode, except layers that recompute activations (gradient checkpointing)
    and bitsandbytes layers: in evaluation mode the 4-bit ones repack the shared base in place on CPUs with
    AVX512-BF16, and the 8-bit ones choose outliers over the whole batch. Restored on exit, as by `forget`.
    """
    outermost = model not in _steady
    if outermost:
        _steady[model] = [_ModuleState(module) for module in model.modules()]
    changed = [state.module for state in _steady[model] if state.module.training != state.stays]
    try:
        for module in changed:
            module.training = not module.training
        yield
    finally:
        forget(model)
        if outermost:
            del _steady[model]
        for module in changed:
            module.training = not module.training


def forget(model: Any) -> None:
    """Put back what passes since the outermost `steady` left behind in a model, besides its parameters.

    Some models carry state from pass to pass: frequencies stretched by the longest record so far, running
    statistics, caches. Buffers, and tensors, numbers and containers in attributes, become what they were.
    What a model hides in other objects stays; a model that uses such a thing is refused
    (`fedpeft.training.dp.engine_selection`).
    """
    with torch.no_grad():
        for module in _steady[model]:
            module.put_back()


class _ModuleState:
    """The state of one module besides its parameters and children; `stays` is its mode while it is steady."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.stays = module, _stays_in_training(module)
        attributes: dict[str, Any] = vars(module)
        buffers = attributes["_buffers"]
        self.places = [(attributes, attributes | {"training": self.stays}), (buffers, buffers.copy())]
        self.values = [
            _Value(value)
            for place in (attributes, attributes["_buffers"])
            for key, value in place.items()
            if _may_change(value) and key not in _TORCH
        ]

    def put_back(self) -> None:
        for value in self.values:
            value.put_back()
        for place, before in self.places:
            if len(place) != len(before) or not all(map(is_, place.values(), before.values())):
                for key in (place.keys() | before.keys()) - _TORCH:
                    if key in before:
                        place[key] = before[key]
                    else:
                        del place[key]


class _Value:
    """A tensor or container, its content before, and the parts of it that could change too."""

    __slots__ = ("content", "inner", "target")

    def __init__(self, target: Any) -> None:
        self.target, self.inner = target, ()
        if isinstance(target, torch.Tensor):
            self.content = (_version(target), target.detach().clone())
            return
        self.content = target if type(target) is tuple else target.copy()
        if type(target) is not np.ndarray:
            items: Any = target.values() if isinstance(target, dict) else target
            self.inner = tuple([_Value(item) for item in items if _may_change(item)])

    def put_back(self) -> None:
        target, content = self.target, self.content
        for value in self.inner:
            value.put_back()
        if isinstance(target, torch.Tensor):
            if _version(target) != content[0]:
                target.copy_(content[1])
        elif type(target) in (list, np.ndarray):
            target[:] = content
        elif type(target) is not tuple:
            target.clear()
            target.update(content)


def _may_change(value: Any) -> bool:
    """Whether a pass could change what a value holds, and that could be put back."""
    return type(value) in _CONTAINERS or (isinstance(value, torch.Tensor) and type(value) is not nn.Parameter)


def _version(tensor: torch.Tensor) -> int:
    """Counts the changes in place; tensors made in inference mode count none and cannot be changed here."""
    return 0 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]


def _stays_in_training(module: Any) -> bool:
    recomputes = getattr(module, "gradient_checkpointing", False)
    return bool(recomputes) or type(module).__module__.startswith("bitsandbytes.")

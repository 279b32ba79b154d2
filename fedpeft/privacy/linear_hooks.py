"""Per-example gradients of plain linear layers, read from one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedpeft.errors import PrivacyError
from fedpeft.exchange.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor


class NotBatchFirst(PrivacyError):
    """A layer saw something else than one row per example: flattened or routed tokens."""


def linear_owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[nn.Linear] | None:
    """The plain ``nn.Linear`` layers that own all trainable parameters; None if there are others."""
    wanted = {id(parameter) for parameter in parameters.values()}
    owners: list[nn.Linear] = []
    for module in model.modules():
        mine = {id(parameter) for parameter in module.parameters(recurse=False)} & wanted
        if mine and type(module) is nn.Linear:
            owners.append(module)
        elif mine:
            return None
    return owners


class LinearRecorder:
    """Collects ``dL_b/dW`` and ``dL_b/dbias`` of each example b while it is entered.

    For ``y = x W^T + c`` the gradient of example b is ``sum_t g[b,t] x[b,t]^T`` (Goodfellow 2015,
    arXiv:1510.01799). The loss must be the sum over examples. A layer that is used twice is added up;
    recomputation by gradient checkpointing is seen once, as only one of the passes receives gradients.

    Args:
        model: the model whose trainables are all in plain linear layers.
        parameters: the trainables by name.
        batch_size: number of examples.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batch_size: int) -> None:
        self.owners = linear_owners(model, parameters) or []
        self.parameters = parameters
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.batch_size = batch_size
        self.found: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        self.handles = [layer.register_forward_hook(self._forward) for layer in self.owners]
        self._freeze(True)

    def __exit__(self, *_: object) -> None:
        self._freeze(False)
        for handle in self.handles:
            handle.remove()

    def _freeze(self, frozen: bool) -> None:
        """Spare autograd the batch gradient of the weights, which nobody reads."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(not frozen)

    def matrix(self, layout: Layout) -> Tensor:
        """All gradients in layout order, float32, shape ``(B, layout.size)``; zero where none arrived."""
        parts = [self._part(name, int(size)) for name, size in zip(layout.names, layout.sizes, strict=True)]
        return torch.cat(parts, dim=1)

    def _part(self, name: str, size: int) -> Tensor:
        if name in self.found:
            return self.found[name].reshape(self.batch_size, size)
        device = next(layer.weight.device for layer in self.owners)
        return torch.zeros(self.batch_size, size, device=device)

    def _forward(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        source = inputs[0].detach()
        if source.dim() < 2 or source.shape[0] != self.batch_size:
            raise NotBatchFirst(f"a layer saw shape {tuple(source.shape)} for {self.batch_size} examples")
        output.requires_grad_()
        output.register_hook(lambda gradient: self._backward(layer, source, gradient))

    def _backward(self, layer: nn.Linear, source: Tensor, gradient: Tensor) -> None:
        rows = gradient.detach().reshape(self.batch_size, -1, gradient.shape[-1])
        columns = source.reshape(self.batch_size, -1, source.shape[-1]).to(rows.dtype)
        if (name := self.names.get(id(layer.weight))) is not None:
            self._add(name, torch.bmm(rows.transpose(1, 2), columns))
        if (name := self.names.get(id(layer.bias))) is not None:
            self._add(name, rows.sum(1))

    def _add(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.float()
        self.found[name] = self.found[name] + gradient if name in self.found else gradient

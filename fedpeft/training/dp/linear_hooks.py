"""Per-example gradients of plain linear layers and embeddings, read from one backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedpeft.errors import PrivacyError

if TYPE_CHECKING:
    from torch import Tensor


class NotBatchFirst(PrivacyError):
    """A layer saw something else than one row per example: flattened, routed or shared inputs."""


def owners_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[nn.Module] | None:
    """The plain linear layers and embeddings that own all trainables; None if anything else owns one."""
    wanted = {id(parameter) for parameter in parameters.values()}
    owners: list[nn.Module] = []
    for module in model.modules():
        mine = {id(parameter) for parameter in module.parameters(recurse=False)} & wanted
        if mine and _is_plain(module):
            owners.append(module)
        elif mine:
            return None
    return owners


def _is_plain(module: nn.Module) -> bool:
    """Exact types only; an embedding that rescales weights or counts over the batch is not plain."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return type(module) is nn.Linear


def refuse_shared_rows(source: Tensor, batch_size: int) -> None:
    """Refuse inputs of a layer that are not one row per example.

    Raises:
        NotBatchFirst: they have another first dimension, or only one.
    """
    if source.dim() < 2 or source.shape[0] != batch_size:
        raise NotBatchFirst(f"a layer saw shape {tuple(source.shape)} for {batch_size} examples")


class Recorder:
    """Collects the gradient of each example b by the weights of plain layers while it is entered.

    For ``y = x W^T + c`` it is ``sum_t g[b,t] x[b,t]^T`` (Goodfellow 2015, arXiv:1510.01799); for an
    embedding, ``g[b,t]`` added to the row of token ``[b,t]``. The loss must be the sum over examples. A layer
    that is used twice, and a weight that two layers share, is added up; recomputation by gradient
    checkpointing is seen once, as only one of the passes receives gradients.

    Args:
        model: the model whose trainables are all in plain layers.
        parameters: the trainables by name.
        batch_size: number of examples.

    Attributes:
        gradients: per name the gradients that arrived, float32, shape ``(B, *parameter.shape)``.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batch_size: int) -> None:
        self.owners = owners_of(model, parameters) or []
        self.parameters = parameters
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.batch_size = batch_size
        self.gradients: dict[str, Tensor] = {}
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

    def _forward(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        source = inputs[0].detach()
        refuse_shared_rows(source, self.batch_size)
        rule: Any = self._embedding if type(layer) is nn.Embedding else self._linear
        output.requires_grad_()
        output.register_hook(lambda gradient: rule(layer, source, gradient.detach()))

    def _linear(self, layer: nn.Linear, source: Tensor, gradient: Tensor) -> None:
        rows = gradient.reshape(self.batch_size, -1, gradient.shape[-1])
        columns = source.reshape(self.batch_size, -1, source.shape[-1]).to(rows.dtype)
        if (name := self.names.get(id(layer.weight))) is not None:
            self._add(name, torch.bmm(rows.transpose(1, 2), columns))
        if (name := self.names.get(id(layer.bias))) is not None:
            self._add(name, rows.sum(1))

    def _embedding(self, layer: nn.Embedding, source: Tensor, gradient: Tensor) -> None:
        tokens = source.reshape(self.batch_size, -1, 1)
        rows = gradient.reshape(self.batch_size, -1, gradient.shape[-1]).float()
        if layer.padding_idx is not None:
            rows = rows * (tokens != layer.padding_idx)
        table = rows.new_zeros(self.batch_size, *layer.weight.shape)
        self._add(self.names[id(layer.weight)], table.scatter_add_(1, tokens.expand_as(rows), rows))

    def _add(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.float()
        self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient

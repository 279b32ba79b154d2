"""Per-example gradients of plain linear layers and embeddings by the hooks of Opacus."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedpeft.training.dp.linear_hooks import NotBatchFirst, owners_of, refuse_shared_rows

if TYPE_CHECKING:
    from torch import Tensor

_TORCH_NOTE = "Full backward hook is firing"
"""What torch says of the hooks of a first layer, whose inputs need no gradient. Its outputs have one."""


class OpacusRecorder:
    """Collects the gradient of each example while it is entered, as `Recorder` does, by Opacus' samplers.

    Only these run (``GradSampleHooks``, the part of ``GradSampleModule`` that wraps nothing): clip, sum and
    noise are the platform's. Opacus reads layers in training mode alone, so that the layers that own
    trainables, and no others, are in it.

    Args:
        model: the model whose trainables are all in plain layers.
        parameters: the trainables by name.
        batch_size: number of examples.

    Attributes:
        gradients: per name the gradients that arrived, float32, shape ``(B, *parameter.shape)``.

    Raises:
        NotBatchFirst: a layer does not see one row per example, or Opacus did not read every use of a layer.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batch_size: int) -> None:
        self.model, self.parameters, self.batch_size = model, parameters, batch_size
        self.owners = owners_of(model, parameters) or []
        self.gradients: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        from opacus.grad_sample import GradSampleHooks

        self.hooks: Any = GradSampleHooks(self.model, loss_reduction="sum")
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.filterwarnings("ignore", message=_TORCH_NOTE, category=UserWarning)
        self.modes = [layer.training for layer in self.owners]
        for layer in self.owners:
            layer.training = True
        self.handles = [layer.register_forward_pre_hook(self._check) for layer in self.owners]

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._collect()
        finally:
            self.hooks.cleanup()
            for handle in self.handles:
                handle.remove()
            for layer, mode in zip(self.owners, self.modes, strict=True):
                layer.training = mode
                vars(layer).pop("activations", None)
                vars(layer).pop("max_batch_len", None)
            for parameter in self.parameters.values():
                parameter.grad = None
                vars(parameter).pop("_current_grad_sample", None)
            self.warnings.__exit__(None, None, None)

    def _check(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            refuse_shared_rows(inputs[0], self.batch_size)

    def _collect(self) -> None:
        for name, parameter in self.parameters.items():
            rows: Any = vars(parameter).get("grad_sample")
            if hasattr(parameter, "_current_grad_sample"):
                raise NotBatchFirst(f"Opacus did not read every use of the layer of {name}")
            if rows is not None:
                self._add(name, rows, parameter)

    def _add(self, name: str, rows: Any, parameter: nn.Parameter) -> None:
        if isinstance(rows, list) or rows.shape != (self.batch_size, *parameter.shape):
            raise NotBatchFirst(f"Opacus did not read one gradient per example of {name}")
        self.gradients[name] = rows.detach().float()

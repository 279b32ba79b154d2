"""Which engine serves a model, decided by looking and by gates on made-up tokens.

The batched engine serves a model only if all trainables are in plain layers, nothing known couples the
examples of a batch, and on probes, with made-up values in the trainables:

1. every layer sees one row per example;
2. its gradients equal those of one backward pass per example, and reach every trainable tensor;
3. the examples are independent: the gradient of the summed loss is the sum of the single gradients.

Anything else ends at the loop, whose batches of one record have no neighbour to be coupled with. No record
is ever used to choose, so that the choice says nothing about the data.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from fedpeft.data import Batch, Example
from fedpeft.errors import PrivacyError
from fedpeft.privacy.linear_hooks import NotBatchFirst, owners_of
from fedpeft.privacy.passes import Rows, batched_rows, bounds_of, clear, unit_row
from fedpeft.training.batches import gather
from fedpeft.training.loss import per_example_loss, task_of
from fedpeft.training.modes import steady

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.adapters import Attached

PROBE_LENGTHS = (9, 6, 4)
PROBE_SPREAD = 0.02
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Engine:
    """Which engine serves a model, and why."""

    name: Literal["batched", "loop"]
    reason: str


_engines: WeakKeyDictionary[nn.Module, dict[object, Engine]] = WeakKeyDictionary()


def engine_of(attached: Attached, wanted: Literal["auto", "batched", "loop"] = "auto") -> Engine:
    """The engine for a model; decided again when its trainables or its layers have changed.

    Args:
        attached: the model and its trainable parameters.
        wanted: ``auto`` takes the batched engine where it is right; ``loop`` is right for every model.

    Raises:
        PrivacyError: the batched engine is wanted, but not right here.
    """
    if wanted == "loop":
        return Engine("loop", "asked for")
    known, key = _engines.setdefault(attached.model, {}), _fingerprint(attached)
    if key not in known:
        known[key] = _choose(attached)
    if wanted == "batched" and known[key].name == "loop":
        raise PrivacyError(f"run.engine = 'batched' is wrong here: {known[key].reason}; set 'auto' or 'loop'")
    return known[key]


def _fingerprint(attached: Attached) -> object:
    """What the choice hangs on: the trainables themselves and the kinds of all layers."""
    trainables = tuple(id(parameter) for parameter in attached.parameters.values())
    layers = tuple((type(m), getattr(m, "gradient_checkpointing", False)) for m in attached.model.modules())
    return attached.layout.digest, trainables, layers


def _choose(attached: Attached) -> Engine:
    """Run the gates; anything but a clean pass means the loop."""
    if owners_of(attached.model, attached.parameters) is None:
        return Engine("loop", "a trainable parameter is not in a plain linear layer or embedding")
    if (reason := _coupling(attached.model)) is not None:
        return Engine("loop", reason)
    with _perturbed(attached), steady(attached.model):
        try:
            failure = _failed_gate(attached)
        except NotBatchFirst as reason:
            failure = str(reason)
    return Engine("loop", failure) if failure else Engine("batched", "plain layers; passed all gates")


def _failed_gate(attached: Attached) -> str | None:
    tolerance = TOLERANCE.get(attached.model.dtype, TOLERANCE[torch.bfloat16])
    for seed in (0, 1):
        probe = _probe(attached, seed)
        slow = torch.cat([_matrix(attached, unit_row(attached, probe.part(i, i + 1)), 1) for i in range(3)])
        fast = _matrix(attached, batched_rows(attached, probe, bounds_of(None, 3)), 3)
        if not _reaches_all(attached, slow):
            return "the probe does not reach every trainable tensor"
        if not _close(fast, slow, tolerance):
            return "batched gradients differ from the loop's on a probe"
        if not _close(_gradient_of_sum(attached, probe), slow.sum(0, keepdim=True), tolerance):
            return "the gradient of a batch is not the sum of its examples' gradients"
    return None


def _matrix(attached: Attached, rows: Rows, count: int) -> Tensor:
    """All gradients in layout order, shape ``(count, layout.size)``."""
    device = next(attached.model.parameters()).device
    sizes = attached.layout.sizes.tolist()
    parts = [
        torch.zeros(count, n, device=device) if r is None else r for r, n in zip(rows, sizes, strict=True)
    ]
    return torch.cat(parts, dim=1)


def _gradient_of_sum(attached: Attached, probe: Batch) -> Tensor:
    """Autograd's gradient of the summed loss, shape ``(1, layout.size)``."""
    per_example_loss(attached.model, probe).sum().backward()
    rows: Rows = []
    for name in attached.layout.names:
        found = attached.parameters[name].grad
        rows.append(None if found is None else found.float().reshape(1, -1))
    clear(attached)
    return _matrix(attached, rows, 1)


def _reaches_all(attached: Attached, gradients: Tensor) -> bool:
    parts = gradients.split(attached.layout.sizes.tolist(), dim=1)
    return all(bool(part.any()) for part in parts)


def _close(given: Tensor, wanted: Tensor, tolerance: float) -> bool:
    errors, scale = (given - wanted).norm(dim=1), wanted.norm(dim=1)
    return bool((errors <= tolerance * scale + 1e-12).all())


def _probe(attached: Attached, seed: int) -> Batch:
    """Three made-up examples of different lengths."""
    rng = np.random.default_rng(seed)
    vocabulary = int(attached.model.config.get_text_config().vocab_size)
    is_classifier = task_of(attached.model) == "sequence-classification"
    examples: list[Example] = []
    for index, length in enumerate(PROBE_LENGTHS):
        ids = rng.integers(1, vocabulary, length)
        weights = (np.arange(length) > 0).astype(np.float32)
        examples.append(Example(ids, weights, index % 2 if is_classifier else -1))
    return gather(attached.model, examples)


@contextmanager
def _perturbed(attached: Attached) -> Generator[None]:
    """Made-up values in the trainables, as zeros (lora_B at the start) would hide an error; restored."""
    kept = {name: parameter.detach().clone() for name, parameter in attached.parameters.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        for name in sorted(kept):
            noise = torch.randn(kept[name].shape, generator=generator) * PROBE_SPREAD
            attached.parameters[name].data.add_(noise.to(kept[name]))
        yield
    finally:
        for name, parameter in attached.parameters.items():
            parameter.data.copy_(kept[name])


def _coupling(model: Any) -> str | None:
    """What is known to let one example of a batch act on another, though a probe may not show it."""
    for module in model.modules():
        if _outlier_threshold(module) > 0 and next(module.parameters()).device.type != "cpu":
            return "int8 with an outlier threshold couples the examples of a batch"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            return "batch normalisation couples the examples of a batch"
    text = model.config.get_text_config()
    if any((getattr(text, name, None) or 0) > 1 for name in EXPERTS):
        return "experts are given the tokens of a whole batch"
    return None


def _outlier_threshold(module: Any) -> float:
    """Of a bitsandbytes int8 layer, else 0; its training path on CPUs never chooses outliers."""
    is_int8 = type(module).__module__.startswith("bitsandbytes.") and type(module).__name__ == "Linear8bitLt"
    return float(module.state.threshold) if is_int8 else 0.0

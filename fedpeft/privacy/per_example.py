"""Per-example gradients of the trainable parameters, clipped one by one and summed.

Two engines give the same numbers. *batched* reads per-example gradients of plain ``nn.Linear`` layers from
one backward pass through hooks; *loop* runs one backward pass per example and is right for every method.
The batched engine serves a model only after three gates on made-up tokens: every layer sees the batch
dimension first, its gradients equal the loop's, and a neighbour does not change an example's gradient.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedpeft.data import Batch, Example
from fedpeft.errors import PrivacyError
from fedpeft.privacy.linear_hooks import LinearRecorder, NotBatchFirst, linear_owners
from fedpeft.training.batches import gather
from fedpeft.training.loss import per_example_loss, task_of
from fedpeft.training.modes import steady

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.adapters import Attached

FloatVector64 = NDArray[np.float64]

VALUES_AT_ONCE = 1 << 26
"""Most per-example gradient values held at once (256 MiB in float32)."""

CLIP_MARGIN = 1e-6
"""Clipped norms end this much below the clip, above the rounding of float32 norms."""

PROBE_LENGTHS = (9, 6, 4)
PROBE_SPREAD = 0.02
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Engine:
    """Which engine serves a model, and why."""

    name: Literal["batched", "loop"]
    reason: str


_engines: WeakKeyDictionary[nn.Module, dict[bytes, Engine]] = WeakKeyDictionary()


def clipped_sum(attached: Attached, batch: Batch, clip: float) -> tuple[FloatVector64, FloatVector64]:
    """Sum of the per-example gradients, each clipped to L2 norm ``clip`` over all trainables.

    Adding or removing one example changes the sum by at most ``clip``. A non-finite gradient counts as zero.

    Args:
        attached: the model and its trainable parameters.
        batch: any number of examples, also none.
        clip: L2 bound, above 0.

    Returns:
        The sum in layout order, float64, shape ``(layout.size,)``, and the norms before clipping, float64,
        shape ``(B,)``; inf or nan where a gradient was not finite. Both are private until noise is added.

    Raises:
        PrivacyError: a parameter is trainable but not part of the layout.
    """
    total, norms = np.zeros(attached.layout.size, np.float64), [np.zeros(0, np.float64)]
    for gradients in _chunks(attached, batch):
        size = gradients.norm(dim=1)
        factors = torch.clamp(clip * (1 - CLIP_MARGIN) / size, max=1.0)
        factors = torch.where(torch.isfinite(size), factors, torch.zeros_like(factors))
        finite = torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0)
        total += (factors @ finite).double().cpu().numpy()
        norms.append(size.double().cpu().numpy())
    return total, np.concatenate(norms)


def gradients(attached: Attached, batch: Batch, engine: Engine | None = None) -> Tensor:
    """The gradient of each example's loss, float32, shape ``(B, layout.size)``.

    Args:
        attached: the model and its trainable parameters.
        batch: the examples.
        engine: default: whatever `engine_of` says.
    """
    _refuse_strays(attached)
    chosen = engine or engine_of(attached)
    with steady(attached.model):
        run = _batched if chosen.name == "batched" else _loop
        return run(attached, batch)


def engine_of(attached: Attached) -> Engine:
    """The engine for a model, decided once per model and layout by the three gates."""
    known = _engines.setdefault(attached.model, {})
    key = attached.layout.digest
    if key not in known:
        known[key] = _choose(attached)
    return known[key]


def _chunks(attached: Attached, batch: Batch) -> Iterator[Tensor]:
    rows = max(1, VALUES_AT_ONCE // max(attached.layout.size, 1))
    for start in range(0, len(batch), rows):
        yield gradients(attached, batch.part(start, start + rows))


def _batched(attached: Attached, batch: Batch) -> Tensor:
    recorder = LinearRecorder(attached.model, attached.parameters, len(batch))
    with recorder:
        per_example_loss(attached.model, batch).sum().backward()
    return recorder.matrix(attached.layout)


def _loop(attached: Attached, batch: Batch) -> Tensor:
    rows = [torch.zeros(0, attached.layout.size, device=batch.ids.device)]
    for index in range(len(batch)):
        _clear(attached)
        length = max(int(batch.lengths[index]), 1)
        per_example_loss(attached.model, _trimmed(batch.part(index, index + 1), length)).sum().backward()
        rows.append(_flat_gradient(attached)[None])
    _clear(attached)
    return torch.cat(rows)


def _trimmed(batch: Batch, length: int) -> Batch:
    return Batch(batch.ids[:, :length], batch.weights[:, :length], batch.lengths, batch.targets)


def _flat_gradient(attached: Attached) -> Tensor:
    parameters = (attached.parameters[name] for name in attached.layout.names)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.reshape(-1).float() for part in parts])


def _clear(attached: Attached) -> None:
    for parameter in attached.parameters.values():
        parameter.grad = None


def _refuse_strays(attached: Attached) -> None:
    agreed = {id(parameter) for parameter in attached.parameters.values()}
    for name, parameter in attached.model.named_parameters():
        if parameter.requires_grad and id(parameter) not in agreed:
            raise PrivacyError(f"{name} is trainable but not exchanged, so no clip covers it; freeze it")


def _choose(attached: Attached) -> Engine:
    """Run the gates; anything but a clean pass means the loop."""
    if linear_owners(attached.model, attached.parameters) is None:
        return Engine("loop", "a trainable parameter is not in a plain linear layer")
    if _couples_int8(attached.model):
        return Engine("loop", "int8 with an outlier threshold couples the examples of a batch")
    with _perturbed(attached):
        try:
            return _gates(attached)
        except NotBatchFirst as reason:
            return Engine("loop", str(reason))


def _gates(attached: Attached) -> Engine:
    batched, loop = Engine("batched", ""), Engine("loop", "")
    probe, other = _probe(attached, seed=0), _probe(attached, seed=1)
    fast, slow = gradients(attached, probe, batched), gradients(attached, probe, loop)
    tolerance = TOLERANCE.get(_dtype(attached.model), TOLERANCE[torch.bfloat16])
    if not _close(fast, slow, tolerance):
        return Engine("loop", "batched gradients differ from the loop's on a probe")
    pairs = zip(_parts(probe), _parts(other), strict=True)
    neighbours = Batch(*(torch.cat([mine[:1], theirs[1:]]) for mine, theirs in pairs))
    if not _close(gradients(attached, neighbours, batched)[:1], slow[:1], tolerance):
        return Engine("loop", "a neighbour in the batch changes an example's gradient")
    return Engine("batched", "plain linear layers; passed all gates")


def _parts(batch: Batch) -> tuple[Tensor, ...]:
    return batch.ids, batch.weights, batch.lengths, batch.targets


def _close(given: Tensor, wanted: Tensor, tolerance: float) -> bool:
    scale = wanted.norm(dim=1, keepdim=True)
    return bool(((given - wanted).norm(dim=1, keepdim=True) <= tolerance * scale + 1e-12).all())


def _probe(attached: Attached, seed: int) -> Batch:
    """Three made-up examples of different lengths; no record is ever used to test the engine."""
    rng = np.random.default_rng(seed)
    vocabulary = int(attached.model.config.get_text_config().vocab_size)
    is_classifier = task_of(attached.model) == "sequence-classification"
    examples: list[Example] = []
    for index, length in enumerate(PROBE_LENGTHS):
        ids = rng.integers(1, vocabulary, length)
        weights = np.ones(length, np.float32) * (np.arange(length) > 0)
        examples.append(Example(ids, weights.astype(np.float32), index % 2 if is_classifier else -1))
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


def _couples_int8(model: nn.Module) -> bool:
    """Whether outlier columns are chosen over a whole batch; the training path on CPUs never does."""
    return any(_threshold(module) > 0 and _device(module) != "cpu" for module in model.modules())


def _threshold(module: Any) -> float:
    is_int8 = type(module).__module__.startswith("bitsandbytes.") and type(module).__name__ == "Linear8bitLt"
    return float(module.state.threshold) if is_int8 else 0.0


def _device(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def _dtype(model: Any) -> torch.dtype:
    return model.dtype

"""Which engine serves a model, decided by looking and by gates on made-up tokens.

The gates run at the lengths that the run will use, with made-up values in the trainables. No record is ever
used to choose, so that the choice says nothing about the data.

The loop computes each record alone, at its own length and from the model's own state. It serves if a record's
gradient is the same after other records, shorter or longer; a model that fails is refused.

The batched engine serves a model only if besides all trainables are in plain layers, sums are in float32,
nothing known couples the examples of a batch, and

1. every layer sees one row per example;
2. its gradients equal those of the loop, and reach every trainable tensor;
3. the examples are independent: the gradient of the summed loss is the sum of the single gradients.

The same gates decide about the hooks of Opacus, with the gradients that those hooks give.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from fedpeft.data import Batch, Example
from fedpeft.data.batches import gather
from fedpeft.errors import PrivacyError
from fedpeft.progress_reports import at
from fedpeft.training.dp.backward_passes import Rows, batched_rows, bounds_of, clear, unit_row
from fedpeft.training.dp.linear_hooks import NotBatchFirst, Recorder, owners_of
from fedpeft.training.dp.opacus_hooks import OpacusRecorder
from fedpeft.training.loss import Loss, per_example_loss, task_of
from fedpeft.training.modes import forget, steady

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.adapters import Attached

PROBE_LENGTHS = (9, 6, 4)
LONGEST = 64
"""Tokens of the longest probe where nobody says how long records may be."""
PROBE_SPREAD = 0.02
TOLERANCE = 3e-4
"""Of the batched engine, in float32: what padding and neighbours may change of a record's gradient."""
REPEATED = {torch.float32: 1e-4}
"""What the loop may change when it computes a record again, by kernels that add in no fixed order."""
REPEATED_ROUGHLY = 1e-2
PASSED = "plain layers; passed all gates"
CARRIES = (
    "one record changes the base's output for the next one, through state that a pass leaves behind and that "
    "cannot be put back, so no clip bounds a record; take another base, or privacy.unit = 'node' or 'none'"
)
HOOKS: dict[str, type[Recorder | OpacusRecorder]] = {"batched": Recorder, "opacus": OpacusRecorder}
"""What reads the gradients of many units from one pass, by the engine's name."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERT_LAYERS = ("moe", "expert", "router")


@dataclass(frozen=True)
class Engine:
    """Which engine serves a model, why, and up to which padded length; beyond it the loop serves.

    A loss that is not the platform's is computed by the loop alone.
    """

    name: Literal["batched", "loop", "opacus"]
    reason: str
    longest: int = LONGEST
    loss: Loss | None = None


_engines: WeakKeyDictionary[nn.Module, dict[object, Engine | PrivacyError]] = WeakKeyDictionary()
"""What was chosen, or why nothing was: a model that has failed once is not asked again."""


def engine_of(
    attached: Attached,
    wanted: Literal["auto", "batched", "loop", "opacus"] = "auto",
    longest: int = LONGEST,
    loss: Loss | None = None,
) -> Engine:
    """The engine for a model; decided again when its trainables or its layers have changed.

    Args:
        attached: the model and its trainable parameters.
        wanted: ``auto`` takes the batched engine where it is right; that of Opacus is never taken unasked.
        longest: most tokens of a record, a public figure such as ``data.max_length``.
        loss: of each example, where it is not the platform's: then the loop serves.

    Raises:
        PrivacyError: an engine other than the loop is wanted, but not right here, or not for this loss; or no
            engine is right: the model takes no record of that length, or couples the records that it sees one
            after the other.
    """
    many: Literal["batched", "opacus"] = "opacus" if wanted == "opacus" else "batched"
    known, key = _engines.setdefault(attached.model, {}), (_fingerprint(attached), longest, many)
    if key not in known:
        at("comparing per-example gradients, once for this base")
        try:
            known[key] = _choose(attached, longest, many)
        except PrivacyError as refusal:
            known[key] = PrivacyError(str(refusal))
    chosen = known[key]
    if isinstance(chosen, PrivacyError):
        raise chosen
    if loss is not None:
        chosen = Engine("loop", "a loss of one's own is computed record by record", longest, loss)
    if wanted == many and chosen.name == "loop":
        raise PrivacyError(f"run.engine = {wanted!r} is wrong here: {chosen.reason}; set 'auto' or 'loop'")
    return Engine("loop", "asked for", longest, loss) if wanted == "loop" else chosen


def _fingerprint(attached: Attached) -> object:
    """What the choice depends on: the trainables, the kinds of all layers, how torch multiplies."""
    trainables = tuple(id(parameter) for parameter in attached.parameters.values())
    layers = tuple((type(m), getattr(m, "gradient_checkpointing", False)) for m in attached.model.modules())
    return attached.layout.digest, trainables, layers, torch.get_float32_matmul_precision()


def _choose(attached: Attached, longest: int, many: Literal["batched", "opacus"]) -> Engine:
    """Run the gates; anything but a clean pass means the loop, and not even that a refusal."""
    owners = owners_of(attached.model, attached.parameters)
    reason = (
        None if owners is not None else "a trainable parameter is not in a plain linear layer or embedding"
    )
    if many == "opacus" and any(getattr(owner, "padding_idx", None) is not None for owner in owners or []):
        reason = "Opacus counts the padding token of a trained embedding, which has no gradient"
    reason = reason or _rounding(attached.model) or _coupling(attached.model)
    _refuse_unplaced(attached.model, longest)
    with _perturbed(attached), steady(attached.model):
        for seed, lengths in enumerate(_probe_lengths(longest)):
            probe = _probe(attached, lengths, seed)
            try:
                alone = _alone(attached, probe)
            except (IndexError, RuntimeError) as error:
                cause = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
                raise PrivacyError(
                    f"the base makes no pass over {max(lengths)} made-up tokens ({cause})"
                ) from None
            reason = reason or _failed_gate(attached, probe, alone, many)
    return Engine("loop", reason, longest) if reason else Engine(many, PASSED, longest)


def _probe_lengths(longest: int) -> list[tuple[int, ...]]:
    """Lengths of the examples of each probe: the longest and about each half of it, beside short ones."""
    short, ladder = tuple(min(length, longest) for length in PROBE_LENGTHS), list[tuple[int, ...]]()
    while longest > PROBE_LENGTHS[0]:
        ladder.append((*short, longest))
        longest = longest // 2 + 1
    return [*ladder, short, short][: max(len(ladder) + 1, 2)]


def _alone(attached: Attached, probe: Batch) -> Tensor:
    """The loop's gradients, shape ``(B, layout.size)``, found twice: after shorter and after longer records.

    Raises:
        PrivacyError: they are not the same, or not finite.
    """
    singles = [probe.part(row, row + 1) for row in range(len(probe))]
    first = [_matrix(attached, unit_row(attached, single), 1) for single in singles]
    tolerance = REPEATED.get(attached.model.dtype, REPEATED_ROUGHLY)
    for single, gradient in zip(reversed(singles), reversed(first), strict=True):
        if not bool(torch.isfinite(gradient).all()):
            raise PrivacyError("gradients on made-up tokens are not finite; set base.dtype = 'float32'")
        if not _close(_matrix(attached, unit_row(attached, single), 1), gradient, tolerance):
            raise PrivacyError(CARRIES)
    return torch.cat(first)


def _failed_gate(attached: Attached, probe: Batch, alone: Tensor, many: str) -> str | None:
    """Why an engine that reads many units at once is wrong for a probe, if it is."""
    if not _reaches_all(attached, alone):
        return "the probe does not reach every trainable tensor"
    try:
        bounds = bounds_of(None, len(probe))
        together = _matrix(attached, batched_rows(attached, probe, bounds, HOOKS[many]), len(probe))
    except NotBatchFirst as reason:
        return str(reason)
    if not _close(together, alone, TOLERANCE):
        return f"padded to {probe.ids.shape[1]} tokens, {many} gradients differ from the loop's on a probe"
    if not _close(_gradient_of_sum(attached, probe), alone.sum(0, keepdim=True), TOLERANCE):
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
    forget(attached.model)
    rows: Rows = []
    for name in attached.layout.names:
        gradient = attached.parameters[name].grad
        rows.append(None if gradient is None else gradient.float().reshape(1, -1))
    clear(attached)
    return _matrix(attached, rows, 1)


def _reaches_all(attached: Attached, gradients: Tensor) -> bool:
    parts = gradients.split(attached.layout.sizes.tolist(), dim=1)
    return all(bool(part.any()) for part in parts)


def _close(computed: Tensor, wanted: Tensor, tolerance: float) -> bool:
    errors, scale = (computed - wanted).norm(dim=1), wanted.norm(dim=1)
    return bool((errors <= tolerance * scale + 1e-12).all())


def _probe(attached: Attached, lengths: Sequence[int], seed: int) -> Batch:
    """Made-up examples of given lengths; those of an encoder-decoder end as heads of such a base need it."""
    rng, config = np.random.default_rng(seed), attached.model.config
    vocabulary = int(config.get_text_config().vocab_size)
    end = config.eos_token_id if config.is_encoder_decoder else None
    is_classifier = task_of(attached.model) == "sequence-classification"
    examples: list[Example] = []
    for index, length in enumerate(lengths):
        ids = rng.integers(1, vocabulary, length)
        if isinstance(end, int):
            ids[ids == end] = 0
            ids[-1] = end
        weights = (np.arange(length) > 0).astype(np.float32)
        examples.append(Example(ids, weights, index % 2 if is_classifier else -1))
    return gather(attached.model, examples)


@contextmanager
def _perturbed(attached: Attached) -> Generator[None]:
    """Made-up values in the trainables, as zeros (lora_B at the start) would hide an error; restored."""
    originals = {name: parameter.detach().clone() for name, parameter in attached.parameters.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        for name in sorted(originals):
            noise = torch.randn(originals[name].shape, generator=generator) * PROBE_SPREAD
            attached.parameters[name].data.add_(noise.to(originals[name]))
        yield
    finally:
        for name, parameter in attached.parameters.items():
            parameter.data.copy_(originals[name])


def _refuse_unplaced(model: Any, longest: int) -> None:
    """A record beyond a table of positions would end the round with an error, which reveals it."""
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None) or longest
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    if longest > places and any(places <= rows <= places + 4 for rows in tables):
        raise PrivacyError(
            f"the base has places for {places} tokens, but records may have {longest}; "
            f"set data.max_length to at most {places}"
        )


def _rounding(model: Any) -> str | None:
    """Why this model's sums hang on the shape of a batch, and so on who else is in it; None in float32."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            kind = str(parameter.dtype).removeprefix("torch.")
            return f"{kind} rounds a record's gradient by the shape of its batch (float32 does not visibly)"
    if (precision := torch.get_float32_matmul_precision()) != "highest":
        return f"torch multiplies float32 at precision {precision!r}, so that rounding depends on the batch"
    return None


def _coupling(model: Any) -> str | None:
    """What is known to let one example of a batch act on another, though a probe may not show it."""
    for module in model.modules():
        if _outlier_threshold(module) > 0 and next(module.parameters()).device.type != "cpu":
            return "int8 with an outlier threshold couples the examples of a batch"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            return "batch normalisation couples the examples of a batch"
        if any(name in type(module).__name__.lower() for name in EXPERT_LAYERS):
            return "experts are given the tokens of a whole batch"
    text = model.config.get_text_config()
    if any((getattr(text, name, None) or 0) > 1 for name in EXPERTS):
        return "experts are given the tokens of a whole batch"
    return None


def _outlier_threshold(module: Any) -> float:
    """Of a bitsandbytes int8 layer, else 0; its training path on CPUs never chooses outliers."""
    is_int8 = type(module).__module__.startswith("bitsandbytes.") and type(module).__name__ == "Linear8bitLt"
    return float(module.state.threshold) if is_int8 else 0.0

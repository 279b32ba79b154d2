"""Writing an adapter as a folder that plain peft loads, with no fedpeft installed."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.adapters.attach import Attached
from fedpeft.adapters.methods import lora
from fedpeft.adapters.methods.base import Content, Spec
from fedpeft.adapters.trained_parts import head_of
from fedpeft.aggregation.lora_factors import FactorState
from fedpeft.bases.beside import hub_id, place_base
from fedpeft.bases.load import Base
from fedpeft.exchange.layout import FloatVector
from fedpeft.runstore.files import write_atomic, write_json

_PREFIX = "base_model.model."
_TASKS = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}


def export(
    attached: Attached,
    folder: Path,
    state: FactorState | None = None,
    as_lora: bool = False,
    beside: Path | None = None,
) -> Path:
    """Write the adapter's values as ``adapter_config.json`` and ``adapter_model.safetensors``.

    The folder loads with ``peft.PeftModel.from_pretrained`` and computes the same function. The same
    adapter gives the same bytes. Files are written atomically, the configuration last.

    Args:
        attached: the adapter; its current values are written unless a state is given.
        folder: where to.
        state: the federation's factors (stack, reproject): one LoRA of their rank.
        as_lora: write MiSS as plain LoRA, for servers that know only that; exact.
        beside: where the base is laid unless it has a public id (`fedpeft.bases.beside.place_base`), so that
            the adapter names what loads it and no private path; None: it is named as it was configured.

    Returns:
        The folder.
    """
    from safetensors.numpy import save

    tensors, config = _content(attached, state, as_lora)
    base = attached.base
    config.task_type = _TASKS[base.task]
    config.base_model_name_or_path, config.revision = _named(base, beside)
    config.inference_mode = True
    heads = _frozen_heads(attached)
    if heads:
        config.modules_to_save = sorted({head for name in heads if (head := head_of(name))})
    named = {f"{_PREFIX}{name}": np.ascontiguousarray(value) for name, value in {**tensors, **heads}.items()}
    write_atomic(folder / "adapter_model.safetensors", save(dict(named), metadata={"format": "pt"}))
    write_json(folder / "adapter_config.json", _plain(config.to_dict()))
    return folder


def _named(base: Base, beside: Path | None) -> tuple[str, str | None]:
    """Name and revision of the base for loaders."""
    if beside is not None:
        return place_base(base.folder, beside, base.sha256)
    return hub_id(base.folder) or (base.name, None)


def _content(
    attached: Attached, state: FactorState | None, as_lora: bool
) -> tuple[dict[str, FloatVector], Any]:
    """Tensors by exchanged name and a fresh peft configuration."""
    if state is not None:
        return _factors(attached.spec, state)
    spec, parameters = attached.spec, {**attached.parameters, **attached.frozen}
    tensors = {name: parameters[name].detach().float().cpu().numpy() for name in sorted(parameters)}
    parts = {name: tensors.pop(name) for name in sorted(parameters) if spec.parts.trains(name)}
    exported = None if as_lora else attached.method.exported
    written = exported and exported(spec, tensors)
    tensors, config = written or (tensors, attached.method.build(spec))
    return {**tensors, **parts}, spec.parts.configure(config)


def _factors(spec: Spec, state: FactorState) -> Content:
    """One LoRA of scaling 1 and one rank, that of the largest module; the others' factors end in zeros.

    Ranks of their own would need a rank pattern: llama.cpp divides one alpha by each module's rank, and vLLM
    reads no pattern either, so that both would scale such modules wrongly.
    """
    rank = max(state.rank, 1)
    config = lora.build(spec)
    config.r = config.lora_alpha = rank
    tensors: dict[str, FloatVector] = {}
    for module, (a, b) in state.factors.items():
        missing = (0, rank - a.shape[0])
        tensors[f"{module}.lora_A.weight"] = np.pad(a, (missing, (0, 0)))
        tensors[f"{module}.lora_B.weight"] = np.pad(b, ((0, 0), missing))
    return tensors, config


def _frozen_heads(attached: Attached) -> dict[str, FloatVector]:
    """The tensors of a head that is not trained, and of what else the base's folder lacks, by name."""
    if attached.base.task != "sequence-classification" or attached.spec.parts.heads:
        return {}
    heads = {"classifier", "score"} | {head for name in attached.base.fresh if (head := head_of(name))}
    tensors = attached.base.model.named_parameters()
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors if head_of(name) in heads}


def _plain(value: Any) -> Any:
    """JSON values in a fixed order: peft keeps sets and enumerations."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items())}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value

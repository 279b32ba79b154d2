"""What is wrong with the files of a base: kinds that are not trained, and weights that do not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.bases.files import FETCHED, stored_quantisation, weight_files
from fedpeft.config.models import Task
from fedpeft.errors import BaseModelError
from fedpeft.foreign_files import kind_of_file

_FLOATS = ("F64", "F32", "F16", "BF16")
_LARGEST_HEADER = 100_000_000
_LAYER = re.compile(r"(.*?\.)(\d+)\.")


def check_kind(name: str, config: Mapping[str, Any], task: Task) -> None:
    """Refuse a kind of model that has no head for the task, before its weights are read.

    Args:
        name: of the base, as configured.
        config: its ``config.json``.
        task: what its head is for.

    Raises:
        BaseModelError: code of its own, a model type that transformers does not know, an encoder-decoder as a
            causal model, or a kind without such a head.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    kind, start = str(config["model_type"])[:40], f"base.model {name!r}"
    if kind not in CONFIG_MAPPING:
        if config.get("auto_map"):
            raise BaseModelError(
                f"{start} brings code of its own (auto_map), which is never run; take another"
            )
        raise BaseModelError(f"{start} is of model_type {kind!r}, which this version of transformers lacks")
    causal: Mapping[str, Any] = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    classifiers: Mapping[str, Any] = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    is_causal = task == "causal-lm"
    fitting, others = (causal, classifiers) if is_causal else (classifiers, causal)
    if kind in fitting and not (is_causal and config.get("is_encoder_decoder") is True):
        return
    article = "an encoder-decoder" if config.get("is_encoder_decoder") else f"a model of type {kind!r}"
    other = "sequence-classification" if is_causal else "causal-lm"
    cure = f"base.task = {other!r} takes it" if kind in others else ""
    if "vision_config" in config or "audio_config" in config:
        cure = "of a multimodal model give the language model, saved as a folder of its own"
    raise BaseModelError(
        f"{start} is {article}, for which there is no {task} model; {cure or 'take another base'}"
    )


def check_files(name: str, folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse files that are not what their names say, and weights of whole numbers without their scales.

    Raises:
        BaseModelError: a pointer of Git LFS or a web page in place of a file; weights that are quantised
            though ``config.json`` does not say how.
    """
    for file in sorted(folder.iterdir()):
        is_read = file.is_file() and any(file.match(pattern) for pattern in FETCHED)
        if is_read and (kind := kind_of_file(file)):
            raise BaseModelError(f"base.model {name!r}: {file.name} is {kind}")
    if stored_quantisation(dict(config)) != "none":
        return
    for file in weight_files(folder):
        for tensor, dtype in _types(file):
            if dtype not in _FLOATS and (dtype.startswith("F8") or tensor.endswith("weight")):
                raise BaseModelError(
                    f"base.model {name!r}: {tensor!r} is of type {dtype}, but config.json names no "
                    "quantisation: take the base that it was made from"
                )


def _types(file: Path) -> Iterator[tuple[str, str]]:
    """Names and types of the tensors of a safetensors file; nothing where it is none."""
    if file.suffix != ".safetensors":
        return
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(length) if length < _LARGEST_HEADER else b""
    try:
        header: Any = json.loads(text)
    except ValueError:
        return  # the loader says so
    entries: dict[str, Any] = dict(header) if isinstance(header, dict) else {}
    for tensor, entry in entries.items():
        if isinstance(entry, dict) and "dtype" in entry:
            yield tensor, str(dict(entry)["dtype"])


def check_loaded(name: str, config: Any, info: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse weights that have other shapes than the configuration says, or more layers.

    Args:
        name: of the base, as configured.
        config: of the loaded model.
        info: what transformers says of loading.
        names: of the model's tensors, layers in order.

    Raises:
        BaseModelError: with the first tensor.
    """
    for tensor, shape, wanted in sorted(info["mismatched_keys"]):
        if len(shape) != len(wanted) or shape[1:] != wanted[1:] or wanted[0] != config.num_labels:
            raise BaseModelError(
                f"base.model {name!r}: {tensor!r} has shape {tuple(shape)}, and by config.json "
                f"{tuple(wanted)}; weights and config.json do not belong together"
            )
        raise BaseModelError(
            f"base.model {name!r} has a head of {shape[0]} classes, the records {wanted[0]}: take a base "
            "without a trained head, or records of its classes"
        )
    foreseen = getattr(config.get_text_config(), "num_nextn_predict_layers", None) or 0
    layers = {match[1]: int(match[2]) for tensor in names if (match := _LAYER.match(tensor))}
    for tensor in sorted(info["unexpected_keys"]):
        match = _LAYER.match(tensor)
        if match and int(match[2]) > layers.get(match[1], int(match[2])) + foreseen:
            raise BaseModelError(
                f"base.model {name!r}: its weights have {tensor!r}, for which config.json has no layer; they "
                "do not belong together"
            )


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The classes of a trained head in its order; empty where ``config.json`` names none."""
    table: Any = config.get("id2label")
    named: dict[str, Any] = dict(table) if isinstance(table, dict) else {}
    try:
        return [str(named[key]) for key in sorted(named, key=int)]
    except ValueError:
        return []

"""What a setting that does not exist was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from fedpeft.config.models import Config

OTHER_NAMES = {
    **dict.fromkeys(("model_name", "model_name_or_path", "base_model", "model_path"), "base.model"),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype"), "base.dtype"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit"), "base.quantisation"),
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "adapter.rank"),
    "lora_alpha": "adapter.alpha",
    **dict.fromkeys(("lora_target", "lora_target_modules"), "adapter.target_modules"),
    **dict.fromkeys(("dataset", "datasets", "dataset_path", "path", "train", "train_file"), "data.source"),
    **dict.fromkeys(("cutoff_len", "max_seq_length", "max_seq_len", "sequence_len"), "data.max_length"),
    **dict.fromkeys(("learning_rate", "local_lr"), "federation.lr"),
    **dict.fromkeys(("epochs", "local_epochs", "num_train_epochs", "max_steps"), "federation.local_steps"),
    **dict.fromkeys(("num_rounds", "num_server_rounds"), "federation.rounds"),
    **dict.fromkeys(("num_clients", "clients", "num_supernodes"), "federation.nodes"),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size"), "federation.batch_size"),
    **dict.fromkeys(("fraction_fit", "fraction_train"), "federation.participation"),
    **dict.fromkeys(("target_epsilon", "eps"), "privacy.epsilon"),
}
"""Names that other trainers have: the setting here."""


def section(annotation: Any) -> type[BaseModel] | None:
    """The model of a table of settings; None for a setting."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def paths(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """The full names of all settings."""
    for name, field in model.model_fields.items():
        if inner := section(field.annotation):
            yield from paths(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def unknown_setting(key: str) -> str:
    """One line on a name that is none: the nearest settings, or the sections."""
    every = list(paths())
    tables = sorted({path.rpartition(".")[0] for path in every} | set(Config.model_fields))
    if key in tables:
        inside = [path for path in every if path.startswith(f"{key}.")]
        return f"{key!r} is a section, not a setting; its settings are {', '.join(inside[:4])}, ..."
    near = _nearest(key.strip().lower(), every)
    hint = f"the sections are {', '.join(f'[{name}]' for name in Config.model_fields)}"
    if "." not in key and (close := difflib.get_close_matches(key.lower(), Config.model_fields, 1, 0.75)):
        hint = f"the nearest section is {close[0]!r}"
    elif near:
        plural = "s are" if len(near) > 1 else " is"
        hint = f"the nearest setting{plural} {', '.join(map(repr, near))}"
    return f"unknown setting {key!r}; {hint} (fedpeft config schema lists all)"


def _nearest(key: str, every: list[str]) -> list[str]:
    """By the name that other trainers have, the same section, the whole, or the last part anywhere."""
    table, _, leaf = key.rpartition(".")
    inside = {path.rpartition(".")[2]: path for path in every if path.rpartition(".")[0] == table}
    if leaf in OTHER_NAMES:
        return [OTHER_NAMES[leaf]]
    if close := difflib.get_close_matches(leaf, inside, 1, 0.6):
        return [inside[close[0]]]
    if close := difflib.get_close_matches(key, every, 1, 0.8):
        return close
    leaves = difflib.get_close_matches(leaf, {path.rpartition(".")[2] for path in every}, 1, 0.75)
    return [path for path in every if path.rpartition(".")[2] in leaves]

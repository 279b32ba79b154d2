"""Merging an exported adapter into its base."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.adapters.untrusted_config import check_foreign
from fedpeft.bases.load import Base, load_apart, offline, quiet
from fedpeft.config.models import BaseConfig
from fedpeft.errors import ConfigError
from fedpeft.packing.peft_folder import WEIGHTS_FILE, read_config


def merge(folder: Path, out: Path, cfg: BaseConfig) -> Path:
    """Write the base with the adapter folded into its weights as a plain model folder, in float32.

    A quantised base is dequantised first and stays so: merging into quantised weights rounds the
    adapter away. The merged model computes what base and adapter compute together.

    Args:
        folder: an adapter folder of any peft method that can be merged.
        out: where to; must not exist or be empty. It appears whole or not at all.
        cfg: the base; loaded apart from the shared one.

    Returns:
        The folder ``out``.

    Raises:
        ConfigError: no adapter, an occupied output folder or an adapter of another base.
        BaseModelError: the base cannot be loaded.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{folder} is not an adapter folder: it holds no adapter_config.json")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; give a new folder for the merged model")
    check_foreign(read_config(folder), folder)
    base = load_apart(cfg, _labels(folder, cfg))
    model = load_adapter(_dequantised(base), folder).merge_and_unload(safe_merge=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made:
        folder = Path(made) / "merged"
        with quiet(), offline():
            model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        folder.replace(out)
    return out


def load_adapter(model: Any, folder: Path) -> Any:
    """The peft model of an adapter folder around a base's model, frozen; nothing is asked of a hub.

    Raises:
        ConfigError: the folder holds no adapter, one that asks for more than adapting modules by their names
            (`fedpeft.adapters.untrusted_config`), or one that does not fit the model.
    """
    from peft import PeftModel

    check_foreign(read_config(folder), folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"{folder} holds no {WEIGHTS_FILE}; weights in other files are not loaded")
    try:
        with offline(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            return PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        cause = type(error).__name__
    raise ConfigError(
        f"{folder} holds an adapter that does not fit this base ({cause}); give the base it names"
    )


def _dequantised(base: Base) -> Any:
    if base.quantisation == "none":
        return base.model.float()
    model = base.model.dequantize().float()
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    return model


def _labels(folder: Path, cfg: BaseConfig) -> int | None:
    """Number of classes of a classification adapter, read from its head."""
    if cfg.task != "sequence-classification":
        return None
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "np") as file:
        names: list[str] = sorted(file.keys())
        heads = [n for n in names if {"classifier", "score"} & set(n.split(".")) and n.endswith(".weight")]
        return int(file.get_slice(heads[-1]).get_shape()[0]) if heads else None

"""Where a base comes from and what it is: its folder, its content hash, its quantisation."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fedpeft.config.models import EMBEDDED, BaseConfig
from fedpeft.errors import BaseModelError

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
_FETCHED = ("*.safetensors", "*.json", "*.jinja", *_TOKENIZER)
_NOT_WEIGHTS = ("adapter_", "consolidated")
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")


def base_folder(cfg: BaseConfig) -> Path:
    """The local folder of a base: the embedded one, a folder as given, or a fetched Hugging Face snapshot.

    Raises:
        BaseModelError: there is no such folder or snapshot, or it holds no model.
    """
    if cfg.model == EMBEDDED:
        return _checked(_embedded(), cfg.model)
    folder = Path(cfg.model).expanduser()
    if folder.is_dir():
        return _checked(folder, cfg.model)
    if folder.exists():
        raise BaseModelError(f"base.model {cfg.model!r} is a file; give the folder that holds config.json")
    if cfg.model.startswith((".", "/", "~")) or cfg.model.count("/") != 1:
        if "/" not in cfg.model and not cfg.model.startswith((".", "~")) and cfg.model:
            return _checked(_snapshot(cfg), cfg.model)
        raise BaseModelError(
            f"base.model {cfg.model!r} does not exist; give a model folder or a Hugging Face id"
        )
    return _checked(_snapshot(cfg), cfg.model)


def read_model_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a model folder.

    Raises:
        BaseModelError: it is not JSON of a model.
    """
    text = (folder / "config.json").read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or "model_type" not in value:
        raise BaseModelError(
            f"{folder}/config.json is not a model's configuration (no 'model_type'); download it again"
        )
    return dict(value)


def stored_quantisation(config: dict[str, Any]) -> str:
    """How the weights in a folder are quantised: none, int8, nf4, or the name of a foreign method."""
    stored: dict[str, Any] = config.get("quantization_config") or {}
    if not stored:
        return "none"
    if stored.get("load_in_8bit"):
        return "int8"
    if stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    return str(stored.get("quant_method", "unknown"))


def content_hash(folder: Path, quantisation: str = "none") -> str:
    """SHA-256 (hexadecimal) of what defines a base: weights, configuration, tokenizer, quantisation.

    Weight and tokenizer files enter with name and bytes; ``config.json`` enters without the keys that a
    re-save changes. For quantisation on the fly the method enters too: the weights are always read as
    float32 before they are quantised, so that the same source gives the same codes on every machine.
    """
    digest = hashlib.sha256(b"fedpeft-base-1\0")
    config = {key: value for key, value in read_model_config(folder).items() if key not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    for file in (*weight_files(folder), *_named(folder, _TOKENIZER)):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        for block in _blocks(file):
            digest.update(block)
    if quantisation != stored_quantisation(config):
        digest.update(f"{quantisation}\0float32\0".encode())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The weight files that are loaded, sorted by name: safetensors, or pickled ones where there are none."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    for pattern in _WEIGHTS:
        if files := sorted(file for file in folder.glob(pattern) if not file.name.startswith(_NOT_WEIGHTS)):
            return files
    return []


def _embedded() -> Path:
    found = list(entry_points(group="fedpeft.bases", name=EMBEDDED))
    if not found:
        raise BaseModelError(
            "the embedded base is not installed; install the fedpeft package or set base.model"
        )
    return Path(found[0].load()())


def _snapshot(cfg: BaseConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns: list[str] = list(_FETCHED)
        return Path(
            snapshot_download(
                cfg.model,
                revision=cfg.revision,
                allow_patterns=patterns,
                ignore_patterns=["consolidated*", "original/*"],
                etag_timeout=10,
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cause = type(error).__name__
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    raise BaseModelError(
        f"base.model {cfg.model!r} is no folder here and was not found on the Hugging Face Hub{offline}: "
        f"{cause}; check the name, or download it and give its folder"
    )


def _checked(folder: Path, given: str) -> Path:
    if not (folder / "config.json").is_file():
        hint = "; it is an adapter: give its base" if (folder / "adapter_config.json").exists() else ""
        raise BaseModelError(f"base.model {given!r} is not a model folder: it holds no config.json{hint}")
    if not weight_files(folder):
        raise BaseModelError(
            f"base.model {given!r} holds no weights: *.safetensors or pytorch_model.bin is missing"
        )
    return folder


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _blocks(file: Path, size: int = 1 << 22) -> Iterator[bytes]:
    with file.open("rb") as handle:
        while block := handle.read(size):
            yield block

"""Where a base comes from: the embedded one, a folder, or a snapshot of a hub."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from fedpeft.bases.files import FETCHED, weight_files
from fedpeft.config.models import EMBEDDED, BaseConfig
from fedpeft.errors import BaseModelError


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
        patterns: list[str] = list(FETCHED)
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

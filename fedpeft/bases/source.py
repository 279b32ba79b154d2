"""Where a base comes from: the embedded one, a folder, or a snapshot of a hub."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from fedpeft.bases.files import FETCHED, weight_files
from fedpeft.config.models import EMBEDDED, BaseConfig
from fedpeft.errors import BaseModelError

_GGUF = ".gguf"
_OTHER_WEIGHTS = (".safetensors", ".h5", ".onnx", ".msgpack", ".npz", ".mlmodel")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


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
        raise BaseModelError(f"base.model {cfg.model!r} is a file; {_remedy_for(folder)}")
    if cfg.model.startswith((".", "/", "~")) or cfg.model.count("/") != 1:
        if "/" not in cfg.model and not cfg.model.startswith((".", "~")) and cfg.model:
            return _fetched(cfg)
        raise BaseModelError(
            f"base.model {cfg.model!r} does not exist; give a model folder or a Hugging Face id"
        )
    return _fetched(cfg)


def held_base(name: str, revision: str | None = None) -> str:
    """A base that somebody else named, where it lies on this machine: nothing is asked of a hub for it.

    Raises:
        BaseModelError: it is not here.
    """
    try:
        if name == EMBEDDED or Path(name).expanduser().is_dir():
            return name
        return str(_download(name, revision, local_files_only=True))
    except (OSError, ValueError, RuntimeError):  # a name too long for a file, or of a user who is not here
        pass
    version = f" in revision {revision[:100]!r}" if revision else ""
    raise BaseModelError(
        f"the adapter names the base {name[:200]!r}{version}, which is not on this machine; if you trust it, "
        "fetch it and give it with --base"
    )


def _embedded() -> Path:
    points = list(entry_points(group="fedpeft.bases", name=EMBEDDED))
    if not points:
        raise BaseModelError(
            "the embedded base is not installed; install the fedpeft package or set base.model"
        )
    return Path(points[0].load()())


def _fetched(cfg: BaseConfig) -> Path:
    """A checked snapshot; one without weights of a kind that is fetched: what its repository has instead.

    Raises:
        BaseModelError: there is none, or it holds no model.
    """
    folder = _snapshot(cfg)
    names = [] if weight_files(folder) else _listed(cfg)
    if gguf := next((name for name in names if name.endswith(_GGUF)), None):
        raise BaseModelError(
            f"base.model {cfg.model!r} holds GGUF files alone: download one (hf download {cfg.model} "
            f"{gguf}), make a folder of it (fedpeft base import FILE -o FOLDER) and give that"
        )
    if pickle := next((name for name in names if "model" in name and name.endswith(_PICKLED)), None):
        raise BaseModelError(
            f"base.model {cfg.model!r} holds pickled weights alone ({pickle}), which are not fetched: "
            f"download it (hf download {cfg.model}) and give its folder, or a base.revision with safetensors"
        )
    return _checked(folder, cfg.model)


def _listed(cfg: BaseConfig) -> list[str]:
    """Names of the files of a repository; none where it cannot be asked."""
    from huggingface_hub import list_repo_files

    try:
        return sorted(list_repo_files(cfg.model, revision=cfg.revision, token=False))
    except (OSError, ValueError):
        return []


def _snapshot(cfg: BaseConfig) -> Path:
    try:
        return _download(cfg.model, cfg.revision)
    except (OSError, ValueError) as error:
        cause = type(error).__name__
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    revision = f" of revision {cfg.revision!r}" if cfg.revision else ""
    raise BaseModelError(
        f"base.model {cfg.model!r}{revision} is no folder here and was not found on the Hugging Face "
        f"Hub{offline}: {cause}; check the name, or download it (hf download) and give its folder"
    )


def _download(name: str, revision: str | None, local_files_only: bool = False) -> Path:
    """A snapshot of a hub; without the user's token, since others may have chosen the name."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(FETCHED),
            ignore_patterns=["consolidated*", "original/*"],
            etag_timeout=10,
            token=False,
            local_files_only=local_files_only,
        )
    )


def _checked(folder: Path, model: str) -> Path:
    if not weight_files(folder) and (gguf := next(iter(sorted(folder.glob(f"*{_GGUF}"))), None)):
        raise BaseModelError(f"base.model {model!r} holds a GGUF file; {_remedy_for(gguf)}")
    if not (folder / "config.json").is_file():
        hint = "; it is an adapter: give its base" if (folder / "adapter_config.json").exists() else ""
        if inner := next(iter(sorted(folder.glob("*/config.json"))), None):
            hint = f"; one lies in its folder {inner.parent.name!r}: give that"
        raise BaseModelError(f"base.model {model!r} is not a model folder: it holds no config.json{hint}")
    if not weight_files(folder):
        raise BaseModelError(f"base.model {model!r} holds no weights: {_absent(folder)}")
    return folder


def _absent(folder: Path) -> str:
    """What is missing in a folder without weights, and what it has instead."""
    shards = [file.name for file in sorted(folder.glob("model-*-of-*.safetensors"))]
    if shards:
        return f"it has {shards[0]}, but model.safetensors.index.json, which names the parts, is missing"
    files = (file.name for file in sorted(folder.iterdir()) if file.is_file())
    others = [name for name in files if name.endswith((*_PICKLED, *_OTHER_WEIGHTS))]
    line = "model.safetensors or pytorch_model.bin is missing"
    return f"{line}; {others[0][:80]!r} is not read: save the model with save_pretrained" if others else line


def _remedy_for(file: Path) -> str:
    """What to give in place of a file."""
    if file.name.endswith(_GGUF):
        return f"make a folder of it (fedpeft base import {file.name} -o FOLDER) and give that"
    return "give the folder that holds config.json"

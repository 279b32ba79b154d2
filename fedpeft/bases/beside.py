"""What an exported adapter calls its base: a public id, or a folder that lies in the run itself."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.bases.files import VOLATILE, read_model_config, view

MOST_COPIED = 64 << 20
"""Weights that cannot be linked within a file system are copied up to this size, else linked by path."""
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$")


def hub_id(folder: Path) -> tuple[str, str] | None:
    """Id and commit of a base that lies in the cache of a hub; None: it is another folder."""
    match = _SNAPSHOT.search(folder.as_posix())
    return None if match is None else (f"{match[1]}/{match[2]}", match[3])


def place_base(folder: Path, beside: Path, sha256: str) -> tuple[str, str]:
    """Name a base for loaders that know nothing of the machine that trained on it.

    A base of a hub has its id and commit. Any other base, the embedded one among them, is laid into
    ``beside`` with exactly the files that its hash covers: hard links where the file system has them. Its
    name is then the path from the working directory, since that is what transformers resolves paths
    against, and its revision, which loaders ignore for folders, is the hash that the run agreed on. The path
    begins with a point: from another directory it is refused as a name, while ``demo/base`` would be asked
    of a hub, where it may be anybody's.

    Args:
        folder: where the base lies.
        beside: a folder of the run; left alone if it is there.
        sha256: content hash of the base as it was loaded.

    Returns:
        ``base_model_name_or_path`` and ``revision`` of an adapter's configuration.

    Raises:
        BaseModelError: the base is damaged.
    """
    if (public := hub_id(folder)) is not None:
        return public
    if not beside.exists():
        _lay(folder, beside)
    path = os.path.relpath(beside)
    return path if path.startswith(os.pardir) else os.path.join(os.curdir, path), sha256


def _lay(folder: Path, beside: Path) -> None:
    beside.parent.mkdir(parents=True, exist_ok=True)
    with view(folder) as shown, TemporaryDirectory(prefix=".base.", dir=beside.parent) as work:
        place = Path(work) / "base"
        place.mkdir()
        for file in sorted(shown.iterdir()):
            _link(file.resolve(), place / file.name, made=not file.is_symlink())
        _name_class(place / "config.json", read_model_config(folder))
        place.rename(beside)


def _name_class(laid: Path, config: Mapping[str, Any]) -> None:
    """Write down again what the hash leaves out: vLLM and llama.cpp find a base's class by its name alone."""
    plain = {key: config[key] for key in VOLATILE if key in config}
    laid.write_text(json.dumps(json.loads(laid.read_text()) | plain, indent=2, sort_keys=True) + "\n")


def _link(source: Path, target: Path, made: bool) -> None:
    """A hard link, a copy or a symbolic link; files that are made for the view are always copied."""
    if not made:
        try:
            os.link(source, target)
        except OSError:
            pass  # another file system, or one without links
        else:
            return
    if made or source.stat().st_size <= MOST_COPIED:
        shutil.copyfile(source, target)
    else:
        target.symlink_to(source)

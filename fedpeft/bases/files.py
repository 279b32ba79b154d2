"""The closed list of files that a base is: what is hashed is loaded, and nothing else is."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.errors import BaseModelError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SETTINGS = ("config.json", "generation_config.json")
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
FETCHED = (*_SETTINGS, _TOKENIZER_SETTINGS, *_TOKENIZER, "*.safetensors", "model.safetensors.index.json")
"""Patterns of the files that are fetched from a hub: never code, never pickled weights."""

# A re-save changes them, or the loader sets them itself.
VOLATILE = ("transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
# They point to something outside the list: code, kernels of a hub, other files, another model.
_POINTERS = (
    "_name_or_path",
    "name_or_path",
    "auto_map",
    "custom_pipelines",
    "transformers_weights",
    "fast_tokenizer_files",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)


def read_model_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a model folder.

    Raises:
        BaseModelError: it is not JSON of a model.
    """
    value = _read(folder / "config.json")
    if "model_type" not in value:
        raise BaseModelError(
            f"{folder}/config.json is not a model's configuration (no 'model_type'); download it again"
        )
    return value


def stored_quantisation(config: dict[str, Any]) -> str:
    """How the weights in a folder are quantised: none, int8, nf4, or the name of a foreign method."""
    value: Any = config.get("quantization_config") or config.get("compression_config")
    if not value:
        return "none"
    settings: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit") and settings.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    kind = settings.get("bnb_4bit_quant_type") if settings.get("load_in_4bit") else None
    return str(kind or settings.get("quant_method", "an unknown method"))[:40]


def weight_files(folder: Path) -> list[Path]:
    """The weight files that are loaded: one safetensors file, or the shards of its index, else pickled ones.

    Raises:
        BaseModelError: an index names a shard that is missing or not a file of this very folder.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return [folder / shard for shard in _shards(index, Path(name).suffix)]
    return []


def content_hash(folder: Path, quantisation: str = "none") -> str:
    """SHA-256 (hexadecimal) of what defines a base: every byte that `view` shows to the loader.

    Each file enters with its name, its length and its bytes. For quantisation on the fly the method
    enters too: the weights are always read as float32 before they are quantised, so that the same source
    gives the same codes on every machine.

    Raises:
        BaseModelError: a file of the list is damaged.
    """
    digest = hashlib.sha256(b"fedpeft-base-2\0")
    for name, content in sorted(_parts(folder).items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        for block in [content] if isinstance(content, bytes) else _blocks(content):
            digest.update(block)
    if quantisation != stored_quantisation(read_model_config(folder)):
        digest.update(f"{quantisation}\0float32\0".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def view(folder: Path) -> Generator[Path]:
    """A folder that holds exactly what `content_hash` hashes, for as long as the context lasts.

    Large files are links; settings are written without the keys that the hash leaves out. An adapter, code,
    sub-folders or other files beside them are not there for the loader to find.
    """
    with TemporaryDirectory(prefix="fedpeft-base-") as made:
        for name, content in _parts(folder).items():
            place = Path(made) / name
            if isinstance(content, bytes):
                place.write_bytes(content)
            else:
                place.symlink_to(content.resolve())
        yield Path(made)


def _parts(folder: Path) -> dict[str, bytes | Path]:
    """What a base is: bytes of the settings as they are loaded, places of the files that are taken whole."""
    read_model_config(folder)
    parts: dict[str, bytes | Path] = {file.name: file for file in weight_files(folder)}
    indices = (f"{name}.index.json" for name in _WEIGHTS)
    if not parts.keys() & set(_WEIGHTS):
        parts |= {name: folder / name for name in indices if (folder / name).is_file()}
    parts |= {name: folder / name for name in _TOKENIZER if (folder / name).is_file()}
    for name in (*_SETTINGS, _TOKENIZER_SETTINGS):
        if (folder / name).is_file():
            parts[name] = _settings(folder / name)
    return parts


def _settings(file: Path) -> bytes:
    """Settings without what the hash leaves out, in a fixed form; a tokenizer's keep their order."""
    ordered = file.name == _TOKENIZER_SETTINGS
    settings = {
        key: _without_pointers(value)
        for key, value in _read(file).items()
        if not (key.endswith("_file") if ordered else key in VOLATILE) and key not in _POINTERS
    }
    return json.dumps(settings, sort_keys=not ordered, separators=(",", ":")).encode()


def _without_pointers(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner: dict[str, Any] = dict(value)
    return {key: _without_pointers(part) for key, part in inner.items() if key not in _POINTERS}


def _shards(index: Path, suffix: str) -> list[str]:
    table: Any = _read(index).get("weight_map")
    places: list[object] = list(dict(table).values()) if isinstance(table, dict) else []
    names = sorted({str(place) for place in places})
    for name in names:
        plain = Path(name).name == name and name.endswith(suffix) and not name.startswith((".", "adapter_"))
        if not plain or not (index.parent / name).is_file():
            raise BaseModelError(
                f"{index} names {name[:80]!r}, which is no {suffix} file beside it; download it again"
            )
    return names


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BaseModelError(
            f"{file} is no JSON object: it is not a model's configuration; download it again"
        )
    return dict(value)


def _blocks(file: Path, size: int = 1 << 22) -> Iterator[bytes]:
    with file.open("rb") as handle:
        while block := handle.read(size):
            yield block
